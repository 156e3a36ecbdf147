"""Menus: what a part of a block may become, with its price and its predicted loss, over *all* kinds of removal.

An entry of a menu thins a part (KV groups, query heads, FFN channels), stores some of its matrices as products of lower
rank, or both. For a price λ of one parameter each matrix picks the rank with the least `loss + λ · parameters`, so a
menu holds what no other entry beats in price and loss at once. Losses are nats: OBS in the Fisher metric for thinning,
½ Σ λᵢ uᵢᵀ G uᵢ for ranks (`sentei.algebra.lowrank`); the losses of both are added, and a thinned matrix's rank losses
are scaled by the share of it that stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import neg

import numpy as np
from numpy.typing import NDArray

from sentei.algebra.lowrank import break_even
from sentei.errors import InputError
from sentei.measure.profile import Profile
from sentei.plan import BlockShape, Storage, stored
from sentei.prune.allocation.problem import Choice, Problem
from sentei.prune.methods import LOW_RANK, STRUCTURAL
from sentei.prune.space import Gene, Genome, Space

LEVELS = 24  # entries of a menu
PRICES = np.geomspace(1e-12, 1e-2, 64)  # nats per parameter: from all but free to dearer than any component
FINE_PRICES = np.geomspace(1e-12, 1e-2, 1024)  # of the ranks of whole parts, where a menu has any number of entries
FFN_STEPS = 32  # channel counts of a menu that is short, or whose matrices have ranks


@dataclass(frozen=True)
class Times:
    """Prices in nanoseconds: `part` of a block that has one part only, `around`: of all that is in no block."""

    part: Callable[[BlockShape], int]
    around: int


@dataclass(frozen=True)
class Entry:
    """One thing that a part may become. `at`: the attention option, or how many channels go."""

    at: int
    ranks: tuple[tuple[str, int], ...]
    cost: int
    loss: float


@dataclass(frozen=True)
class Menu:
    """The entries of one part of one block, the dense one first, each cheaper and lossier than the one before it."""

    block: int
    part: str
    entries: tuple[Entry, ...]


class Menus:
    """All menus of a problem.

    Args:
        problem: curves (with losses in nats), prices and legal sizes.
        profile: whose rank losses are read, where there are ranks.
        kinds: "structural", "low-rank", or both.
        storage: of low-rank matrices.
        levels: entries of a menu at most; None: every count of channels, and many more ranks.
        times: prices entries by what they take on this machine, instead of the budget's unit.

    Raises:
        InputError: ranks are wanted and the target engine holds no low-rank matrices.
    """

    def __init__(
        self,
        problem: Problem,
        profile: Profile | None = None,
        kinds: Sequence[str] = (STRUCTURAL,),
        storage: Storage = "factors",
        levels: int | None = None,
        times: Times | None = None,
    ) -> None:
        self.problem, self.kinds, self.storage, self.times = problem, tuple(kinds), storage, times
        self._matrices: dict[tuple[int, str, int], dict[str, tuple[int, int]]] = {}
        self.fixed = problem.fixed if times is None else times.around
        units = {"params": 1, "flops": 2, "bytes": problem.dense.itemsize}
        self.unit = units[problem.budget.metric]  # what a parameter costs
        self.rank_losses = [
            {"attention": b.attention.ranks if b.attention else {}, "ffn": b.ffn.ranks if b.ffn else {}}
            for b in (profile.blocks if profile else ())
        ]
        if LOW_RANK in kinds:
            _check(problem)
        self.parts = [
            Menu(i, part, self._menu(i, part, levels))
            for i in range(len(problem.dense.blocks))
            for part in ("attention", "ffn")
        ]

    def size(self, block: int, part: str, at: int) -> BlockShape:
        """The thinned part alone, its matrices dense."""
        full, curves = self.problem.dense.blocks[block], self.problem.curves[block]
        if part == "ffn":
            return full.model_copy(update={"kv_groups": 0, "heads_per_group": 0, "ffn": full.ffn - at})
        option = curves.attention[at]
        kept = {"kv_groups": len(option.kv_groups), "heads_per_group": option.heads_per_group, "ffn": 0}
        return full.model_copy(update=kept)

    def matrices(self, block: int, part: str, at: int) -> dict[str, tuple[int, int]]:
        """Sizes of the thinned part's matrices."""
        key = (block, part, at)
        if key not in self._matrices:
            self._matrices[key] = self.problem.dense.matrices(self.size(block, part, at))
        return self._matrices[key]

    def rank_loss(self, block: int, part: str, at: int, name: str) -> NDArray[np.float64]:
        """Predicted nats when the matrix keeps rank 0 … K, K being the full rank of the thinned matrix."""
        out, into = self.matrices(block, part, at)[name]
        full = self.matrices(block, part, 0)[name]
        losses = self.rank_losses[block][part][name].double().numpy()
        left = np.asarray(losses[: min(out, into) + 1]) * (out * into) / (full[0] * full[1])
        left[-1] = 0.0  # at full rank nothing is lost
        return left

    def price(self, block: int, part: str, at: int, ranks: dict[str, int]) -> int:
        """Cost of the part in the budget's unit, or in nanoseconds."""
        if self.times is not None:
            return self.times.part(self.size(block, part, at).model_copy(update={"ranks": ranks}))
        costs = self.problem.attention_costs if part == "attention" else self.problem.ffn_costs
        if not ranks:
            return int(costs[block][at])
        sizes = self.matrices(block, part, at)
        saved = sum(
            stored(*sizes[name], None) - stored(*sizes[name], rank, self.storage) for name, rank in ranks.items()
        )
        return int(costs[block][at]) - self.unit * saved

    def entry(self, position: int, at: int, ranks: dict[str, int]) -> Entry:
        """Any entry of a part, whether its menu has it or not."""
        menu = self.parts[position]
        curves = self.problem.curves[menu.block]
        loss = curves.attention[at].loss if menu.part == "attention" else curves.ffn_loss[at]
        loss += sum(float(self.rank_loss(menu.block, menu.part, at, n)[rank]) for n, rank in ranks.items())
        return Entry(at, tuple(ranks.items()), self.price(menu.block, menu.part, at, ranks), loss)

    def _menu(self, block: int, part: str, levels: int | None) -> tuple[Entry, ...]:
        curves, problem = self.problem.curves[block], self.problem
        legal = np.flatnonzero((problem.attention_legal if part == "attention" else problem.ffn_legal)[block])
        thinned = legal.tolist() if STRUCTURAL in self.kinds else [0]
        ranked = thinned if part == "attention" else _spread(thinned, problem.dense.blocks[block].ffn)
        losses = [option.loss for option in curves.attention] if part == "attention" else curves.ffn_loss
        found = [
            Entry(at, (), self.price(block, part, at, {}), losses[at]) for at in (thinned if levels is None else ranked)
        ]
        ranks = LOW_RANK in self.kinds and self.rank_losses[block][part]  # experts have none
        if ranks and not problem.protects(part, block):
            for at in ranked:
                prices = FINE_PRICES if levels is None and not at else PRICES
                found += self._ranked(block, part, at, losses[at], prices)
        return _front(found) if levels is None else _thin(_front(found), levels)

    def _ranked(self, block: int, part: str, at: int, base: float, worth: NDArray[np.float64]) -> Iterator[Entry]:
        sizes = self.matrices(block, part, at)
        best: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for name, (out, into) in sizes.items():
            ranks = np.arange(1, break_even(out, into, self.storage) + 1)
            if not len(ranks):  # a matrix so small that no product of it is smaller
                continue
            prices = np.array([stored(out, into, int(rank), self.storage) for rank in ranks])
            losses = self.rank_loss(block, part, at, name)[ranks]
            totals = losses + worth[:, None] * prices
            picked = totals.argmin(1)
            low = totals[np.arange(len(worth)), picked] < worth * out * into  # else the dense matrix is better
            best[name] = np.where(low, ranks[picked], 0), np.where(low, losses[picked], 0.0)
        before: dict[str, int] = {}
        for step in range(len(worth)):
            chosen = {name: int(ranks[step]) for name, (ranks, _) in best.items() if ranks[step]}
            if chosen and chosen != before:
                before = chosen
                loss = base + sum(float(losses[step]) for _, losses in best.values())
                yield Entry(at, tuple(chosen.items()), self.price(block, part, at, chosen), loss)

    @cached_property
    def space(self) -> Space:
        """One gene per part of every block; its levels are the entries of the part's menu."""
        genes = (
            Gene(f"{menu.block}.{menu.part}", tuple(e.cost for e in menu.entries), tuple(e.loss for e in menu.entries))
            for menu in self.parts
        )
        return Space(tuple(genes), self.fixed)

    def entries(self, genome: Genome) -> list[Entry]:
        """The entries that a genome picks."""
        return [menu.entries[level] for menu, level in zip(self.parts, genome, strict=True)]

    def cost(self, entries: Sequence[Entry]) -> int:
        """Cost of one entry per part, with all that no choice changes."""
        return self.fixed + sum(entry.cost for entry in entries)

    def solve(self) -> list[Entry]:
        """One entry per part with the least predicted loss for the problem's budget.

        Raises:
            InfeasibleError: the smallest entries of all parts cost more.
        """
        self.check_reachable()
        return self.entries(self.space.solve(self.problem.target))

    def check_reachable(self) -> None:
        """Raises InfeasibleError where even the smallest entries are too much, and says what is reachable."""
        self.problem.refuse_above(self.space.cost(self.space.smallest))

    def refilled(self, choices: Sequence[Choice]) -> list[Choice]:
        """Gives channels back, the most useful first, until not one more legal step fits under the target."""
        ffn, costs = self.space.genes[1::2], self.problem.ffn_costs
        kept = [int(costs[i][choice.removed]) for i, choice in enumerate(choices)]
        space = Space(ffn, self.problem.cost(choices) - sum(kept))
        levels = [bisect_left(gene.costs, -cost, key=neg) for gene, cost in zip(ffn, kept, strict=True)]
        filled = zip(choices, self.parts[1::2], space.fill(tuple(levels), self.problem.target), strict=True)
        return [Choice(choice.attention, menu.entries[level].at) for choice, menu, level in filled]

    def choices(self, entries: Sequence[Entry]) -> tuple[list[Choice], list[dict[str, int]]]:
        """Per block, its choice and its ranks."""
        pairs = list(zip(entries[::2], entries[1::2], strict=True))
        return [Choice(a.at, f.at) for a, f in pairs], [dict(a.ranks) | dict(f.ranks) for a, f in pairs]


