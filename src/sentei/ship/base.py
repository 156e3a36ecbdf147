"""`Route`: how a model reaches engines that are not ours. One file per route, one line in `ROUTES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.errors import InputError, nearest, unknown

if TYPE_CHECKING:
    from sentei.families.base import Family
    from sentei.models.load import Loaded

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # names of exported dtypes, and torch's


@dataclass(frozen=True)
class Options:
    """What the user asks of an export.

    Attributes:
        dtype: "auto" (that of the loaded model, see `dtype_of`) or one of the route's `dtypes`.
        values: what only one route knows, by name; see `Route.options`.
    """

    dtype: str = "auto"
    values: Mapping[str, str] = field(default_factory=dict)

    def dtype_of(self, model: Any) -> str:
        """The dtype to write: what was asked for, or that of the model's weights ("F32", "F16", "BF16")."""
        names = {torch_name: name for name, torch_name in FLOATS.items()}
        return names[str(model.dtype).removeprefix("torch.")] if self.dtype == "auto" else self.dtype

    def bytes_of(self, model: Any) -> int:
        """What the weights take on the disk, about: padding is not counted, and a quantised format as eight bits."""
        width = {"F32": 4, "F16": 2, "BF16": 2}.get(self.dtype_of(model), 1)
        return width * sum(int(p.numel()) for p in model.parameters())


def elsewhere(family: Family) -> str:
    """Which routes take any cut of a family."""
    if family.ffn_part.experts:
        return "use --to hf, or uniform where all blocks are alike"
    return "use --to hf, onnx or openvino"


@dataclass(frozen=True)
class Route:
    """One way out.

    Attributes:
        name: as in `sentei export --to`.
        line: what it writes, in a few words.
        engines: what reads it, the one that parity tries first in front. Names of `sentei.ship.engines.ENGINES`, or of
            engines that we cannot run (vllm, sglang, trtllm, ollama).
        ready: raises an InputError where what it writes with is not installed.
        refuse: why this model cannot go there and what can be done instead, in one sentence; None where it can.
        write: writes to the path that it gets (which does not exist where `suffix` is set, else an empty directory),
            and gives the facts for export.json. Known keys: "dtype" (of the weights in the file), "padding_bytes"
            (what legal sizes cost), "arch", "notes" (list of sentences for the user).
        suffix: ".gguf": a file; "": a directory.
        dtypes: what `Options.dtype` may be, besides "auto".
        options: names that `Options.values` may hold, and what each means.
        reach: for a model that the route holds, engines among `engines` that cannot read it all the same, and why.
        sizes: values of a budget's `target_engine` whose plans fit without padding; empty: all do.
        serve: per engine, the command that serves the export; `{path}` stands for it.
        holds: bytes per parameter that writing takes beside the model, which must be in memory; 0: it is written block
            by block, and may be streamed.
    """

    name: str
    line: str
    engines: tuple[str, ...]
    refuse: Callable[[Loaded], str | None]
    write: Callable[[Loaded, Path, Options], dict[str, Any]]
    suffix: str = ""
    ready: Callable[[Options], None] = lambda options: None
    dtypes: tuple[str, ...] = tuple(FLOATS)
    options: Mapping[str, str] = field(default_factory=dict)
    reach: Callable[[Loaded], Mapping[str, str]] = lambda loaded: {}
    sizes: tuple[str, ...] = ()
    serve: Mapping[str, str] = field(default_factory=dict)
    holds: float = 0.0

    def check(self, options: Options) -> None:
        """Refuses options that this route does not know, or that it cannot have here.

        Raises:
            InputError: an unknown dtype or option name, or something that is not installed.
        """
        if options.dtype not in ("auto", *self.dtypes):
            raise unknown(f"dtype for {self.name}", options.dtype, ("auto", *self.dtypes))
        for name in options.values:
            if name not in self.options:
                known = ", ".join(f"{key} ({line})" for key, line in self.options.items()) or "none"
                raise InputError(f"{self.name} has no option {name!r}{nearest(name, self.options)}; known: {known}")
        self.ready(options)


def worst_delta(record: Mapping[str, Any]) -> str:
    """The largest |Δ log p| in the record of a parity check, over prefill and decode, for people."""
    deltas = [record[part]["delta"] for part in ("prefill", "decode")]
    return "infinite" if None in deltas else f"{max(deltas):.1e}"
