"""What a search for a smaller model is asked: what size means, what may go, how candidates are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sentei.errors import unknown
from sentei.plan import Budget
from sentei.prove.latency_table import PHASES, Phase
from sentei.prune.methods import KINDS
from sentei.schema import parse

LENGTH = 512  # tokens of a calibration row at most
# tokens; on ARC easy, 35 % cut: 0, 12,000 and 36,000 gave 90.7, 95.8 and 100 % of the dense accuracy (500 rows)
HEAL = 24_000


@dataclass(frozen=True)
class Settings:
    """What size means, what may go, and how the calibration rows are used.

    Attributes:
        budget: its unit (`sparsity`: params, `flops`, `bytes`) and its engine are those of the search; its amount is
            not used.
        kinds: of removal: "structural", "low-rank".
        length: tokens of a calibration row at most.
        heal: tokens of the calibration rows that every cut model is trained on; 0: none.
        phase: "prefill" or "decode": size is the time that it takes on this machine, which is measured first.
    """

    budget: Budget = field(default_factory=lambda: Budget(sparsity=0.0))
    kinds: tuple[str, ...] = KINDS
    length: int = LENGTH
    heal: int = HEAL
    phase: Phase | None = None

    def key(self) -> list[Any]:
        """All that outcomes depend on, for a hash."""
        return [self.budget.model_dump(), list(self.kinds), self.length, self.heal, self.phase]


def search_budget(objective: str, target_engine: str) -> tuple[Budget, Phase | None]:
    """A budget without an amount: what size means, and which sizes are legal; and the phase where size is time.

    Raises:
        InputError: an unknown objective or engine.
    """
    amounts: dict[str, float] = {"params": 0.0, "flops": 1.0, "bytes": 1}
    phase = next((found for found in PHASES if found == objective), None)
    if objective not in amounts and phase is None:
        raise unknown("objective", objective, [*amounts, *PHASES])
    key = objective if objective in ("flops", "bytes") else "sparsity"
    budget: Budget = parse(Budget, {key: amounts.get(objective, 0.0), "target_engine": target_engine}, "budget")
    return budget, phase


def search_kinds(text: str, budget: Budget) -> tuple[str, ...]:
    """Kinds of removal from `a,b`; without one: all that the engine holds.

    Raises:
        InputError: an unknown kind, or one that the engine cannot hold.
    """
    if not text:
        return KINDS if budget.limits.low_rank else KINDS[:1]
    for kind in (kinds := tuple(part.strip() for part in text.split(","))):
        if kind not in KINDS:
            raise unknown("kind of removal", kind, KINDS)
    return kinds
