"""Scoring a task again and again: rows are tokenised and laid out once, and any number of models reads them.

The models may be one model whose modules are switched between calls, which is how a search looks at its candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.data.pairs import encode_pairs
from sentei.data.task_rows import TaskRow
from sentei.errors import InputError
from sentei.inference.branches import TreeBatch, branch_limit, make_batches, make_rows, score_batches, shares_heads
from sentei.inference.forward import evaluating, stage
from sentei.inference.greedy import Lines, write
from sentei.metrics.answers import Metric, metric_of
from sentei.models.load import context_length

__all__ = ["Metric", "Outcome", "Prepared", "metric_of", "prepare"]

_ROOM = 8  # tokens that a written answer may have more than the longest target

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What rows of a task scored.

    A model that diverged on a row (a log-probability that is not finite) has score 0 there, for perplexity inf, and
    loss inf.

    Attributes:
        score: in the unit of the metric, [n]: right or not, F1, … For perplexity the mean loss per token of the target.
        loss: smooth, in nats, [n]. With choices -log of the right one's share in the softmax over their summed
            log-probabilities (acc_norm: per character); else the mean loss per token of the target.
        weight: what the row counts for in `Metric.aggregate`, [n]: 1, for perplexity the tokens of the target.
    """

    score: Floats
    loss: Floats
    weight: Floats


class Prepared:
    """Rows of a task, ready to be read by any causal language model with the tokenizer they were prepared with.

    Attributes:
        rows: as given.
        metric: of the task.
    """

    def __init__(self, rows: Sequence[TaskRow], tokenizer: Any, metric: Metric, max_new_tokens: int | None) -> None:
        self.rows, self.metric = list(rows), metric
        choices = [list(row.choices) if metric.kind == "choices" else [row.target] for row in self.rows]
        self._first = np.cumsum([0, *map(len, choices)])  # of each row, among all requests
        pairs = [(row.context, choice) for row, some in zip(self.rows, choices, strict=True) for choice in some]
        self._requests = encode_pairs(pairs, tokenizer)
        self._refuse_empty()
        self._lines = Lines(tokenizer)
        longest = max(len(target) for _, target in self._requests)
        self._limit = max_new_tokens or longest + _ROOM
        # Whether an answer stops where the target does is seen after it, so a token is scored there whose value is
        # of no use: what counts is which one would be said.
        self._stops = metric.kind == "text" or metric.name == "exact_match"
        self._layouts: dict[tuple[int, int, int, int, bool], list[TreeBatch]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def score(self, model: Any, start: int = 0, stop: int | None = None, progress: Any = None) -> Outcome:
        """Scores rows `start` to `stop` (without it; by default all).

        Args:
            model: a transformers causal language model.
            start: first row.
            stop: row after the last one.
            progress: shows a stage called `score`, counted in continuations, and for written answers one called
                `write`, counted in rows.

        Raises:
            InputError: a continuation that is longer than the model's context, or a metric function that fails.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"rows {start} to {stop} of {len(self)} are none")
        first, last = int(self._first[start]), int(self._first[stop])
        scores: dict[int, tuple[Floats, list[int]]] = {}
        with evaluating(model):
            batches = self._layout(model, first, last)
            with stage(progress, "score", last - first, "continuations") as advance:
                for found in score_batches(model, batches, progress):
                    for number, values, best in found:
                        scores[first + number] = values.double().numpy(), best.tolist()
                    advance(len(found))
            if self.metric.kind == "choices":
                return self._chosen(start, stop, np.array([scores[n][0].sum() for n in range(first, last)]))
            return self._said(model, start, [scores[n] for n in range(first, last)], progress)

    def _layout(self, model: Any, first: int, last: int) -> list[TreeBatch]:
        """The batches of some requests; they depend on how much a model takes."""
        longest, branch = context_length(model), branch_limit(model)
        key = (first, last, longest, branch, shares_heads(model))
        if key not in self._layouts:
            more = [0] if self._stops else []
            requests = [(context, target + more) for context, target in self._requests[first:last]]
            rows, truncated = make_rows(requests, longest=longest, branch=branch)
            _say_cut(truncated, longest)
            self._layouts[key] = list(make_batches(rows, share=key[-1]))
        return self._layouts[key]

    def _chosen(self, start: int, stop: int, sums: Floats) -> Outcome:
        score, loss = np.zeros(stop - start), np.full(stop - start, np.inf)
        for at, row in enumerate(self.rows[start:stop]):
            first = self._first[start + at] - self._first[start]
            values = sums[first : first + len(row.choices)]
            if self.metric.name == "acc_norm":  # the space before a choice does not count, as in the harness
                values = values / [len(choice.removeprefix(" ")) for choice in row.choices]
            if np.isfinite(values).all():
                score[at] = float(values.argmax() == row.label)
                loss[at] = np.logaddexp.reduce(values) - values[row.label]
        return Outcome(score, loss, np.ones(stop - start))

    def _said(self, model: Any, start: int, scored: list[tuple[Floats, list[int]]], progress: Any) -> Outcome:
        """Rows with one target each."""
        targets = [target for _, target in self._requests[start : start + len(scored)]]
        lengths = np.array([len(target) for target in targets], dtype=np.float64)
        loss = np.array([-scores[: len(target)].mean() for (scores, _), target in zip(scored, targets, strict=True)])
        loss[~np.isfinite(loss)] = np.inf
        if self.metric.name == "perplexity":
            return Outcome(loss.copy(), loss, lengths)
        # Greedy decoding says the target if the target's tokens, and then an end, are the likeliest all along.
        exact = np.array(
            [
                best[:-1] == target and self._lines.only_ends(best[-1])
                for (_, best), target in zip(scored, targets, strict=True)
            ]
        )
        score = exact.astype(np.float64)
        if self.metric.kind == "text":
            score = np.array(self._judge(model, start, exact, progress))
        score[~np.isfinite(loss)] = 0.0
        return Outcome(score, loss, np.ones(len(scored)))

    def _judge(self, model: Any, start: int, exact: NDArray[np.bool_], progress: Any) -> list[float]:
        """Scores of what the model writes; where it is known to be the target, nothing has to be written."""
        assert self.metric.judge is not None
        longest = context_length(model)
        room = longest - self._limit
        if room < 1:
            raise InputError(
                f"answers of up to {self._limit} tokens leave no room in the model's context of {longest}; "
                "lower max_new_tokens"
            )
        known = {
            at: target
            for at, (_, target) in enumerate(self._requests[start : start + len(exact)])
            if exact[at] and len(target) <= self._limit
        }
        unknown = [at for at in range(len(exact)) if at not in known]
        contexts = [self._requests[start + at][0] for at in unknown]
        _say_cut(sum(len(context) > room for context in contexts), room)
        contexts = [context[-room:] for context in contexts]
        with stage(progress, "write", len(unknown), "rows") as advance:
            answers = write(model, contexts, limit=self._limit, ends=self._lines.ends, advance=advance)
        said = known | dict(zip(unknown, answers, strict=True))
        return [self.metric.judge(self._lines.text(said[at]), self.rows[start + at]) for at in range(len(exact))]

    def _refuse_empty(self) -> None:
        for at, row in enumerate(self.rows):
            for _, target in self._requests[self._first[at] : self._first[at + 1]]:
                if not target:
                    raise InputError(
                        f"{row.place}: a continuation of this row has no tokens of its own after its context; "
                        "begin `target:` with a space, or end `input:` without one"
                    )


def prepare(rows: Sequence[TaskRow], tokenizer: Any, metric: str, *, max_new_tokens: int | None = None) -> Prepared:
    """Tokenises rows, as raw text without a chat template.

    `acc`: the choice with the highest log-probability is the right one; `acc_norm`: per character. `exact_match`:
    greedy decoding says the target's tokens and stops, which one pass over context and target shows; where rows have
    aliases, what the model writes is one of them after normalisation. `f1`, `python:…`: of what the model writes. An
    answer ends at a line break or a special token. `perplexity`: of the targets, given their contexts.

    Args:
        rows: of one task.
        tokenizer: of the models that will be scored.
        metric: of the task.
        max_new_tokens: of a written answer; by default 8 more than the longest target has.

    Raises:
        InputError: no rows, an unknown metric, rows without choices for a metric that compares them, or a continuation
            without tokens.
    """
    if not rows:
        raise InputError("there are no rows to score; give at least one")
    found = metric_of(metric, rows)
    if found.kind == "choices" and (bare := next((row for row in rows if len(row.choices) < 2), None)):
        raise InputError(f"{bare.place}: {metric} compares choices, and this row has {len(bare.choices)}")
    return Prepared(rows, tokenizer, found, max_new_tokens)


def _say_cut(count: int, room: int) -> None:
    if count:
        warnings.warn(
            f"{count} contexts exceeded the model's context of {room} tokens; their beginning was cut", stacklevel=4
        )
