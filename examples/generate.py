"""Generates text from a saved model, dense or pruned, with plain transformers: sentei is not imported.

python examples/generate.py runs/demo/model "The capital of France is"
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: str, prompt: str, new_tokens: int = 24) -> str:
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(output[0], skip_special_tokens=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    text = main(sys.argv[1], sys.argv[2])
    print(" ".join(text.split()))
