"""Rank and sparse entries of every linear from its gradient, by marginal gain per parameter.

A step against the gradient G of a linear gains, to first order and per unit of squared step, the squared length of what
the trained parameters can express of G. Both kinds of parameter then have a price in the same unit:

    rank component i:   σ_i(M)² / (out + in)      singular values, largest first
    sparse entry ij:    (M − M_r)_ij²             on what the r chosen components leave (as in robust PCA)

with M = G, or another matrix that a criterion makes of it (`matrix`). All are taken in the order of their gain, over
all modules together, until the budget is spent.

Neither kind wins everywhere. For independent entries the largest beat the first component by far; real gradients have
few strong directions (tokens that share a feature) beside single outliers, and there most of a small budget goes to
components. Two things are left out. A component trains `out + in` numbers for one direction; under Adam, which moves
every number alike, it gains `s‖a‖·‖M v‖₁` where entries gain `‖M‖₁`, and is worth about 0.4 of the above for evenly
spread singular vectors, a square matrix and the scale and start that `tune` uses: `rank_worth` says how much. And
gradients of different modules are comparable only as far as their curvature is alike, for which "fisher" corrects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sentei.errors import InputError, unknown
from sentei.recover.tune.impact import Impact

CRITERIA = ("gradient", "fisher", "snip")
_OVERSAMPLE = 8  # columns of the randomised SVD beyond those that are used (Halko et al., arXiv 0909.4061)


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Share:
    """What one linear gets.

    Attributes:
        rank: of its low-rank part.
        indices: [k] int64, ascending: where its sparse entries are in the flattened weight.
        basis: [rank, in], orthonormal rows to start A from, or None for a random start.
    """

    rank: int
    indices: Tensor = field(default_factory=_none)
    basis: Tensor | None = None


def matrix(impact: Impact, name: str, criterion: str) -> Tensor:
    """The matrix M, [out, in] fp32, whose squares are gains.

    "gradient": G, the gain of plain gradient descent. "fisher": G / √(F + ε), with F the mean square over batches and
    ε its mean: gradients in units of their own spread, as Adam's steps are. "snip": W ∘ G, the gain per relative change
    of a weight (SNIP, arXiv 1810.02340).

    Raises:
        InputError: unknown criterion, or "fisher" without mean squares.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    gradient = impact.gradient[name]
    if criterion == "snip":
        return gradient * impact.weight[name].float()
    if criterion == "fisher":
        if name not in impact.fisher:
            raise InputError("criterion 'fisher' needs mean squares; measure the impact with fisher=True")
        square = impact.fisher[name]
        return gradient / (square + square.mean()).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return gradient


