"""Tiny random models of every family, random plans for them, and a tokenizer for their vocabulary."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers

from sentei.families import FAMILIES, family_of
from sentei.families.separate import separate
from sentei.plan import BlockPlan, Budget, ModelShape, Plan

# 42 / 4 query heads leaves a remainder, which stock LlamaConfig refuses: a pruned model must not trip over it.
SIZES: dict[str, Any] = {
    "hidden_size": 42,
    "head_dim": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE: dict[str, Any] = {"rope_theta": 1e4, "rope_type": "default"}
SIXES: dict[str, Any] = {"hidden_size": 48}  # no remainder: these classes check it, also for the dense model
MHA: dict[str, Any] = {"hidden_size": 48, "num_key_value_heads": ..., "head_dim": ...}  # and have no such keys
EXPERTS: dict[str, Any] = {**SIXES, "num_experts_per_tok": 2}  # fused products want rows of 16 bytes
QWEN3_MOE: dict[str, Any] = {**EXPERTS, "num_experts": 4}
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.5, "residual_multiplier": 0.4, "logits_scaling": 2.0},
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "gemma2": ("gemma2", {**SIXES, "sliding_window": 5}),
    "gemma3_text": ("gemma3_text", {**SIXES, "sliding_window": 5, "sliding_window_pattern": 2}),
    "olmo2": ("olmo2", SIXES),
    "phi3": ("phi3", {}),
    "phi3-partial": ("phi3", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}),
    "gpt2": ("gpt2", MHA),
    "gpt_neox": ("gpt_neox", MHA),
    "mixtral": ("mixtral", {**EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**QWEN3_MOE, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "qwen3_moe-mixed": ("qwen3_moe", {**QWEN3_MOE, "moe_intermediate_size": 16, "mlp_only_layers": [1]}),
    "gpt_neox-serial": ("gpt_neox", {**MHA, "use_parallel_residual": False}),
}


VARIANTS = {name: variant for name, variant in ALL.items() if FAMILIES[variant[0]].installed}
MIXTURES = sorted(name for name in VARIANTS if FAMILIES[VARIANTS[name][0]].ffn_part.experts)
PLAIN = sorted(set(VARIANTS) - set(MIXTURES))
# Whose query heads can be thinned within a KV group.
GROUPED = sorted(set(VARIANTS) - {"olmo2", "gpt2", "gpt_neox", "gpt_neox-serial"})


def tiny_model(variant: str = "llama", **sizes: Any) -> Any:
    """A random fp32 model of a variant as `load` gives it, the same at every call; every part of it counts."""
    name, extra = VARIANTS[variant]
    family = FAMILIES[name]
    wanted = {**SIZES, **extra, **sizes}
    wanted[family.ffn_size] = wanted.pop("intermediate_size")
    config = family.stock_class("Config")(**{key: value for key, value in wanted.items() if value is not ...})
    generator = torch.Generator().manual_seed(0)
    model = family.stock_class("ForCausalLM")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + (1 if value.ndim == 1 else 0))
    return separate(model)


def random_blocks(shape: ModelShape, seed: int, *, skip: float = 0.25) -> list[BlockPlan]:
    """Random kept units per block; a part is skipped with probability `skip`, but never the attention of block 0."""
    rng = random.Random(seed)

    def some(size: int, count: int) -> list[int]:
        return sorted(rng.sample(range(size), count))

    blocks = []
    for i, block in enumerate(shape.blocks):
        groups = 0 if i and rng.random() < skip else rng.randint(1, block.kv_groups)
        heads = rng.randint(1, block.heads_per_group)
        if shape.qk_norm_over_heads:  # all or nothing
            groups, heads = block.kv_groups if groups else 0, block.heads_per_group
        ffn = 0 if rng.random() < skip else rng.randint(1, block.ffn)
        queries = [some(block.heads_per_group, heads) for _ in range(groups)]
        blocks.append(BlockPlan(kv_groups=some(block.kv_groups, groups), query_heads=queries, ffn=some(block.ffn, ffn)))
    return blocks


def make_plan(model: Any, blocks: list[BlockPlan], compensation: str = "none") -> Plan:
    """A plan with these blocks for this model."""
    shape = family_of(model.config).shape(model.config)
    names = {"method": "test", "score": "random", "allocation": "random", "compensation": compensation}
    return Plan(model="", profile="", budget=Budget(sparsity=0.2), dense=shape, blocks=blocks, **names)


def whole(shape: ModelShape) -> list[BlockPlan]:
    """Blocks that keep everything."""
    return [
        BlockPlan(
            kv_groups=list(range(b.kv_groups)),
            query_heads=[list(range(b.heads_per_group))] * b.kv_groups,
            ffn=list(range(b.ffn)),
        )
        for b in shape.blocks
    ]


def tiny_tokenizer() -> Any:
    """Words w3 … w127 to their own numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 128)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
