"""The bridge to lm-evaluation-harness: local rows as its tasks, and a fast in-memory model as its `LM`.

The harness builds the requests, and decides from the log-likelihoods what is right. Only the log-likelihoods are ours:
the choices of a question share one pass over their context, and logits are made for the scored tokens only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from sentei.data.tasks import TaskSet
from sentei.data.tokens import check_ids
from sentei.errors import InputError, nearest
from sentei.inference import branches
from sentei.inference.forward import evaluating, stage
from sentei.prove.scored import Answers, Scored

_SEED = 1234  # of the few-shot examples: the harness's own default


def run_harness(
    model: Any, tokenizer: Any, tasks: Sequence[TaskSet | str], *, limit: int | None, shots: int | None, progress: Any
) -> dict[str, Scored]:
    """The scored rows of each task."""
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
    return {
        name: _pool(name, [found["samples"][task] for task in group], list(group.values()))
        for name, group in members.items()
    }


def load_tasks(names: Sequence[str]) -> None:
    """Loads the data of tasks by their names, to see that they can be had.

    Raises:
        InputError: an unknown name, or data that cannot be loaded.
    """
    with _quiet():
        _load(names, None)


def _pool(name: str, tasks: list[list[dict[str, Any]]], made_by: Sequence[Any] = ()) -> Scored:
    rows = [row for task in tasks for row in task if row["filter"] == task[0]["filter"]]
    metric = "acc" if "acc" in rows[0] else rows[0]["metrics"][0]
    if not all(isinstance(row.get(metric), (int, float)) for row in rows):
        raise InputError(
            f"task {name!r} has no accuracy per row (its metrics: {', '.join(rows[0]['metrics'])}); choose another task"
        )
    norm = [float(row["acc_norm"]) for row in rows] if all("acc_norm" in row for row in rows) else None
    pairs = [_answered(row, task) for some, task in zip(tasks, made_by, strict=False) for row in some]
    return Scored([float(row[metric]) for row in rows], norm, metric, _answers(pairs))


def _answered(row: dict[str, Any], task: Any) -> tuple[frozenset[str], str, str] | None:
    """The answers to choose from in a row, the right one, and the model's; None where a row does not say."""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return None  # of multiple inputs the contexts differ, not the answers
    choices = [str(choice) for choice in task.doc_to_choice(row["doc"])]
    scores, right = [float(score) for score, _ in row["filtered_resps"]], row["target"]
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices) or len(scores) < len(choices):
        return None  # several right answers
    return frozenset(choices), choices[right], choices[max(range(len(choices)), key=scores.__getitem__)]


def _answers(rows: Sequence[tuple[frozenset[str], str, str] | None]) -> Answers | None:
    """What was right and said, where all rows have the same answers to choose from."""
    known = [row for row in rows if row is not None]
    if len(known) < 2 or len(known) < len(rows) or len({choices for choices, _, _ in known}) > 1:
        return None
    return Answers([right for _, right, _ in known], [said for _, _, said in known])


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
        for _, context, target in requests:
            check_ids(self.tokenizer, [context, target])
        answers: dict[int, tuple[float, bool]] = {}
        with evaluating(self.model):
            batches = list(branches.make_batches(self._rows(requests), share=branches.shares_heads(self.model)))
            for found in branches.score_batches(self.model, batches, self._progress):
                for number, scores, best in found:
                    answers[number] = float(scores.sum()), best.tolist() == list(requests[number][2])
                self._advance(len(found))
        return [answers[number] for number in range(len(requests))]

    def tok_batch_encode(self, *args: Any, **kwargs: Any) -> Any:
        """See the harness; questions that are answered by generating come through here."""
        ids, mask = super().tok_batch_encode(*args, **kwargs)
        check_ids(self.tokenizer, ids.tolist())
        return ids, mask

    def _rows(self, requests: list[tuple[Any, list[int], list[int]]]) -> list[branches.Row]:
        """Requests by context. Contexts that are too long lose their beginning, as in the harness."""
        rows, truncated = branches.make_rows(
            [(context, target) for _, context, target in requests],
            longest=self.max_length,
            branch=branches.branch_limit(self.model),
        )
        self.truncated += truncated
        return rows
