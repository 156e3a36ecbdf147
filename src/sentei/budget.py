"""How small: legal sizes of engines, and `Budget`. No torch here.

What people write for an amount is understood in one place: shares as 0.2 or 20%, counts as 80M, sizes as 200MB.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sentei.errors import InfeasibleError
from sentei.schema import LARGEST, Positive

if TYPE_CHECKING:
    from sentei.plan import ModelShape

EXPERT_MULTIPLE = 8  # channels of fused experts: the grouped products of stock classes want rows of 16 bytes
Metric = Literal["params", "flops", "bytes"]
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_SIZES = {"": 1, "b": 1, **{f"{letter}b": 1000**i for i, letter in enumerate("kmgt", 1)}}
_SIZES |= {letter: 1000**i for i, letter in enumerate("kmgt", 1)}
_SIZES |= {f"{letter}ib": 1024**i for i, letter in enumerate("kmgt", 1)}
_NUMBER = re.compile(r"([+-]?[\d_]*\.?\d+(?:e[+-]?\d+)?)\s*([a-z]*)", re.ASCII)


def as_share(value: Any) -> Any:
    """0.2, "0.2" or "20%" as 0.2.

    Raises:
        ValueError: a number from 1 to 100, which may have been meant as a percentage.
    """
    found = _share(value)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 1 <= found <= 100:
        raise ValueError(
            f"{value} is no share, which is less than 1; for {found:g} % say {found / 100:g} or {found:g}%"
        )
    return found


def as_flops(value: Any) -> Any:
    """A share up to 1 ("50%"), or a number ("100M").

    Raises:
        ValueError: a number between 1 and 100, which may have been meant as a percentage.
    """
    found = _share(value)
    if isinstance(found, str):
        return _amount(found, _COUNTS, "50% or 100M")
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 1 < found < 100:
        raise ValueError(f"{value} is no share up to 1; for {found:g} % say {found / 100:g} or {found:g}%")
    return found


def as_count(value: Any) -> Any:
    """100000, "100k", "80M" or "1.5B" as a whole number."""
    return _amount(value, _COUNTS, "100k, 80M or 1.5B") if isinstance(value, str) else value


def as_size(value: Any) -> Any:
    """Bytes: 200000000, "200MB" or "190MiB" as a whole number."""
    return _amount(value, _SIZES, "200MB or 190MiB") if isinstance(value, str) else value


def _share(value: Any) -> Any:
    """Numbers in text as numbers, percentages as shares; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return value


def _amount(text: str, units: dict[str, int], example: str) -> int:
    found = _NUMBER.fullmatch(text.strip().lower())
    if found is None or found[2] not in units:
        raise ValueError(f"{text[:40]!r} is no amount; write it as {example}")
    number = Decimal(found[1].replace("_", "")) * units[found[2]]
    if number > LARGEST:
        raise ValueError(f"{text[:40]!r} is more than any machine holds")
    return int(number)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """Legal sizes: what the target engine can hold.

    Attributes:
        ffn_multiple: FFN widths are multiples of this; the dense width is legal as it is.
        fixed_query_heads: one query-head count for the whole model: the attention of a block is whole or gone.
        uniform: the same sizes in every block.
        skip_parts: a whole attention or FFN part may go (but never the attention of block 0).
        qk_norm: norms on q and k (Qwen3) have a place in the engine's format.
        low_rank: a matrix may be stored as a product.
        experts: the engine's format, as far as sentei writes it, has mixtures of experts.
    """

    ffn_multiple: int = Field(default=1, ge=1)
    fixed_query_heads: bool = False
    uniform: bool = False
    skip_parts: bool = True
    qk_norm: bool = True
    low_rank: bool = False
    experts: bool = False

    def legal(self) -> Limits:
        """What of this decides which units may go: norms, ranks and experts do not."""
        return self.model_copy(update={"qk_norm": True, "low_rank": False, "experts": False})


# GGUF: K-quants want rows of 256; 32 (`ffn_multiple`) is enough for F16, BF16 and Q8_0. The others read nemotron-nas,
# which says an FFN width as a factor of the hidden size that engines round up to 256.
ENGINES: dict[str, Limits] = {
    "transformers": Limits(low_rank=True, experts=True),
    "onnx": Limits(low_rank=True),
    "openvino": Limits(low_rank=True),
    "gguf": Limits(ffn_multiple=256),
    "uniform": Limits(uniform=True, skip_parts=False, experts=True),
    **{
        name: Limits(ffn_multiple=256, fixed_query_heads=True, qk_norm=False)
        for name in ("vllm", "sglang", "trtllm", "mlx")
    },
}


