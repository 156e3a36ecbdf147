"""What a plan never thins, whatever its score says. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sentei.budget import as_share
from sentei.errors import nearest

NOTHING = "none"


def _share(value: Any) -> Any:
    return as_share(value) if isinstance(value, str) and value.strip().endswith("%") else value


Amount = Annotated[Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_share)]


class Protect(BaseModel):
    """Blocks and attention parts that stay whole; in text `first:4,last:6%,attention:1`, or `none`.

    The attention of block 0 is never removed as a whole, protected or not: engines read the cache length from it.

    Attributes:
        first: so many blocks at the start, or a share of all blocks, rounded.
        last: the same at the end.
        attention: the attention of so many blocks at the start; `all`: of every block; `grouped`: of every block where
            query heads share their keys (GQA).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Amount = 0
    last: Amount = 0
    attention: Annotated[int, Field(ge=0)] | Literal["all", "grouped"] = 0

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found: dict[str, Any] = {}
        for part in value.split(",") if value.strip() != NOTHING else ():
            key, colon, amount = (piece.strip() for piece in part.partition(":"))
            if key not in cls.model_fields:
                wanted = f"first:N, last:N or attention:N{nearest(key, cls.model_fields)}"
                raise ValueError(f"{part.strip()!r}: expected {wanted}")
            if not colon or not amount:
                raise ValueError(f"{part.strip()!r}: expected {key}:N, for example {key}:1")
            found[key] = amount
        return found

    def holds(self, part: str, index: int, blocks: int, heads_per_group: int) -> bool:
        """Whether the "attention" or the "ffn" part of block `index` of so many `blocks` stays whole."""
        if index < _count(self.first, blocks) or index >= blocks - _count(self.last, blocks):
            return True
        if part != "attention":
            return False
        if isinstance(self.attention, int):
            return index < self.attention
        return self.attention == "all" or heads_per_group > 1

    def __str__(self) -> str:
        """As it is written on the command line."""
        given = {name: getattr(self, name) for name in ("first", "last", "attention")}
        shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in given.items()}
        return ",".join(f"{name}:{value}" for name, value in shown.items() if value) or NOTHING


def _count(amount: int | float, blocks: int) -> int:
    return amount if isinstance(amount, int) else round(amount * blocks)
