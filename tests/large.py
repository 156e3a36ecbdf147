"""A model that is larger than a memory budget, written shard by shard so that making it needs little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from tiny import tiny_tokenizer

SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 4}


def write_large(directory: Path, blocks: int, vocab: int = 128) -> int:
    """A random bf16 Llama with a shard per block and a word-level tokenizer; gives its bytes. All blocks are alike."""
    config = LlamaConfig(
        **SIZES,
        num_hidden_layers=blocks,
        vocab_size=vocab,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    hidden, ffn = config.hidden_size, config.intermediate_size
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 3, hidden),
        "self_attn.v_proj": (hidden // 3, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    block = {f"{name}.weight": _random(size, generator) for name, size in shapes.items()}
    block |= {f"{name}.weight": _one(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
    outside = {"model.embed_tokens.weight": _random((vocab, hidden), generator), "model.norm.weight": _one(hidden)}
    where = {}
    for number in range(blocks + 1):
        state = (
            {f"model.layers.{number}.{name}": value for name, value in block.items()} if number < blocks else outside
        )
        save_file(state, directory / f"model-{number:05d}.safetensors", {"format": "pt"})
        where |= dict.fromkeys(state, f"model-{number:05d}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _random(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(size, generator=generator) * 0.02).bfloat16()


def _one(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)


def sentei(*arguments: object) -> tuple[int, str, int]:
    """Runs the command line in a process of its own: exit code, stderr, and the most memory that it held."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'sentei', *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr, int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
