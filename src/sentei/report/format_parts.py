"""What the reports of runs, fits and frontiers share, as types."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import NotRequired, TypedDict  # pydantic wants this one before Python 3.12

from sentei.schema import EXACT, Count, Number

Maybe = Number | None
Sizes = Annotated[list[Count], Field(min_length=2, max_length=2)]
Ends = Annotated[list[Maybe], Field(min_length=2, max_length=2)]  # of an interval; one that has no end is None
Share = Annotated[float, Field(ge=0, le=1)]


class Exact(TypedDict):
    """Types as they are written; more keys may be there."""

    __pydantic_config__ = EXACT  # type: ignore[misc]


class Attention(Exact):
    """What a block keeps of its attention."""

    kept: Share
    kv_groups: Sizes
    query_heads: Sizes
    sensitivity: Maybe


class Ffn(Exact):
    """What a block keeps of its FFN."""

    kept: Share
    channels: Sizes
    sensitivity: Maybe


class BlockRow(Exact):
    """`build.blocks`."""

    block: Count
    attention: Attention
    ffn: Ffn
    ranks: NotRequired[dict[str, Count]]
    params: Sizes
    cosine: Maybe
    reason: str