def _check(problem: Problem) -> None:
    if not problem.budget.limits.low_rank:
        raise InputError(
            f"engine {problem.budget.target_engine!r} holds no low-rank matrices; use a structural method "
            "(`--method auto`), or target transformers, onnx or openvino"
        )


def _spread(counts: list[int], full: int) -> list[int]:
    """Of some counts those nearest to `FFN_STEPS` even ones."""
    known = np.array(counts)
    return sorted({int(known[np.abs(known - count).argmin()]) for count in np.linspace(0, full, FFN_STEPS + 1)})


def _front(entries: list[Entry]) -> tuple[Entry, ...]:
    """Entries that no other beats in cost and loss at once, the dearest first; the dense one is always there."""
    dense = entries[0]
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.cost, e.loss)):
        if not kept or entry.loss < kept[-1].loss:
            kept.append(entry)
    kept = [entry for entry in kept if entry.cost < dense.cost]
    return (dense, *reversed(kept))


def _thin(entries: tuple[Entry, ...], levels: int) -> tuple[Entry, ...]:
    """At most `levels` entries, evenly spread over the cost, with the first and the last."""
    if len(entries) <= levels:
        return entries
    wanted = np.linspace(entries[0].cost, entries[-1].cost, levels)
    costs = np.array([entry.cost for entry in entries])
    kept = sorted({int(np.abs(costs - cost).argmin()) for cost in wanted} | {0, len(entries) - 1})
    return tuple(entries[i] for i in kept)
