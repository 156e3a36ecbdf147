"""The identity of a model: what its config computes, its weights as stored, and its tokenizer.

Plans, profiles, fits and selections name it, so that none is applied to another model. It is the same in every
process, and for every dtype that a model is loaded in: weights count by their exact values in the files. A model that
only exists in memory counts by the values that it has; where nothing was rounded, they are those of the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.families.separate import named_as_stored
from sentei.files import hash_json
from sentei.models.headers import opened, stored_tensors, weight_files

if TYPE_CHECKING:
    from sentei.models.load import Loaded
    from sentei.plan import ModelShape

_HEAD, _EMBEDDINGS = "lm_head.weight", ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_HEADS = {"embed_out.weight": _HEAD}  # what GPT-NeoX calls it, depending on the version of transformers
_ROOTS = re.compile(r"^(?:model|transformer|gpt_neox)\.")
_PART = 32  # hex digits of each part
# What a config says besides the function that it describes: where it came from, how to train, how to call, what to call
# things. Sizes, activations, epsilons, multipliers, windows and whatever else a family has count.
_NOT_COMPUTED = {
    *("_name_or_path", "name_or_path", "architectures", "auto_map", "transformers_version", "tokenizer_class"),
    *("dtype", "torch_dtype", "use_cache", "attn_implementation", "prune_provenance", "pretraining_tp"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "is_encoder_decoder"),
    *("initializer_range", "return_dict", "chunk_size_feed_forward", "max_position_embeddings"),
    *("rope_parameters", "rope_scaling", "rope_theta"),  # spelled in two ways; see `_rope`
}


def digest(model: nn.Module, tokenizer: Any = None) -> str:
    """The identity of a model in memory.

    Args:
        model: a transformers causal language model.
        tokenizer: its own; without one the identity says nothing about it.

    Returns:
        Three hashes with dots between: weights, config, tokenizer (empty without one).
    """
    weights = {name: _hash_tensor(value) for name, value in named_as_stored(model).items()}
    return _joined(weights, model.config, tokenizer)


def stored_digest(directory: Path, config: Any, tokenizer: Any) -> str:
    """The identity of a model in a directory, whatever dtype it was loaded in; `config` is that of the loaded model."""
    weights, stock = {}, config.model_type in FAMILIES
    known = FAMILIES[config.model_type].known_name if stock else str
    for name, place in stored_tensors(weight_files(directory)).items():
        with opened(place.file) as handle:
            weights[known(name)] = _hash_tensor(place.read(handle))
    return _joined(weights, config, tokenizer)


def with_tokenizer(identity: str, tokenizer: Any) -> str:
    """The same model with another tokenizer."""
    return ".".join([*identity.split(".")[:2], hash_tokenizer(tokenizer)])


def difference(loaded: Loaded, known: str) -> str:
    """In what a model differs from one whose identity a file names; empty where it does not.

    A tokenizer counts where both have one. Files of sentei 0.1 name the weights alone, rounded to bf16.
    """
    if "." not in known:
        return "weights" if _old_digest(loaded.model) != known else ""
    parts = zip(("weights", "config", "tokenizer"), loaded.digest.split("."), known.split("."), strict=False)
    different = [name for name, ours, theirs in parts if ours != theirs and (name != "tokenizer" or (ours and theirs))]
    return " and ".join(different)


def check_same(loaded: Loaded, known: str, shape: ModelShape, what: str) -> None:
    """Refuses a file that was made for another model.

    Args:
        loaded: the model.
        known: the identity that the file names.
        shape: of the model that the file is for; what an earlier version did not write is not compared.
        what: to call the file.

    Raises:
        InputError: saying what differs.
    """
    if different := difference(loaded, known):
        raise InputError(
            f"{what} is for another model (other {different} than {loaded.name}); measure and plan this model"
        )
    real = family_of(loaded.model.config).shape(loaded.model.config).model_dump()
    if different := _unlike(shape.model_dump(exclude_unset=True), real, "dense"):
        raise InputError(f"{what} is for a model of another shape: {different}; measure and plan this model")


def _unlike(given: Any, real: Any, place: str) -> str:
    """The first value of `given` that is another one in `real`."""
    if isinstance(given, Mapping) and isinstance(real, Mapping):
        pairs = [(given[key], real.get(key), f"{place}.{key}") for key in given]
    elif isinstance(given, list | tuple) and isinstance(real, list | tuple) and len(given) == len(real):
        pairs = [(one, other, f"{place}[{i}]") for i, (one, other) in enumerate(zip(given, real, strict=True))]
    else:
        return "" if given == real else f"{place} is {given}, the model has {real}"
    return next((found for pair in pairs if (found := _unlike(*pair))), "")


def made_with(loaded: Loaded) -> dict[str, str]:
    """What results depend on beside model and data, for their records."""
    import sentei

    found = {"sentei": sentei.__version__, "dtype": str(loaded.model.dtype).removeprefix("torch.")}
    return found | ({"revision": loaded.revision} if loaded.revision else {})


def same_weights(one: str, other: str) -> bool:
    """Whether two identities name the same weights."""
    return one.partition(".")[0] == other.partition(".")[0]


def hash_tokenizer(tokenizer: Any) -> str:
    """Of all that turns a conversation into token ids: vocabulary, merges, rules, special tokens, chat template."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
        if backend is not None:
            rules.pop(state, None)
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return hash_json([rules, special, getattr(tokenizer, "chat_template", None)])[:_PART]