class _Module:
    """One linear while the budget is shared out."""

    def __init__(self, M: Tensor, most: int, seed: int, worth: float) -> None:
        out, n = M.shape
        self.M, self.price = M, out + n
        most = min(most, out * n // self.price, out, n)
        if most + _OVERSAMPLE >= min(out, n) // 2:
            U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                U, S, V = torch.svd_lowrank(M, q=most + _OVERSAMPLE, niter=4)
                Vh = V.T
        self.US, self.Vh = (U * S)[:, :most], Vh[:most]
        self.gains = worth * S[:most].double().square() / self.price

    def rank(self, worth: float) -> int:
        """Components that gain at least `worth` per parameter."""
        return int((self.gains >= worth).sum())

    def residual(self, rank: int) -> Tensor:
        """|M − M_r|, [out · in]."""
        left = torch.addmm(self.M, self.US[:, :rank], self.Vh[:rank], alpha=-1) if rank else self.M
        return left.abs().flatten()

    def above(self, rank: int, worth: float) -> int:
        """Entries that gain more than `worth` beside so many components; at 0, all that have a gradient."""
        return int((self.residual(rank) > worth**0.5).sum()) if worth else int(self.M.count_nonzero())


def allocate(
    impact: Impact,
    budget: int,
    *,
    criterion: str = "gradient",
    rank_worth: float = 1.0,
    max_rank: int | None = None,
    seed: int = 0,
) -> dict[str, Share]:
    """Spends exactly `budget` parameters where they gain most.

    Components are bought in the order of their gain, as long as they fit together with all entries that gain more than
    the last of them. What is left then goes to the best entries.

    Args:
        impact: the gradients.
        budget: trainable parameters, `Σ rank · (out + in) + entries`.
        criterion: one of `CRITERIA`.
        rank_worth: what a component's gain is multiplied by before it is compared with that of entries; 0 buys none.
        max_rank: components looked at per linear; default: eight times the rank that the budget would buy everywhere,
            but at least 16.
        seed: of the randomised SVD of large matrices.

    Returns:
        Shares by name, for the linears that get anything.

    Raises:
        InputError: a budget below 1, or above the number of parameters that gain anything.
    """
    if budget < 1:
        raise InputError(f"a budget of {budget} parameters trains nothing; expected at least 1")
    names = [name for name, found in impact.gradient.items() if found.any()]
    if not rank_worth:
        max_rank = 0
    if max_rank is None:
        max_rank = max(16, 8 * budget // max(1, sum(sum(impact.gradient[name].shape) for name in names)))
    modules = [_Module(matrix(impact, name, criterion), max_rank, seed, rank_worth) for name in names]
    most = sum(int(m.M.count_nonzero()) for m in modules)
    if budget > most:
        raise InputError(
            f"a budget of {budget:,} parameters, but only {most:,} weights have a gradient; "
            "lower --budget-params, or give more data to the impact pass"
        )
    ranks, worth = _ranks(modules, budget)
    left = budget - sum(r * m.price for r, m in zip(ranks, modules, strict=True))
    chosen = _best_entries(modules, ranks, left, worth)
    shares = {}
    for name, module, rank, indices in zip(names, modules, ranks, chosen, strict=True):
        if rank or len(indices):
            shares[name] = Share(rank, indices, module.Vh[:rank].clone() if rank else None)
    return shares


def _ranks(modules: list[_Module], budget: int) -> tuple[list[int], float]:
    """What is bought of the components, and the gain per parameter of the last of them."""
    order = torch.cat([m.gains for m in modules]).sort(descending=True).values.tolist()
    fits, too_many = -1, len(order)  # by bisection over the components: positions in that order
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        ranks = [m.rank(order[middle]) for m in modules]
        entries = sum(m.above(r, order[middle]) for m, r in zip(modules, ranks, strict=True))
        if entries + sum(r * m.price for r, m in zip(ranks, modules, strict=True)) <= budget:
            fits = middle
        else:
            too_many = middle
    if fits < 0:
        return [0] * len(modules), order[0] if order else 1.0
    return [m.rank(order[fits]) for m in modules], order[fits]


def _best_entries(modules: list[_Module], ranks: list[int], count: int, guess: float) -> list[Tensor]:
    """Ascending positions [k_m] of the `count` entries of largest gain over all modules; of equal ones, the first.

    Residuals are made again at every look (cheap beside holding all), until a gain is found that few more than `count`
    entries exceed; only those are sorted. The search starts from `guess`.
    """
    low, high, middle, stride = 0.0, float("inf"), guess, 1.25
    for _ in range(64):
        above = sum(m.above(r, middle) for m, r in zip(modules, ranks, strict=True))
        low, high = (middle, high) if above >= count else (low, middle)
        if count <= above <= count + count // 8 + 1024 or high <= low * (1 + 1e-6) or middle < 1e-37:
            break
        if low and high < float("inf"):
            middle = (low * high) ** 0.5
        else:
            middle, stride = (middle * stride if low else middle / stride), stride**2
    found, places, owners = [], [], []
    for owner, (module, rank) in enumerate(zip(modules, ranks, strict=True)):
        left = module.residual(rank)
        chosen = left > low**0.5 if low else module.M.flatten() != 0
        where = chosen.nonzero()[:, 0]
        found.append(left[where])
        places.append(where)
        owners.append(torch.full_like(where, owner))
    order = torch.cat(found).sort(descending=True, stable=True).indices[:count]
    place, owner_of = torch.cat(places)[order], torch.cat(owners)[order]
    return [place[owner_of == owner].sort().values for owner in range(len(modules))]
