"""The engines that can run on this machine: what parity asks, and what `bench` times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError, unknown
from sentei.registry import Registry
from sentei.ship import ROUTES

LogProbs = NDArray[np.float32]


@dataclass(frozen=True)
class Timing:
    """How long a generation took: seconds from the prompt to the first token, and in all."""

    first: float
    total: float


class Session(Protocol):
    """An export, open in an engine. Token ids in, so that tokenizers stay out of what is compared."""

    dtype: str
    """What it computes in: "F32", "F16", "BF16", "Q8_0", …; decides the tolerance of parity."""

    def log_probs(self, ids: list[int]) -> LogProbs:
        """Natural log-probabilities of the next token [T, V] after each prefix of `ids` (T tokens), by one prefill."""
        ...

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """The same for the prefixes longer than `start` (>= 1), [T - start, V]: equals `log_probs(ids)[start:]`.

        Prefills `ids[:start]`, then feeds ids[start], ids[start + 1], … one at a time with the cache.
        """
        ...

    def generate(self, ids: list[int], n: int) -> Timing:
        """Times greedy generation of exactly `n` (>= 1) tokens after the prompt `ids`; an end token does not stop."""
        ...

    def close(self) -> None:
        """Gives memory, ports and threads back."""
        ...


class Engine(Protocol):
    """A runtime that is a Python package."""

    name: str
    package: str
    """How to install it: what follows `pip install`."""

    def installed(self) -> bool:
        """Whether its package is here; quick, imports nothing."""
        ...

    def version(self) -> str:
        """Of the installed package."""
        ...

    def open(self, export: Path) -> Session:
        """Loads an export.

        Raises:
            InputError: the file or directory is not what this engine reads.
        """
        ...


ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "transformers": "sentei.ship.engines.transformers:ENGINE",
        "llama.cpp": "sentei.ship.engines.llama_cpp:ENGINE",
        "mlx": "sentei.ship.engines.mlx:ENGINE",
        "onnxruntime": "sentei.ship.engines.onnxruntime:ENGINE",
        "openvino": "sentei.ship.engines.openvino:ENGINE",
    },
)


def engine_for(facts: dict[str, Any], name: str | None = None) -> Engine:
    """The engine that reads an export: the named one, else the first that is installed.

    Raises:
        InputError: unknown, not one that reads this export, or not installed (with the command that installs it).
    """
    reads = [e for e in ROUTES[facts["route"]].engines if e in ENGINES and e not in facts["unreachable"]]
    if name is not None and name not in reads:
        raise unknown("engine for this export", name, reads)
    engines = [ENGINES[e] for e in ([name] if name else reads)]
    if not engines:
        reasons = "; ".join(f"{e} {why}" for e, why in facts["unreachable"].items())
        raise InputError(f"no engine that runs here reads this {facts['route']} export: {reasons or 'none is known'}")
    found = next((engine for engine in engines if engine.installed()), None)
    if found is None:
        raise InputError(
            f"{engines[0].name} is not installed, and it reads this export: pip install {engines[0].package}"
        )
    return found
