"""Menus: what a part of a block may become, with its price and its predicted loss, over *all* kinds of removal.

An entry of a menu thins a part (KV groups, query heads, FFN channels), stores some of its matrices as products of lower
rank, or both. For a price λ of one parameter each matrix picks the rank with the least `loss + λ · parameters`, so a
menu holds what no other entry beats in price and loss at once. Losses are nats: OBS in the Fisher metric for thinning,
½ Σ λᵢ uᵢᵀ G uᵢ for ranks (`sentei.algebra.lowrank`); the losses of both are added, and a thinned matrix's rank losses
are scaled by the share of it that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sentei.algebra.lowrank import break_even
from sentei.errors import InputError
from sentei.measure.profile import Profile
from sentei.plan import BlockShape, Storage, stored
from sentei.prune.allocation.problem import Choice, Problem
from sentei.prune.methods import KINDS, LOW_RANK, STRUCTURAL
from sentei.prune.space import Gene, Genome, Space

LEVELS = 24  # entries of a menu
PRICES = np.geomspace(1e-12, 1e-2, 64)  # nats per parameter: from all but free to dearer than any component
FFN_STEPS = 32  # channel counts of a menu; the rest of a budget is filled channel by channel


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
        profile: whose rank losses are read.
        kinds: "structural", "low-rank", or both.
        storage: of low-rank matrices.
        levels: entries of a menu at most.
        times: prices entries by what they take on this machine, instead of the budget's unit.

    Raises:
        InputError: ranks are wanted and the target engine holds no low-rank matrices.
    """

    def __init__(
        self,
        problem: Problem,
        profile: Profile,
        kinds: Sequence[str] = KINDS,
        storage: Storage = "factors",
        levels: int = LEVELS,
        times: Times | None = None,
    ) -> None:
        self.problem, self.kinds, self.storage, self.times = problem, tuple(kinds), storage, times
        self.fixed = problem.fixed if times is None else times.around
        units = {"params": 1, "flops": 2, "bytes": problem.dense.itemsize}
        self.unit = units[problem.budget.metric]  # what a parameter costs
        self.rank_losses = [
            {"attention": b.attention.ranks if b.attention else {}, "ffn": b.ffn.ranks if b.ffn else {}}
            for b in profile.blocks
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
        return self.problem.dense.matrices(self.size(block, part, at))

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

    def _menu(self, block: int, part: str, levels: int) -> tuple[Entry, ...]:
        found = [entry for at in self._thinned(block, part) for entry in self._ranked(block, part, at)]
        return _thin(_front(found), levels)

    def _thinned(self, block: int, part: str) -> list[int]:
        """Attention options, or counts of removed channels, that the kinds and the engine allow."""
        problem = self.problem
        if STRUCTURAL not in self.kinds:
            return [0]
        if part == "attention":
            return [int(i) for i in np.flatnonzero(problem.attention_legal[block])]
        full = problem.dense.blocks[block].ffn
        legal = np.flatnonzero(problem.ffn_legal[block])
        wanted = np.linspace(0, full, FFN_STEPS + 1)
        return sorted({int(legal[np.abs(legal - count).argmin()]) for count in wanted})

    def _ranked(self, block: int, part: str, at: int) -> Iterator[Entry]:
        curves = self.problem.curves[block]
        base = curves.attention[at].loss if part == "attention" else curves.ffn_loss[at]
        yield Entry(at, (), self.price(block, part, at, {}), base)
        sizes = self.matrices(block, part, at)
        if LOW_RANK not in self.kinds or not sizes or self.problem.protects(part, block):
            return
        best: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for name, (out, into) in sizes.items():
            ranks = np.arange(1, break_even(out, into, self.storage) + 1)
            if not len(ranks):  # a matrix so small that no product of it is smaller
                continue
            prices = np.array([stored(out, into, int(rank), self.storage) for rank in ranks])
            losses = self.rank_loss(block, part, at, name)[ranks]
            totals = losses + PRICES[:, None] * prices
            picked = totals.argmin(1)
            low = totals[np.arange(len(PRICES)), picked] < PRICES * out * into  # else the dense matrix is better
            best[name] = np.where(low, ranks[picked], 0), np.where(low, losses[picked], 0.0)
        for step in range(len(PRICES)):
            chosen = {name: int(ranks[step]) for name, (ranks, _) in best.items() if ranks[step]}
            if chosen:
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

    def fill(self, entries: Sequence[Entry]) -> list[Entry]:
        """Gives back, one unit at a time and the most useful first, what still fits under the target.

        A unit is an FFN channel or a component of one matrix.
        """
        kept = list(entries)
        slack = self.problem.target - self.cost(kept)
        steps = [self._steps(i, entry) for i, entry in enumerate(kept)]
        while True:
            fitting = [
                (gain / cost, i, new) for i, found in enumerate(steps) for gain, cost, new in found if cost <= slack
            ]
            if not fitting:
                return kept
            _, i, new = max(fitting, key=lambda step: (step[0], -step[1]))
            slack -= new.cost - kept[i].cost
            kept[i] = new
            steps[i] = self._steps(i, new)

    def _steps(self, position: int, entry: Entry) -> list[tuple[float, int, Entry]]:
        """Every way to give one unit back to a part: loss that is won, cost, and the entry then."""
        menu = self.parts[position]
        block, part, ranks = menu.block, menu.part, dict(entry.ranks)
        found = []
        if part == "ffn" and entry.at and self.matrices(block, part, entry.at):
            legal = np.flatnonzero(self.problem.ffn_legal[block][: entry.at])
            if len(legal):
                at, curve = int(legal[-1]), self.problem.curves[block].ffn_loss
                found.append(self._step(entry, menu, at, ranks, curve[entry.at] - curve[at]))
        for name, rank in ranks.items():
            out, into = self.matrices(block, part, entry.at)[name]
            if rank < break_even(out, into, self.storage):
                losses = self.rank_loss(block, part, entry.at, name)
                found.append(
                    self._step(entry, menu, entry.at, ranks | {name: rank + 1}, losses[rank] - losses[rank + 1])
                )
        return found

    def _step(self, entry: Entry, menu: Menu, at: int, ranks: dict[str, int], gain: float) -> tuple[float, int, Entry]:
        cost = self.price(menu.block, menu.part, at, ranks)
        return max(gain, 0.0), cost - entry.cost, Entry(at, tuple(ranks.items()), cost, entry.loss - gain)

    def choices(self, entries: Sequence[Entry]) -> tuple[list[Choice], list[dict[str, int]]]:
        """Per block, its choice and its ranks."""
        pairs = list(zip(entries[::2], entries[1::2], strict=True))
        return [Choice(a.at, f.at) for a, f in pairs], [dict(a.ranks) | dict(f.ranks) for a, f in pairs]


def uniform(menus: Menus, share: float) -> list[Entry]:
    """LLM-Sieve's uniform level (section 4): every matrix keeps rank `⌊share · HD / (H + D)⌋`, at least 1."""
    kept = []
    for position, menu in enumerate(menus.parts):
        ranks = {}
        protected = menus.problem.protects(menu.part, menu.block)
        for name, (out, into) in ({} if protected else menus.matrices(menu.block, menu.part, 0)).items():
            rank = max(1, int(share * out * into / (out + into)))
            if rank <= break_even(out, into, menus.storage):
                ranks[name] = rank
        kept.append(menus.entry(position, 0, ranks))
    return kept


def _check(problem: Problem) -> None:
    if not problem.budget.limits.low_rank:
        raise InputError(
            f"engine {problem.budget.target_engine!r} holds no low-rank matrices; use a structural method "
            "(`--method auto`), or target transformers, onnx or openvino"
        )


def _front(entries: list[Entry]) -> list[Entry]:
    """Entries that no other beats in cost and loss at once, the dearest first; the dense one is always there."""
    dense = entries[0]
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.cost, e.loss)):
        if not kept or entry.loss < kept[-1].loss:
            kept.append(entry)
    kept = [entry for entry in kept if entry.cost < dense.cost]
    return [dense, *reversed(kept)]


def _thin(entries: list[Entry], levels: int) -> tuple[Entry, ...]:
    """At most `levels` entries, evenly spread over the cost, with the first and the last."""
    if len(entries) <= levels:
        return tuple(entries)
    wanted = np.linspace(entries[0].cost, entries[-1].cost, levels)
    costs = np.array([entry.cost for entry in entries])
    kept = sorted({int(np.abs(costs - cost).argmin()) for cost in wanted} | {0, len(entries) - 1})
    return tuple(entries[i] for i in kept)