def _joined(weights: Mapping[str, str], config: Any, tokenizer: Any) -> str:
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    named = {_HEADS.get(known := _ROOTS.sub("", name), known): value for name, value in weights.items()}
    if tied and _HEAD in named:  # of two names for one tensor, either may be stored
        head = named.pop(_HEAD)
        if not any(name in named for name in _EMBEDDINGS):
            named[_EMBEDDINGS[0]] = head
    hashes = [hash_json(value)[:_PART] for value in (named, _canonical(config.to_dict()))]
    return ".".join([*hashes, hash_tokenizer(tokenizer)])


def _hash_tensor(tensor: Tensor) -> str:
    """Of shape and exact values: as bf16 where that holds them all, so that the dtype they are in does not count."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and tensor.dtype != torch.bfloat16:
        tensor = tensor.float()  # exact from fp16; no known checkpoint has fp64
        if _all_bf16(tensor.view(torch.int32).flatten()):
            tensor = tensor.bfloat16()
    total = hashlib.sha256(f"{list(tensor.shape)} {tensor.dtype}".encode())
    total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _all_bf16(bits: Tensor) -> bool:
    """Whether the lower half of every fp32 is empty; most tensors show it at their beginning."""
    return not any(bool((part & 0xFFFF).any()) for part in _parts(bits))


def _parts(bits: Tensor) -> Iterable[Tensor]:
    yield bits[:4096]
    yield from bits.split(1 << 24)  # little memory at a time


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """What matters of a config for what the model computes, spelled in one way.

    What is off counts as what is not said, since younger versions of transformers say more.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_COMPUTED and not _about(key)}
    if not config.get("sliding_window"):
        kept = {key: value for key, value in kept.items() if key not in ("layer_types", "max_window_layers")}
    kept["rope"] = _rope(config)
    found: dict[str, Any] = _numbers({key: value for key, value in kept.items() if value not in (None, False, [], {})})
    return found


def _about(key: str) -> bool:
    return key.startswith(("sentei_", "output_", "_")) or key.endswith(("_dropout", "dropout"))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling. The length that a model was made for counts where the scaling depends on it."""
    found: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    found |= config.get("rope_scaling") or {}
    found |= config.get("rope_parameters") or {}
    kind = found.pop("type", None)
    found.setdefault("rope_type", kind or "default")
    if found["rope_type"] != "default":
        found["made_for"] = config.get("max_position_embeddings")
    return {key: value for key, value in found.items() if value is not None}


def _numbers(value: Any) -> Any:
    """Whole numbers as floats: JSON files spell 10000 and 10000.0."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _old_digest(model: nn.Module) -> str:
    """What sentei 0.1 called a model's digest: sha256 over names, shapes and bf16 bytes of all parameters."""
    total = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        total.update(f"{name}{list(value.shape)}".encode())
        total.update(value.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
