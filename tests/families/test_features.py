"""Settings that a family does not account for are refused by name; what says nothing is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.families.base import Family
from sentei.families.features import check_features
from sentei.families.surgery import prune
from sentei.measure import measure
from sentei.models.load import load
from tiny import SIZES, make_plan, random_blocks, tiny_model

FEATURES: dict[str, Any] = {
    "attention_multiplier": 0.0156,
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "logit_scale": 0.0625,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "partial_rotary_factor": 0.5,
    "rotary_pct": 0.25,
    "clip_qkv": 8.0,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "qk_layernorm": True,
    "use_qk_norm": True,
    "use_parallel_residual": True,
    "parallel_attn": True,
    "alibi": True,
    "no_rope_layers": [1, 1, 1, 0],
    "rope_interleaved": True,
    "num_local_experts": 8,
    "moe_intermediate_size": 768,
    "kv_lora_rank": 512,
    "attention_chunk_size": 8192,
    "sliding_window_pattern": 4,
    "sliding_window": 64,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    "transformers_weights": "other.safetensors",
}
HARMLESS: dict[str, Any] = {
    "pretraining_tp": 2,
    "rope_interleaved": False,
    "is_llama_config": True,
    "_name_or_path": "/home/somebody/model",
    "use_mrope": False,
    "bias": False,
    "attention_in_8bit": False,
    "model_max_length": 4096,
    "unsloth_version": "2025.1",
    "tokenizer_class": "LlamaTokenizer",
    "use_sliding_window": False,
    "max_window_layers": 28,
    "sliding_window": 4096,  # beyond what this model was made for
    "attention_multiplier": 1.0,
    "logit_scale": None,
    "num_experts": 0,
    "attn_logit_softcapping": None,
    "partial_rotary_factor": 1.0,
    "auto_map": {},
    "task_specific_params": None,
    "gradient_checkpointing": True,
    "_flash_attn_2_enabled": True,
    "rotary": {"base": 10000},
    "vision_config": None,
}


@pytest.mark.parametrize("key", FEATURES)
def test_a_feature_of_another_architecture_is_named(key):
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": 48, key: FEATURES[key]})
    with pytest.raises(InputError, match=f"{'mrope_section' if key == 'rope_parameters' else key} = "):
        check_features(FAMILIES["llama"], config)


def test_what_says_nothing_is_not_refused():
    for key, value in HARMLESS.items():
        check_features(FAMILIES["llama"], transformers.LlamaConfig(**{**SIZES, "hidden_size": 48, key: value}))


def test_configs_of_all_families_dense_and_pruned(tiny):
    family = family_of(tiny.config)
    check_features(family, tiny.config)
    check_features(family, prune(tiny, make_plan(tiny, random_blocks(family.shape(tiny.config), 3))).config)
    check_features(family, type(tiny.config)())


def test_every_field_of_a_new_class_has_to_be_known():
    """A family for Granite that was written from facts alone."""
    granite = Family(name="granite", prefix="Granite", qkv_bias="attention_bias", o_bias="attention_bias")
    check_features(granite, transformers.GraniteConfig())
    for name in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"):
        with pytest.raises(InputError, match=f"{name} = 0.5.*family granite does not account for"):
            check_features(granite, transformers.GraniteConfig(**{name: 0.5}))
    aware = Family(name="granite", prefix="Granite", features=("attention_multiplier",))
    check_features(aware, transformers.GraniteConfig(attention_multiplier=0.5))


def test_where_models_enter(tmp_path, ids):
    model = tiny_model("llama-tied")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "residual_multiplier": 0.22}))
    with pytest.raises(InputError, match=r"residual_multiplier = 0\.22"):
        load(tmp_path)
    model.config.logits_scaling = 8.0
    with pytest.raises(InputError, match=r"logits_scaling = 8\.0"):
        measure(model, ids)
