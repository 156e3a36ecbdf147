"""LLM-Sieve's genes (arXiv 2505.18350, differentiated pruning): one per matrix, with the published keep factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from sentei.algebra.lowrank import break_even
from sentei.plan import stored
from sentei.prune.menu import Entry, Menus
from sentei.prune.space import Gene, Genome, Space

KEPT = (0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05)  # after 1.0, the dense matrix
FINE = tuple(1 - step / 40 for step in range(1, 40))  # for the uniform bisection


class Matrices:
    """Every matrix keeps a share p of its parameters: rank `⌊p · HD / (H + D)⌋`. A coding for the library.

    Args:
        menus: of the model; only their whole parts are used.
        kept: shares of the levels after the dense one, falling; None: every rank of what is not protected.
    """

    def __init__(self, menus: Menus, kept: Sequence[float] | None = KEPT) -> None:
        self.menus = menus
        self.names: list[tuple[int, str]] = []  # position of the part, matrix
        self.ranks: list[list[int | None]] = []
        self.genes: list[Gene] = []
        for position, menu in enumerate(menus.parts):
            if kept is None and menus.problem.protects(menu.part, menu.block):
                continue
            for name, (out, into) in menus.matrices(menu.block, menu.part, 0).items():
                if name not in menus.rank_losses[menu.block][menu.part]:  # of experts
                    continue
                ranks: list[int | None] = [None]
                shares = (max(1, int(share * out * into / (out + into))) for share in kept or ())
                most = break_even(out, into, menus.storage)
                for rank in range(most, 0, -1) if kept is None else shares:
                    if rank <= most and rank != ranks[-1]:
                        ranks.append(rank)
                losses = menus.rank_loss(menu.block, menu.part, 0, name)
                costs = tuple(menus.unit * stored(out, into, rank, menus.storage) for rank in ranks)
                lost = tuple(0.0 if rank is None else float(losses[rank]) for rank in ranks)
                self.names.append((position, name))
                self.ranks.append(ranks)
                self.genes.append(Gene(f"{menu.block}.{name}", costs, lost))

    @cached_property
    def space(self) -> Space:
        """All genomes; what is no matrix (norms, biases, embeddings where they count) is fixed."""
        dense = self.menus.cost([menu.entries[0] for menu in self.menus.parts])
        return Space(tuple(self.genes), dense - sum(gene.costs[0] for gene in self.genes))

    def entries(self, genome: Genome) -> list[Entry]:
        """One entry per part."""
        chosen: list[dict[str, int]] = [{} for _ in self.menus.parts]
        for (position, name), ranks, level in zip(self.names, self.ranks, genome, strict=True):
            if (rank := ranks[level]) is not None:
                chosen[position][name] = rank
        return [self.menus.entry(position, 0, ranks) for position, ranks in enumerate(chosen)]
