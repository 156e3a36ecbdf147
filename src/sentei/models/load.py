"""`load`: a model with its tokenizer, from a name, directory, GGUF file or Hugging Face id; nothing is unpickled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError

from sentei.data.tokens import bind
from sentei.errors import InputError, one_line
from sentei.families import FAMILIES, family_of
from sentei.families.features import check_features
from sentei.files import read_json
from sentei.machine import resolve_device, resolve_dtype
from sentei.memory import return_freed_memory
from sentei.models.headers import check_depth, dtype_of, stored_tensors, weight_files
from sentei.models.identity import digest, stored_digest, with_tokenizer
from sentei.models.source import check_no_adapter, find
from sentei.models.weights import read_weights, stream_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DTYPES", "Loaded", "as_loaded", "context_length", "digest", "load"]

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
# What transformers raises for a config whose values do not fit together.
_CONFIG_ERRORS = (
    StrictDataclassError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass
class Loaded:
    """A model ready to use.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: None where the source has none.
        name: what to call it in reports.
        digest: its identity; see `sentei.models.identity`.
        revision: the commit on the Hub that it is from; empty for other sources.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str
    digest: str
    revision: str = ""


def load(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    streamed: bool = False,
    memory: int | None = None,
) -> Loaded:
    """Loads a dense or pruned model and its tokenizer.

    Args:
        source: built-in name ("smollm2-135m-instruct"), local directory, .gguf file, or Hugging Face id.
        dtype: that it is computed in: "auto" (what is fast on the device), "stored" (as the checkpoint is), "bfloat16",
            "float32" or "float16". `save` keeps the checkpoint's, whatever this is.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" or None: a CUDA GPU if there is one, else the CPU.
        trust_remote_code: run code from the model's directory, for architectures that sentei does not know.
            Models that sentei saved never need it here.
        streamed: blocks are read when they are wanted, one at a time, for models larger than memory.
        memory: bytes that the process may hold: the model is streamed, and whoever walks it keeps to them.

    Raises:
        InputError: no such model, unknown architecture, pickled weights, broken or missing files, wrong shapes, NaN,
            a dtype or device that does not exist, memory that does not hold what is outside the blocks.
    """
    streamed = streamed or memory is not None
    where = str(resolve_device(device))
    wanted = resolve_dtype(dtype, where)
    found = find(source, trust_remote_code=trust_remote_code)
    check_no_adapter(found.directory)
    values = read_json(found.directory / "config.json") if (found.directory / "config.json").exists() else None
    if not isinstance(values, dict):
        raise InputError(f"{found.directory} has no config.json; a model directory has one, with weights beside it")
    if values.get("quantization_config") or values.get("quantization"):
        raise InputError(f"{found.directory} holds quantised weights, which cannot be pruned; use the original model")
    model_type = str(values.get("model_type", ""))
    stored = str(values.get("dtype") or values.get("torch_dtype") or dtype_of(weight_files(found.directory)))
    kind = DTYPES.get(stored if wanted == "stored" else wanted)
    if kind is None:
        raise InputError(f"{found.directory}/config.json: dtype {stored!r}; --dtype stored knows {', '.join(DTYPES)}")
    if trust_remote_code and model_type.removeprefix("sentei_") not in FAMILIES:
        if streamed:
            raise InputError(f"{found.directory}: only architectures that sentei knows are read block by block")
        model = _load_remote(found.directory, kind, where)
    else:
        model = _load_known(found.directory, model_type, values, kind, where, streamed, memory)
    if not getattr(model.config, "sentei_source", None):
        model.config.sentei_source = found.origin  # stays with the pruned model, for its card
    model.config.sentei_dtype = stored  # what `save` stores
    tokenizer = _load_tokenizer(found.directory, model.config, trust_remote_code)
    bind(tokenizer, model.get_input_embeddings().weight.shape[0])
    return Loaded(model, tokenizer, found.name, stored_digest(found.directory, model.config, tokenizer), found.revision)


def as_loaded(model: PreTrainedModel | Loaded, tokenizer: Any = None, name: str | None = None) -> Loaded:
    """An in-memory model as `load` would give it; a `Loaded` is passed on, with what is given here replaced."""
    if isinstance(model, Loaded):
        found = replace(model, name=name or model.name)
        if tokenizer is not None and tokenizer is not model.tokenizer:
            bind(tokenizer, model.model.get_input_embeddings().weight.shape[0])
            found = replace(found, tokenizer=tokenizer, digest=with_tokenizer(model.digest, tokenizer))
        return found
    check_features(family_of(model.config), model.config)
    from sentei.families.separate import separate

    bind(tokenizer, model.get_input_embeddings().weight.shape[0])
    name = name or Path(model.name_or_path).name or "in-memory model"
    return Loaded(separate(model), tokenizer, name, digest(model, tokenizer))


def context_length(model: Any) -> int:
    """Tokens that a model was made to see; practically unbounded where its config does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def _load_known(
    directory: Path,
    model_type: str,
    values: dict[str, Any],
    kind: torch.dtype,
    device: str,
    streamed: bool,
    memory: int | None,
) -> PreTrainedModel:
    """With our own reader: one pass, every tensor checked, nothing initialised in vain."""
    import transformers

    from sentei.families.separate import separate
    from sentei.families.surgery import on_meta, ready

    family = family_of(model_type)
    stored = stored_tensors(weight_files(directory))
    where = directory / "config.json"
    check_depth(stored, values.get("num_hidden_layers"), values.get("per_layer_config"), where)
    class_of = family.stock_class if model_type == family.name else family.pruned_class
    try:
        config = class_of("Config").from_pretrained(directory)
        check_depth(stored, config.num_hidden_layers, values.get("per_layer_config"), where)  # if it was left out
        check_features(family, config)
        family.shape(config)
        config._name_or_path = str(directory)
        model = on_meta(class_of("ForCausalLM"), config, kind)
    except _CONFIG_ERRORS as error:
        raise InputError(f"{directory}/config.json does not make a {model_type} model: {one_line(error)}") from error
    if family.ffn_part.experts:
        model = separate(model)  # as they are in the files
    tied = config.tie_word_embeddings
    if streamed:
        return_freed_memory()
        model = stream_weights(stored, model, family, tied=tied, dtype=kind, device=device, memory=memory)
    else:
        weights = read_weights(stored, model.state_dict(), family, tied=tied, dtype=kind, device=device)
        model.load_state_dict(weights, assign=True)
        model = separate(model)
    if (directory / "generation_config.json").exists():
        try:
            model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"{directory / 'generation_config.json'} cannot be used: {one_line(error)}") from error
    return ready(model, device)


def _load_remote(directory: Path, kind: torch.dtype, device: str) -> PreTrainedModel:
    """Any other causal language model, with the code that it brings."""
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=kind, use_safetensors=True, trust_remote_code=True
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise InputError(f"{directory} cannot be loaded: {one_line(error)}") from error
    return model.to(device).eval()


def _load_tokenizer(directory: Path, config: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, config=config, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{directory} has a tokenizer that cannot be loaded: {one_line(error)}") from error
