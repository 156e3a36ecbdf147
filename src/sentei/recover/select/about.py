"""selection.json and manifest.jsonl as types: what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import NotRequired, TypedDict  # pydantic wants this one before Python 3.12

from sentei.data.rows import read_jsonl
from sentei.errors import InputError
from sentei.files import read_json
from sentei.schema import EXACT, Count, Number, Positive, Seed, parse

SCHEMA = 1
SUMMARY = "summary.json"  # what a page about the selection shows


class Exact(TypedDict):
    """Types as they are written; more keys may be there."""

    __pydantic_config__ = EXACT  # type: ignore[misc]


class Source(Exact):
    """The pool."""

    source: str
    format: str
    rows: Count


class Amount(Exact):
    """What was asked for and given."""

    asked: str
    unit: str
    selected: Count
    tokens: Count


class Models(Exact):
    """Names of the models."""

    dense: str
    pruned: str


class Scoring(Exact):
    """How rows were read."""

    length: Positive


class Gap(Exact):
    """Between two eigenvalues."""

    ratio: Number
    clusters: Count


class Rule(Exact):
    """Why there are so many clusters."""

    clusters: Count
    reason: str
    largest_gap: Gap


class Clusters(Exact):
    """Names of the clusters, and why so many."""

    names: list[str]
    typical: NotRequired[list[str]]
    rule: Rule


class Choice(Exact):
    """What a person chose: arguments of `select.choose`, so that no other key may be there."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    seed: Seed
    temperature: NotRequired[Number]
    weights: NotRequired[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Number] | None]
    minimum: NotRequired[Count]
    ids: NotRequired[list[str]]


class About(Exact):
    """selection.json."""

    schema_version: Literal[1]
    strategy: str
    budget: Amount
    pool: Source
    models: Models
    scoring: Scoring
    filters: list[str]
    languages: NotRequired[list[str]]
    idle: NotRequired[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], str]]
    notes: list[str]
    clusters: Clusters
    choice: Choice
    chosen: list[Count]


class Row(Exact):
    """One line of manifest.jsonl."""

    cluster: Count
    jsd: Number | None
    tokens: Count
    decision: Literal["selected", "rejected", "left out"]


def read_about(directory: Path) -> dict[str, Any]:
    """selection.json.

    Raises:
        InputError: there is none, or of another version, or a key is missing or of another type.
    """
    path = directory / "selection.json"
    if not path.exists():
        raise InputError(f"{directory} holds no selection (selection.json is missing); `sentei select` makes one")
    value = read_json(path)
    if isinstance(value, dict) and value.get("schema_version", SCHEMA) != SCHEMA:
        raise InputError(
            f"{path} has schema_version {value['schema_version']!r:.80}, expected {SCHEMA}; "
            "select again with this version of sentei"
        )
    about: dict[str, Any] = dict(parse(About, value, str(path), "select again"))
    clusters = about["clusters"]
    if len(clusters.get("typical", clusters["names"])) != len(clusters["names"]):
        raise InputError(f"{path}: clusters: expected one typical row for each name; select again")
    if wrong := [row for row in about["chosen"] if row >= about["pool"]["rows"]]:
        raise InputError(f"{path}: chosen: row {wrong[0]} of a pool of {about['pool']['rows']:,}; select again")
    return about


def read_manifest(directory: Path) -> list[dict[str, Any]]:
    """manifest.jsonl, one row for every row of the pool.

    Raises:
        InputError: unreadable, or a line with a key that is missing or of another type.
    """
    path = directory / "manifest.jsonl"
    return [dict(parse(Row, row, f"{path}:{number}", "select again")) for number, row in read_jsonl(path)]
