"""A Llama of any size with random weights, written shard by shard, so that making it takes the memory of one block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 128  # w3 … w127 of the tokenizer are their own numbers; the embedding may have more rows


def write_model(directory: Path, **sizes: Any) -> int:
    """Writes a bf16 model whose blocks all have the same random weights, and a word-level tokenizer; gives its bytes.

    Args:
        directory: is made.
        sizes: of `LlamaConfig`.
    """
    config = LlamaConfig(**{"max_position_embeddings": 2048, **sizes}, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    with torch.device("meta"):
        expected = LlamaForCausalLM(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    inside = {name.removeprefix("model.layers.0."): value.shape for name, value in expected.items() if ".0." in name}
    block = {name: _values(shape, generator) for name, shape in inside.items()}
    outside = [name for name in expected if not name.startswith("model.layers.")]
    if config.tie_word_embeddings:
        outside.remove("lm_head.weight")
    where: dict[str, str] = {}
    for number in range(config.num_hidden_layers + 1):
        if number < config.num_hidden_layers:
            state = {f"model.layers.{number}.{name}": value for name, value in block.items()}
        else:
            state = {name: _values(expected[name].shape, generator) for name in outside}
        shard = f"model-{number:05d}.safetensors"
        save_file(state, directory / shard, {"format": "pt"})
        where |= dict.fromkeys(state, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _values(shape: Any, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def tokenizer() -> Any:
    """Words w3 … w127 to their own numbers."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, WORDS)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
