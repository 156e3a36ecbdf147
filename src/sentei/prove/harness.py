"""The bridge to lm-evaluation-harness: local rows as its tasks, and a fast in-memory model as its `LM`.

The harness builds the requests, and decides from the log-likelihoods what is right. Only the log-likelihoods are ours:
the choices of a question share one pass over their context, and logits are made for the scored tokens only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from sentei.data.tasks import TaskSet
from sentei.errors import InputError, nearest
from sentei.families import FAMILIES
from sentei.prove.forward import evaluating, final_hidden, score_targets, stage

Rows = tuple[list[float], list[float] | None, str]
_BATCH_TOKENS = 4096  # positions in one batch, padding included
_WORTH_SHARING = 128  # tokens that sharing the contexts' beginning must save to be worth one more pass
_HEAD = 16  # contexts with so many first tokens in common, when they are so many, are batched together
_SEED = 1234  # of the few-shot examples: the harness's own default


def run_harness(
    model: Any, tokenizer: Any, tasks: Sequence[TaskSet | str], *, limit: int | None, shots: int | None, progress: Any
) -> dict[str, Rows]:
    """Per task: what each row scored, the same normalised by length or None, and the name of the metric."""
    with _quiet():
        members = _load(tasks, shots)
        lm = InMemoryLM(model, tokenizer, progress)
        found = evaluate(
            lm,
            {"tasks": {name: task for group in members.values() for name, task in group.items()}},
            limit=limit,
            bootstrap_iters=0,
        )
    if lm.truncated:
        warnings.warn(
            f"{lm.truncated} requests exceeded the model's context of {lm.max_length} tokens; their beginning was cut",
            stacklevel=3,
        )
    # A group's rows are pooled, which weighs its tasks by size, as the harness does.
    return {name: _pool(name, [found["samples"][task] for task in group]) for name, group in members.items()}


def _pool(name: str, tasks: list[list[dict[str, Any]]]) -> Rows:
    rows = [row for task in tasks for row in task if row["filter"] == task[0]["filter"]]
    metric = "acc" if "acc" in rows[0] else rows[0]["metrics"][0]
    if not all(isinstance(row.get(metric), (int, float)) for row in rows):
        raise InputError(
            f"task {name!r} has no accuracy per row (its metrics: {', '.join(rows[0]['metrics'])}); choose another task"
        )
    norm = [float(row["acc_norm"]) for row in rows] if all("acc_norm" in row for row in rows) else None
    return [float(row[metric]) for row in rows], norm, metric


def _load(tasks: Sequence[TaskSet | str], shots: int | None) -> dict[str, dict[str, Any]]:
    """The harness tasks behind each given task: several where it is a group."""
    manager = None
    members: dict[str, dict[str, Any]] = {}
    for task in tasks:
        if isinstance(task, TaskSet):
            members[task.name] = {task.name: _local(task, shots or 0)}
            continue
        from lm_eval.tasks import TaskManager

        manager = manager or TaskManager()
        if task not in manager.all_tasks:
            raise InputError(
                f"unknown task {task!r}{nearest(task, manager.all_tasks)}; give a .jsonl file or a name of the harness"
            )
        try:
            members[task] = manager.load([task])["tasks"]
        except Exception as error:  # datasets raises errors of many libraries; all mean that the data is not to be had
            raise InputError(f"the data of task {task!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        for member in members[task].values():
            given = member.get_config("num_fewshot")
            member.set_config("num_fewshot", (given or 0) if shots is None or given == 0 else shots)
    for member in (member for group in members.values() for member in group.values()):
        member.set_fewshot_seed(_SEED)
    return members


def _local(task: TaskSet, shots: int) -> Any:
    """Local rows as a harness task. Partial scoring is the harness's "multiple inputs": the text names the label."""
    import datasets

    text, target, choice = ("label", "continuation", "contexts") if task.partial else ("context", "label", "choices")
    metrics = ["acc"] if task.partial else ["acc", "acc_norm"]
    config = {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(task.rows)},
        "test_split": "test",
        "fewshot_split": "test" if shots else None,
        "num_fewshot": shots,
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_target": target,
        "doc_to_choice": choice,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
    }
    return ConfigurableTask(config=config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness's bars and notes off stderr; it has no switch for them. Errors come through as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class _Row:
    """What one row of a batch scores: a context, and continuations of it with their request numbers.

    The row holds the context, then what follows it in each continuation as a branch: a branch sees the context and
    itself, and its positions go on from the context's. So a context is read once for all choices.
    """

    context: tuple[int, ...]
    targets: list[tuple[int, list[int]]]

    @property
    def length(self) -> int:
        # the last token of a continuation is predicted, never read
        return len(self.context) + sum(len(target) - 1 for _, target in self.targets)


class InMemoryLM(HFLM):
    """The harness's Hugging Face model with faster log-likelihoods; tokenisation and generation are the harness's."""

    def __init__(self, model: Any, tokenizer: Any, progress: Any = None) -> None:
        self._progress, self._stderr = progress, sys.__stderr__
        self._advance: Callable[[int], None] = lambda _: None
        self.truncated = 0
        # A copy, because the harness sets a padding token on what it gets.
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=8)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        with stage(self._progress, "tasks", len(requests), "requests") as self._advance:
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        answers: dict[int, tuple[float, bool]] = {}
        with evaluating(self.model):
            for batch in _batches(self._rows(requests)):
                answers.update(self._score(batch))
                self._advance(sum(len(row.targets) for row in batch))
        return [answers[number] for number in range(len(requests))]

    def _rows(self, requests: list[tuple[Any, list[int], list[int]]]) -> list[_Row]:
        """Requests by context. Contexts that are too long lose their beginning, as in the harness."""
        contexts: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_, context, target) in enumerate(requests):
            room = self.max_length + 1 - len(target)
            if not target or room < 1:
                raise InputError(
                    f"a continuation has {len(target)} tokens, expected 1 to {self.max_length} (the model's context)"
                )
            self.truncated += len(context) > room
            contexts.setdefault(tuple(context[-room:]), []).append((number, target))
        rows = []
        for begin, targets in contexts.items():
            row = _Row(begin, targets)
            rows += [row] if self._can_branch(row) else [_Row(begin, [target]) for target in targets]
        return rows

    def _can_branch(self, row: _Row) -> bool:
        """Whether the architecture takes a mask and positions as given, within the row's length."""
        config = self.config.get_text_config()
        known = config.model_type.removeprefix("sentei_") in FAMILIES
        masked = config._attn_implementation in ("sdpa", "eager")
        return known and masked and row.length <= (getattr(config, "sliding_window", None) or row.length)

    def _score(self, batch: list[_Row]) -> Iterator[tuple[int, tuple[float, bool]]]:
        shared, cache = self._shared(batch)
        width = max(row.length for row in batch) - shared
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        places, branches = torch.zeros_like(ids), torch.zeros_like(ids)
        picks: list[int] = []  # where each target is predicted, in the flattened batch
        for index, row in enumerate(batch):
            start, size = index * width, len(row.context)
            tokens, place, branch = list(row.context[shared:]), list(range(shared, size)), [0] * (size - shared)
            for number, (_, target) in enumerate(row.targets, start=1):
                picks += [start + size - shared - 1, *range(start + len(tokens), start + len(tokens) + len(target) - 1)]
                tokens += target[:-1]
                place += range(size, size + len(target) - 1)
                branch += [number] * (len(target) - 1)
            for tensor, values in ((ids, tokens), (places, place), (branches, branch)):
                tensor[index, : len(values)] = torch.tensor(values)
        inputs: dict[str, Any] = {}
        if int(branches.max()) > 1:  # a single branch is what every causal model sees anyway
            inputs = {"position_ids": places.to(self.device), "attention_mask": self._mask(branches, shared)}
        hidden, _ = final_hidden(self.model, ids.to(self.device), cache, **inputs)
        targets = [target for row in batch for _, target in row.targets]
        flat = torch.tensor([token for target in targets for token in target], device=self.device)
        scores, hits = score_targets(self.model, hidden.flatten(0, 1)[torch.tensor(picks, device=self.device)], flat)
        sizes = [len(target) for target in targets]
        numbers = [number for row in batch for number, _ in row.targets]
        for number, score, hit in zip(numbers, scores.cpu().split(sizes), hits.cpu().split(sizes), strict=True):
            yield number, (float(score.sum()), bool(hit.all()))

    def _mask(self, branches: Tensor, shared: int) -> Tensor:
        """Additive mask [B, 1, T, shared + T]: a token sees the context and its own branch, up to itself."""
        size = branches.shape[1]
        own = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
        seen = torch.cat([own.new_ones(len(branches), size, shared), own.tril()], dim=2)[:, None]
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        return mask.to(self.device)

    def _shared(self, batch: list[_Row]) -> tuple[int, Any]:
        """How many tokens all contexts begin with (few-shot examples), and their KV cache for each row of the batch.

        The last token of a context is never among them, as it predicts. (0, None) where it is not worth a pass.
        """
        longest = min(len(row.context) for row in batch) - 1
        columns = zip(*(row.context[:longest] for row in batch), strict=True)
        shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        if shared * (len(batch) - 1) < _WORTH_SHARING:
            return 0, None
        _, cache = final_hidden(
            self.model, torch.tensor([batch[0].context[:shared]], device=self.device), use_cache=True
        )
        cache.reorder_cache(torch.zeros(len(batch), dtype=torch.long, device=self.device))
        return shared, cache


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of like length, as many as `_BATCH_TOKENS` hold; those that begin alike come together."""
    heads = Counter(row.context[:_HEAD] for row in rows)

    def head(row: _Row) -> tuple[int, ...]:
        return row.context[:_HEAD] if heads[row.context[:_HEAD]] >= _HEAD else ()

    for _, alike in itertools.groupby(sorted(rows, key=lambda row: (head(row), row.length)), key=head):
        batch: list[_Row] = []
        for row in alike:
            if batch and (len(batch) + 1) * row.length > _BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(row)
        yield batch
