"""Log-likelihoods of many continuations of a context in one forward pass, for any causal language model.

A row of a batch holds a context and, after it, a tree of what its continuations begin with: a token sees the context
and the tokens on its own path, and its position goes on from the context's. So a context is read once for all choices,
what choices have in common is read once too, and logits are made only where a token is scored.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sentei.data.batches import fill
from sentei.data.pairs import shorten
from sentei.families import FAMILIES
from sentei.families.streamed import streamed_blocks
from sentei.inference.forward import final_hidden, score_targets
from sentei.inference.tree import Tree
from sentei.inference.walk import Reading, hidden_states

_WORTH_SHARING = 128  # tokens that sharing the contexts' beginning must save to be worth one more pass
_HEAD = 16  # contexts with so many first tokens in common, when they are so many, are batched together

Request = tuple[Sequence[int], Sequence[int]]  # tokens of a context, and of a continuation of it


@dataclass(frozen=True)
class Row:
    """One row of a batch: a context, and continuations of it with their request numbers."""

    context: tuple[int, ...]
    targets: list[tuple[int, Sequence[int]]]

    @cached_property
    def tree(self) -> Tree:
        """What is read of the continuations."""
        return Tree.of([target for _, target in self.targets])

    @property
    def length(self) -> int:
        """Tokens that are read."""
        return len(self.context) + len(self.tree.tokens)


def branch_limit(model: Any) -> int:
    """The longest row in which a model takes branches; 0 where its architecture takes no mask and positions."""
    config = model.config.get_text_config()
    known = config.model_type.removeprefix("sentei_") in FAMILIES
    masked = config._attn_implementation in ("sdpa", "eager")
    return (getattr(config, "sliding_window", None) or sys.maxsize) if known and masked else 0


def make_rows(requests: Sequence[Request], *, longest: int, branch: int) -> tuple[list[Row], int]:
    """Requests by context, and how many contexts were too long and lost their beginning, as in the harness.

    Args:
        requests: numbered in their order.
        longest: tokens in the model's context.
        branch: rows up to this length hold all continuations of their context, longer ones a single one each.

    Raises:
        InputError: a continuation without tokens, or longer than the model's context.
    """
    contexts: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}
    truncated = 0
    for number, (context, target) in enumerate(requests):
        # nobody reads the last token
        fitting = shorten(context, target, longest + 1, "a continuation", " (the model's context)")
        truncated += len(fitting) < len(context)
        contexts.setdefault(tuple(fitting), []).append((number, target))
    rows = []
    for begin, targets in contexts.items():
        row = Row(begin, targets)
        rows += [row] if row.length <= branch else [Row(begin, [target]) for target in targets]
    return rows, truncated


def shares_heads(model: Any) -> bool:
    """Whether the beginning that contexts have in common is read once, in a pass of its own.

    Not of a streamed model: its blocks are read once for all passes, none of which can wait for another's.
    """
    return streamed_blocks(model) is None


def make_batches(rows: Sequence[Row], *, share: bool = True) -> Iterator[TreeBatch]:
    """Rows of like length; those that begin alike come together.

    Args:
        rows: to be read.
        share: read the beginning of a batch once where that is worth it, see `shares_heads`.
    """
    heads = Counter(row.context[:_HEAD] for row in rows)

    def head(row: Row) -> tuple[int, ...]:
        return row.context[:_HEAD] if heads[row.context[:_HEAD]] >= _HEAD else ()

    for _, group in itertools.groupby(sorted(rows, key=lambda row: (head(row), row.length)), key=head):
        alike = list(group)
        for batch in fill(range(len(alike)), [row.length for row in alike], even=True):
            yield TreeBatch.of([alike[at] for at in batch], share)


Score = tuple[int, Tensor, Tensor]


def score_batches(model: Any, batches: Sequence[TreeBatch], progress: Any = None) -> Iterator[list[Score]]:
    """Per batch, for each of its requests: its number, the log-probability (fp32) of each token, the likeliest there.

    All on the CPU. The caller is in inference mode, the model in eval mode.
    """
    readings = [Reading(batch.ids, batch.inputs) for batch in batches]
    for batch, hidden in zip(batches, hidden_states(model, readings, progress), strict=True):
        yield batch.scores(model, hidden)


@dataclass(frozen=True)
class TreeBatch:
    """Rows side by side, for any number of models.

    Attributes:
        head: tokens that all contexts begin with, where reading them once is worth a pass of its own; else empty.
        ids: what is read after the head, int64 [B, T]; padded with 0 on the right, which no real token sees.
        places: their positions, int64 [B, T].
        trees: per row, where its tree begins in T, and the tree.
        picks: positions that predict, in the flattened B × T, int64 [P].
        owners: which of the picks predicts each scored token, int64 [N].
        targets: the scored tokens, int64 [N], continuation by continuation.
        numbers: the request of each continuation.
        sizes: tokens of each continuation.
    """

    head: tuple[int, ...]
    ids: Tensor
    places: Tensor
    trees: list[tuple[int, Tree]]
    picks: Tensor
    owners: Tensor
    targets: Tensor
    numbers: list[int]
    sizes: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row], share: bool = True) -> TreeBatch:
        """Lays rows out; `share`: with a head, where that is worth it."""
        shared = _shared(rows) if share else 0
        width = max(row.length for row in rows) - shared
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        places = torch.zeros_like(ids)
        picks: dict[int, int] = {}
        owners: list[int] = []
        trees = []
        for index, row in enumerate(rows):
            size, tree = len(row.context), row.tree
            start = size - shared
            ids[index, : start + len(tree.tokens)] = torch.tensor([*row.context[shared:], *tree.tokens])
            places[index, : start + len(tree.tokens)] = torch.tensor(
                [*range(shared, size), *(size + depth for depth in tree.depths)]
            )
            trees.append((start, tree))
            for path in tree.paths:
                owners += [picks.setdefault(index * width + start + node, len(picks)) for node in path]
        continuations = [target for row in rows for target in row.targets]
        return cls(
            tuple(rows[0].context[:shared]),
            ids,
            places,
            trees,
            torch.tensor(list(picks)),
            torch.tensor(owners),
            torch.tensor([token for _, target in continuations for token in target]),
            [number for number, _ in continuations],
            [len(target) for _, target in continuations],
        )

    def inputs(self, model: Any) -> dict[str, Any]:
        """What `final_hidden` needs besides `ids`: the cache of the head, and how branches see."""
        inputs: dict[str, Any] = {"cache": self._read_head(model)}
        if any(tree.branches for _, tree in self.trees):
            inputs["position_ids"] = self.places.to(model.device)
            inputs["attention_mask"] = self._mask(model.dtype, model.device)
        return inputs

    def scores(self, model: Any, hidden: Tensor) -> list[Score]:
        """See `score_batches`; `hidden` are the last hidden states [B, T, D]."""
        chosen = hidden.flatten(0, 1)[self.picks.to(model.device)]
        scores, best = score_targets(model, chosen, self.targets.to(model.device), self.owners.to(model.device))
        return list(zip(self.numbers, scores.cpu().split(self.sizes), best.cpu().split(self.sizes), strict=True))

    def _read_head(self, model: Any) -> Any:
        """The KV cache of the head, for each row of the batch."""
        if not self.head:
            return None
        _, cache = final_hidden(model, torch.tensor([self.head], device=model.device), use_cache=True)
        cache.reorder_cache(torch.zeros(len(self.ids), dtype=torch.long, device=model.device))
        return cache

    def _mask(self, dtype: torch.dtype, device: Any) -> Tensor:
        """Additive mask [B, 1, T, head + T]: a token sees the context, its own path, and itself."""
        count, size = self.ids.shape
        head = len(self.head)
        seen = torch.ones(size, head + size, dtype=torch.bool).tril(head).repeat(count, 1, 1)
        for row, (start, tree) in zip(seen, self.trees, strict=True):
            end = start + len(tree.tokens)
            row[start:end, head + start : head + end] = tree.seen
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return mask[:, None].to(device)


def _shared(rows: Sequence[Row]) -> int:
    """How many tokens all contexts begin with (few-shot examples), or 0 where that is not worth a pass.

    The last token of a context is never among them, as it predicts.
    """
    longest = min(len(row.context) for row in rows) - 1
    columns = zip(*(row.context[:longest] for row in rows), strict=True)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if shared * (len(rows) - 1) >= _WORTH_SHARING else 0
