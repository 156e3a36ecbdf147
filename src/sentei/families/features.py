"""Settings of a config that change what a model computes, and that its family does not account for.

Two kinds: fields of the stock config class, which its code reads, so that each has to be known; and keys that the class
does not have, which only matter where some other decoder has such a feature. Configs in the wild carry much that says
nothing (`pretraining_tp`, `is_llama_config`, `_name_or_path`), so of the latter only those with telling names count.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from sentei.errors import InputError
from sentei.families.base import Family

# Fields that the families' common code accounts for, and those that change nothing when a model is run.
_KNOWN = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "per_layer_config",
        "o_proj_bias",
        "down_proj_bias",
        "ranks",
        "expert_sizes",
        "rank_storage",
        "sentei_parts",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "use_cache",
        "pretraining_tp",
        "attention_dropout",
    ]
)
# What other decoders differ by, in the names that transformers' configs and remote code give it.
_FEATURE = re.compile(
    r"multiplier|soft_?cap|clip_?qkv|qkv_clip|alibi|(?:^|_)logits?_scal|softmax_scal|attn_scal|attention_scal|scale_attn"
    r"|query_pre_attn_scalar|scale_(?:emb|depth)|(?:emb|embedding|residual)_scal|dim_model_base|mup_"
    r"|partial_rotary|rotary_(?:pct|dim|percent)|rope_interleave|no_rope|nope_|learned_pos"
    r"|parallel_(?:attn|attention|residual)|new_decoder_architecture|qk_(?:layer)?norm|qk_ln|qk_nope|qk_rope|_lora_rank"
    r"|experts?(?:_|$)|(?:^|_)moe(?:_|$)|attention_chunk|attn_temperature|sliding_window_pattern|swiglu_(?:alpha|limit)"
    r"|(?:^|_)(?:mamba|ssm)_|attention_sink|bidirectional|prefix_lm|kv_shared|cross_attention|transformers_weights"
)
_SCALE = re.compile(r"multiplier|scal|factor|fraction|pct|percent")  # 1 leaves everything as it is
_ROPE = frozenset({"mrope_section", "alpha", "partial_rotary_factor"})  # of RoPE, unknown to the families' own


def check_features(family: Family, config: Any) -> None:
    """Refuses a model whose config asks for what the family does not account for.

    Args:
        family: of the model; its `features` are accounted for.
        config: of the stock class or of a pruned one.

    Raises:
        InputError: names the setting and its value.
    """
    values = config.to_dict()
    declared = _fields(type(config))
    for key in sorted(key for key in values if not key.startswith("_")):
        asked = (key in declared and key not in _common()) or (key not in declared and _FEATURE.search(key))
        if asked and key not in _KNOWN and key not in family.features and not _is_neutral(key, values[key]):
            raise _refusal(family, key, values[key])
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}  # the old spelling in transformers 4
    for key in sorted(_ROPE & rope.keys() - set(family.features)):
        if not _is_neutral(key, rope[key]):
            raise _refusal(family, f"rope_parameters.{key}", rope[key])
    _check_windows(family, values, declared)


def _check_windows(family: Family, values: dict[str, Any], declared: frozenset[str]) -> None:
    """A window that the class does not have is not applied by it, and would be by us."""
    window = values.get("sliding_window")
    reaches = window is None or window >= values.get("max_position_embeddings", 0)
    if "sliding_window" not in declared and not reaches and values.get("use_sliding_window", True):
        raise _refusal(family, "sliding_window", window)
    kinds = set(values.get("layer_types") or ())
    own = {"full_attention"} if window is None else {"sliding_attention"}
    if "layer_types" not in declared and kinds and kinds != own and "layer_types" not in family.features:
        raise _refusal(family, "layer_types", sorted(kinds))


def _refusal(family: Family, key: str, value: Any) -> InputError:
    return InputError(
        f"config.json has {key} = {str(value)[:60]}, which changes what the model computes and which family "
        f"{family.name} does not account for; a model of this kind needs a family of its own (docs/add-a-family.md)"
    )


def _is_neutral(key: str, value: Any) -> bool:
    """Off, or a factor of 1."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float)) for v in value):
        return all(_is_neutral(key, v) for v in value)
    return not value or (bool(_SCALE.search(key)) and not isinstance(value, bool) and value == 1)


def _fields(kind: type) -> frozenset[str]:
    """Settings that a config class declares: fields in transformers 5, arguments before."""
    from transformers import PretrainedConfig

    named: set[str] = set()
    for base in kind.__mro__:
        if base is PretrainedConfig or not issubclass(base, PretrainedConfig):
            break
        named |= set(inspect.signature(base).parameters) - {"args", "kwargs"}
        named |= set(inspect.get_annotations(base))
    return frozenset(named | ({f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()))


def _common() -> frozenset[str]:
    """Settings of every config, which say nothing about a decoder."""
    from transformers import PretrainedConfig

    named = set(PretrainedConfig().to_dict())
    if dataclasses.is_dataclass(PretrainedConfig):
        named |= {f.name for f in dataclasses.fields(PretrainedConfig)}
    return frozenset(named | set(PretrainedConfig.__annotations__))
