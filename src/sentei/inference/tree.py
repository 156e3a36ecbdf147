"""Continuations of one context, joined where they begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """The beginnings of some continuations, without their last tokens: those are predicted, never read.

    Attributes:
        tokens: of each node.
        parents: node before each node; -1 is the context.
        paths: per continuation, the node that predicts each of its tokens.
    """

    tokens: list[int]
    parents: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, targets: Sequence[Sequence[int]]) -> Tree:
        """Joins what continuations have in common."""
        tree = cls([], [], [])
        children: dict[tuple[int, int], int] = {}
        for target in targets:
            at, path = -1, [-1]
            for token in target[:-1]:
                if (at, token) not in children:
                    children[at, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(at)
                at = children[at, token]
                path.append(at)
            tree.paths.append(path)
        return tree

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain, which is what every causal model sees anyway."""
        return self.parents != list(range(-1, len(self.parents) - 1))

    @cached_property
    def depths(self) -> list[int]:
        """How many nodes come before each node on its path."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    @cached_property
    def seen(self) -> Tensor:
        """Which nodes each node sees: those on its path and itself, bool [nodes, nodes]."""
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen
