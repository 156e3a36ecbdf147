"""Damage: how far the pruned model's next-token distributions are from the dense model's, on the response of each row.

Each row goes once through each model; what comes out is written shard by shard, so a killed scoring goes on where it
was, and another selection or a distillation needs no model at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from sentei.data.batches import BATCH_TOKENS, Batch, by_length, pad
from sentei.data.chat import Sample
from sentei.errors import InputError
from sentei.families.streamed import streamed_blocks
from sentei.files import atomic_file
from sentei.inference.forward import chunk_rows, evaluating, logits, score_targets
from sentei.inference.walk import Reading, check_walk, hidden_states
from sentei.progress import Progress
from sentei.recover.attention import short_attention
from sentei.recover.select.pair import shared_tokens
from sentei.recover.select.scores import Scores, read_scores, shard_path

TOP = 16  # tokens of the teacher that are kept at each position
SHARD_TOKENS = 1 << 16
# Of a streamed model so many are read in one go, each block once; more would be lost with a killed process.
WALK_TOKENS = 1 << 18
# Elements of a chunk of logits, 12 MB in fp32. Measured: smaller ones waste the product with the head, larger ones
# leave the cache.
CHUNK = 3 << 20
Shard = tuple[int, list[list[int]]]  # its number, and its batches of rows
_LOG_NOTHING = -1e4  # stands for log 0, which would make 0 · (−∞)


def score(
    dense: Any,
    pruned: Any | None,
    samples: Sequence[Sample],
    directory: Path,
    *,
    top: int = TOP,
    alone: bool = False,
    strangers: Mapping[int, int] | None = None,
    vocab: int | None = None,
    tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Scores:
    """Scores every sample with a response, once by each model; shards that are in `directory` are not done again.

    Args:
        dense: the model before pruning, which is also the teacher.
        pruned: the model after it, with the same tokens; None: only the teacher reads, and there is no damage.
        samples: one per row of the pool.
        directory: where the shards go; it belongs to these models and samples.
        top: how many of the teacher's likeliest tokens are kept per position, for distillation; 0 keeps none.
        alone: let the dense model also read each response without its prompt, for `Scores.ifd`.
        strangers: sample -> another one, after whose prompt it reads the response too, for `Scores.unlikely`.
        vocab: predictions are taken over the first so many tokens; default: those that all models have.
        tokens: tokens per batch, padding included.
        progress: told about each batch, in tokens.

    Raises:
        InputError: predictions that are not numbers; of streamed models also too little memory or disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [row for row, sample in enumerate(samples) if sample.response[1:].any()]
    lengths = [len(samples[row].ids) for row in wanted]
    batches = [[wanted[i] for i in batch] for batch in by_length(lengths, tokens)]
    progress = progress or Progress()
    models = [model for model in (dense, pruned) if model is not None]
    vocab = shared_tokens(*models) if vocab is None else vocab
    with contextlib.ExitStack() as stack:
        for model in models:
            check_walk(model, "scoring", progress)
            stack.enter_context(evaluating(model))
        stack.enter_context(short_attention(*models))
        bar = stack.enter_context(progress.stage("score", sum(lengths), "tokens"))
        shards = list(enumerate(_shards(batches, samples)))
        pending = [(number, shard) for number, shard in shards if not shard_path(directory, number).exists()]
        bar.advance(sum(lengths) - sum(_tokens(shard, samples) for _, shard in pending))
        asked = _Asked(samples, alone, strangers or {})
        streamed = any(streamed_blocks(model) is not None for model in models)
        for group in _together(pending, samples, WALK_TOKENS if streamed else 0):
            read = [asked.batches(rows) for _, shard in group for rows in shard]
            before = _states(dense, [batch for several in read for batch in several if batch is not None], progress)
            after = repeat(None) if pruned is None else _states(pruned, [batch for batch, *_ in read], progress)
            left = iter(read)
            for number, shard in group:
                parts = []
                for batch, *others in islice(left, len(shard)):
                    part = _score_batch(dense, pruned, batch, next(before), next(after), top, vocab)
                    _check(part, pruned is not None)
                    parts.append(part | _elsewhere(dense, batch, others, before))
                    bar.advance(_tokens([batch.rows], samples))
                with atomic_file(shard_path(directory, number)) as scratch:
                    save_file({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, scratch)
    return read_scores(directory, len(samples))


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Jensen–Shannon divergence in nats of the distributions with logits a, b [n, V]: [n], 0 to ln 2.

    From log-softmax, so that an entry which underflows counts nothing instead of giving NaN.
    """
    return _divergence(a.log_softmax(1), b.log_softmax(1))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen–Shannon divergence [n] of log-probabilities [n, V], which are overwritten."""
    p, q = log_p.exp(), log_q.exp()
    log_m = p.add(q).div_(2).log_().clamp_min_(_LOG_NOTHING)
    both = p.mul_(log_p.sub_(log_m)).sum(1) + q.mul_(log_q.sub_(log_m)).sum(1)
    return (both / 2).clamp_min_(0)


def _tokens(shard: Iterable[Sequence[int]], samples: Sequence[Sample]) -> int:
    return sum(len(samples[row].ids) for rows in shard for row in rows)


def _together(shards: list[Shard], samples: Sequence[Sample], tokens: int) -> Iterator[list[Shard]]:
    """Shards that are read in one go: as many as hold `tokens`, one at least."""
    group: list[Shard] = []
    for shard in shards:
        if group and sum(_tokens(rows, samples) for _, rows in (*group, shard)) > tokens:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def _shards(batches: list[list[int]], samples: Sequence[Sample]) -> Iterator[list[list[int]]]:
    """Runs of batches of about SHARD_TOKENS tokens."""
    shard: list[list[int]] = []
    size = 0
    for batch in batches:
        shard.append(batch)
        size += sum(len(samples[row].ids) for row in batch)
        if size >= SHARD_TOKENS:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _score_batch(
    dense: Any, pruned: Any | None, batch: Batch, before: Tensor, after: Tensor | None, top: int, vocab: int
) -> dict[str, np.ndarray]:
    """Means per row, and the teacher's likeliest tokens at each target, from the states of both models [N, D]."""
    batch = batch.to(before.device)
    size = chunk_rows(dense, CHUNK)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("jsd", "dense_nll", "pruned_nll", "top_ids", "top_logp")}
    for at, target in enumerate(batch.targets.split(size)):
        part = slice(at * size, (at + 1) * size)
        log_p = logits(dense, before[part])[:, :vocab].log_softmax(1)
        columns["dense_nll"].append(-log_p.gather(1, target[:, None])[:, 0])
        if top:
            best = log_p.topk(min(top, log_p.shape[1]), dim=1)
            columns["top_ids"].append(best.indices.int())
            columns["top_logp"].append(best.values.half())
        if after is not None:
            log_q = logits(pruned, after[part])[:, :vocab].log_softmax(1)
            columns["pruned_nll"].append(-log_q.gather(1, target[:, None])[:, 0])
            columns["jsd"].append(_divergence(log_p, log_q))
    kept = {name: torch.cat(columns[name]).cpu().numpy() for name in ("top_ids", "top_logp") if top}
    found = {name: _means(columns[name], batch) for name in ("jsd", "dense_nll", "pruned_nll")}
    return {"rows": np.array(batch.rows, np.int64), "counts": _counts(batch).cpu().numpy(), **found, **kept}


def _counts(batch: Batch) -> Tensor:
    """Targets of each row, int64 [B]."""
    return torch.bincount(batch.owners, minlength=len(batch.rows))


def _means(parts: Sequence[Tensor], batch: Batch) -> np.ndarray:
    """Mean over the targets of each row, float32 [B], of values that come in parts; NaN where there are none."""
    if not parts:
        return np.full(len(batch.rows), np.nan, np.float32)
    sums = torch.zeros(len(batch.rows), dtype=torch.float64, device=batch.ids.device)
    return (sums.index_add_(0, batch.owners, torch.cat(list(parts)).double()) / _counts(batch)).float().cpu().numpy()


def _check(part: dict[str, np.ndarray], both: bool) -> None:
    """A model that overflows has no damage to measure.

    Raises:
        InputError: a prediction is not a number.
    """
    for name, model in (("dense_nll", "dense"), ("pruned_nll", "pruned"), ("jsd", "pruned")):
        if (both or model == "dense") and not np.isfinite(part[name]).all():
            row = part["rows"][~np.isfinite(part[name])][0]
            raise InputError(
                f"the {model} model's predictions for row {row} of the pool are not numbers: its weights are broken, "
                "or float16 overflows; evaluate it, or use --dtype bfloat16"
            )


def _states(model: Any, batches: Sequence[Batch], progress: Any) -> Iterator[Tensor]:
    """Last hidden states at the positions before the targets [N, D], batch by batch."""
    for batch, hidden in zip(batches, hidden_states(model, [Reading(b.ids) for b in batches], progress), strict=True):
        yield hidden[batch.sources.to(hidden.device)]


class _Asked:
    """What is read of some rows."""

    def __init__(self, samples: Sequence[Sample], alone: bool, strangers: Mapping[int, int]) -> None:
        self.samples, self.alone, self.strangers = samples, alone, strangers

    def batches(self, rows: Sequence[int]) -> tuple[Batch, Batch | None, Batch | None]:
        """The rows; their responses after nothing; those of some after other prompts. None where that is not wanted."""
        samples = self.samples
        bare = [Sample.of(samples[row].ids[:1], samples[row].ids[samples[row].response]) for row in rows if self.alone]
        asked = {row: self.strangers[row] for row in rows if row in self.strangers}
        swapped = [_swapped(samples[row], samples[stranger]) for row, stranger in asked.items()]
        alone = pad(bare, range(len(bare))) if bare else None
        return (
            pad(samples, rows),
            alone,
            replace(pad(swapped, range(len(swapped))), rows=(*asked,)) if swapped else None,
        )


def _elsewhere(
    dense: Any, batch: Batch, others: Sequence[Batch | None], states: Iterator[Tensor]
) -> dict[str, np.ndarray]:
    """What the dense model thinks of responses after nothing, and after other prompts; NaN where that is not wanted."""
    found = {name: np.full(len(batch.rows), np.nan, np.float32) for name in ("alone_nll", "rival_nll")}
    alone, rival = others
    if alone is not None:
        found["alone_nll"] = _unlikely(dense, alone, next(states))
    if rival is not None:
        found["rival_nll"][[batch.rows.index(row) for row in rival.rows]] = _unlikely(dense, rival, next(states))
    return found


def _swapped(sample: Sample, stranger: Sample) -> Sample:
    """A sample after the prompt of another one, which loses its beginning where it is longer than the own one."""
    start, end = int(sample.response.argmax()), int(stranger.response.argmax())
    prompt = stranger.ids[max(0, end - start) : end]
    return Sample(
        np.concatenate([prompt, sample.ids[start:]]),
        np.concatenate([np.zeros(len(prompt), dtype=bool), sample.response[start:]]),
        truncated=False,
    )


def _unlikely(dense: Any, batch: Batch, states: Tensor) -> np.ndarray:
    """Mean negative log-likelihood of each response, float32 [B], from the states before its tokens."""
    batch = batch.to(states.device)
    likely, _ = score_targets(dense, states, batch.targets)
    return _means([-likely], batch)