# What an engine is called elsewhere, by its name here.
ALIASES = {
    "llama.cpp": "gguf",
    "llama-cpp": "gguf",
    "llamacpp": "gguf",
    "ollama": "gguf",
    "hf": "transformers",
    "huggingface": "transformers",
    "mlx-lm": "mlx",
    "tensorrt-llm": "trtllm",
    "onnxruntime": "onnx",
}


def as_engine(value: Any) -> Any:
    """The name of a target engine here: `llama.cpp` reads GGUF files, so that it is `gguf`."""
    key = value.strip().lower().replace("_", "-") if isinstance(value, str) else value
    return ALIASES.get(key, key) if isinstance(key, str) else value


class Budget(_Frozen):
    """How small the model shall be: exactly one of `sparsity`, `params`, `flops`, `bytes`.

    Attributes:
        sparsity: share of block params to remove; 0.2 or "20%".
        params: block params to keep at most; 80000000 or "80M".
        flops: share of the dense FLOPs per token (at `context`) to keep at most, or an absolute number; 0.5 or "50%".
        bytes: bytes of weights and KV cache (at `batch` and `context`, in the dtype that is stored) to keep at most;
            "200MB".
        target_engine: whose legal sizes hold; `llama.cpp` and other common names of the engines are understood.
        ffn_multiple: FFN widths are multiples of this; overrides the engine's.
    """

    sparsity: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, BeforeValidator(as_share)] = None
    params: Annotated[Positive | None, BeforeValidator(as_count)] = None
    flops: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(as_flops)] = None
    bytes: Annotated[Positive | None, BeforeValidator(as_size)] = None
    batch: Positive = 1
    context: Positive = 1024
    target_engine: Annotated[
        Literal["transformers", "gguf", "vllm", "sglang", "trtllm", "mlx", "onnx", "openvino", "uniform"],
        BeforeValidator(as_engine),
    ] = "transformers"
    ffn_multiple: Positive | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Budget:
        given = [name for name in ("sparsity", "params", "flops", "bytes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of sparsity, params, flops, bytes; got {given or 'none'}")
        return self

    @property
    def limits(self) -> Limits:
        """The legal sizes of this budget."""
        limits = ENGINES[self.target_engine]
        return limits if self.ffn_multiple is None else limits.model_copy(update={"ffn_multiple": self.ffn_multiple})

    @property
    def metric(self) -> Metric:
        """What is counted."""
        return "flops" if self.flops is not None else "bytes" if self.bytes is not None else "params"

    def cost(self, shape: ModelShape) -> int:
        """What a model of this shape costs, in the unit of `metric`."""
        if self.metric == "flops":
            return shape.flops(self.context)
        if self.metric == "bytes":
            return shape.bytes(self.batch, self.context)
        return shape.block_params()

    def target(self, dense: ModelShape) -> int:
        """The most that may be kept, in the unit of `metric`.

        Raises:
            InfeasibleError: the dense model is smaller already.
        """
        cost = self.cost(dense)
        if self.sparsity is not None:
            return round(cost * (1 - self.sparsity))
        if self.flops is not None:
            wanted = round(cost * self.flops) if self.flops <= 1 else round(self.flops)
        else:
            wanted = self.params if self.params is not None else self.bytes or 0
        if wanted > cost:
            raise InfeasibleError(
                f"the dense model has {cost:,} {self.metric}, fewer than the {wanted:,} asked for; ask for less"
            )
        return wanted

    def describe(self) -> str:
        """The budget in words."""
        if self.sparsity is not None:
            return f"remove {self.sparsity:.0%} of block params"
        if self.params is not None:
            return f"at most {self.params:,} block params"
        if self.flops is not None:
            size = f"{self.flops:.0%} of the dense FLOPs" if self.flops <= 1 else f"{self.flops:,.0f} FLOPs"
            return f"at most {size} per token at context {self.context}"
        return f"at most {self.bytes:,} bytes with the KV cache of batch {self.batch} at context {self.context}"
