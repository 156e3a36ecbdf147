"""Made-up reports of a fit and of a frontier."""

from __future__ import annotations

from typing import Any

from report import example
from sentei.plan import Plan
from sentei.report.build import blocks


def low_rank_plan() -> Plan:
    """The plan of the example, with matrices of low rank in every other block."""
    plan = example.plan()
    for i in range(0, example.BLOCKS, 2):
        plan.blocks[i] = plan.blocks[i].model_copy(update={"ranks": {"q_proj": 64 + i, "up_proj": 200 - 10 * i}})
    return plan


def task(**changes: Any) -> dict[str, Any]:
    rows = {"calibrate": 500, "search": 300, "confirm": 300, "test": 250}
    about = {"name": "support", "metric": "acc", "higher": True, "data": "bitext.jsonl", "rows": rows, "chance": 0.04}
    return about | changes


def sizes(scale: float) -> dict[str, int]:
    dense = {"block_params": 106_202_880, "params": 134_515_008, "flops_per_token": 248_000_000, "bytes": 292_600_000}
    return {name: round(value * scale) for name, value in dense.items()}


def row(by: str, removed: float, value: float | None, n: float, rows: int = 300) -> dict[str, Any]:
    """One evaluation, as the ledger records it; the n-th."""
    met = None if rows < 300 else value is not None and value >= 0.611
    about = {"by": by, "genome": [0, 1], "cost": int(106e6 * (1 - removed)), "removed": removed, "rows": rows}
    return about | {"value": value, "loss": 0.4, "met": met, "evaluations": n}


def history() -> list[dict[str, Any]]:
    placed = [row("bisection", share, 0.64 - 0.3 * share**2, n) for n, share in enumerate((0.5, 0.25, 0.37, 0.31), 1)]
    placed += [row(f"generation {n // 4}", 0.3 + n / 60, 0.63 - 0.02 * (n % 4), 4 + n / 8, 38) for n in range(1, 9)]
    placed += [row("generation 2", 0.35, None, 6.0), row("generation 2", 0.8, 0.05, 7.0)]
    return placed + [row("bisection", 0.4 + n / 25, 0.63 - n / 100, n) for n in range(1, 5)]


def fit(**changes: Any) -> dict[str, Any]:
    """A report.json; `changes` are those of its part `fit`."""
    found = {
        "tolerance": 0.01,
        "strict": False,
        "search": "evolve",
        "searched_in_place": 0.613,
        "removed_in_place": 0.37,
        "dense": 0.62,
        "looks": 2,
        "verdict": "met",
        "searched": 0.62,
        "confirmed": 0.617,
        "interval": [-0.032, 0.021],
        "removed": 0.44,
        "rows_needed": 5400,
        "test": {"dense": 0.61, "pruned": 0.612, "interval": [-0.02, 0.025], "rows": 250, "met": True},
        "evaluations": 11.0,
        "cuts": 4.0,
        "stopped": "stagnation",
        "minutes": 9.82,
    }
    return {
        "schema_version": 1,
        "sentei": "0.1",
        "kind": "fit",
        "model": "tiny",
        "task": task(),
        "fit": found | changes,
        "sizes": {"dense": sizes(1.0), "pruned": sizes(0.56)},
        "history": history(),
        "blocks": blocks(low_rank_plan(), example.profile()),
        "seconds": {"set up": 61.0, "search in place": 240.0, "real cuts": 250.0, "confirm and test": 38.0},
    }


def missed(**changes: Any) -> dict[str, Any]:
    """A fit that found nothing: looks were tried, or not even that."""
    report = fit(
        **{
            "verdict": "missed",
            "confirmed": 0.593,
            "interval": [-0.08, -0.01],
            "rows_needed": None,
            "test": None,
            **changes,
        }
    )
    report["sizes"].pop("pruned")
    return report | {"blocks": []}


def frontier(points: int = 6, *, latency: bool = True) -> dict[str, Any]:
    def times(scale: float) -> dict[str, Any]:
        return {"latency": {"prefill_seconds": 1.1 * scale, "decode_seconds": 0.031 * scale}} if latency else {}

    made: list[dict[str, Any]] = [
        {"number": 0, "removed": 0.0, "value": 0.62, "change": 0.0, "interval": [0.0, 0.0], "sizes": sizes(1.0)}
        | times(1.0)
    ]
    for n in range(1, points):
        removed, change = n / 10, -0.0025 * n**2
        about = {"number": n, "plan": f"{n:064x}", "file": f"plans/{n:02d}.json", "removed": removed}
        about |= {"value": 0.62 * (1 + change), "change": change, "interval": [change - 0.03, change + 0.03]}
        about |= {"sizes": sizes(1 - removed), "blocks": blocks(low_rank_plan(), example.profile())}
        made.append(about | times(1 - 0.8 * removed))
    return {"schema_version": 1, "sentei": "0.1", "kind": "frontier", "model": "tiny", "task": task(), "points": made}
