"""One call for everything that `sentei eval` prints: perplexity, tasks, speed, memory, and paired comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sentei.data.demo import demo_tasks, demo_texts
from sentei.data.rows import stem
from sentei.data.tasks import TaskSet, read_task
from sentei.data.text import read_texts, token_windows
from sentei.errors import InputError
from sentei.files import finite, finite_pair
from sentei.inference.walk import check_walk
from sentei.metrics.intervals import difference_interval
from sentei.metrics.perplexity import Perplexity, perplexity
from sentei.progress import shown
from sentei.prove.memory import memory as memory_of
from sentei.prove.opened import capped, open_model, tokenizer_of
from sentei.prove.scored import TaskResult
from sentei.prove.speed import speed
from sentei.prove.tasks import score_tasks

SCHEMA_VERSION = 1
Texts = tuple[str, list[str]]


@dataclass
class Evidence:
    """What was measured of one model, with what is needed to compare it row by row."""

    model: str
    params: int
    block_params: int
    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    vocabulary: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object of `sentei eval --format json`. A figure that is not finite is null, with `diverged` beside it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "params": self.params,
            "block_params": self.block_params,
            "perplexity": {name: self._text(result) for name, result in self.perplexity.items()},
            "tasks": {
                name: {"acc": r.acc, "acc_norm": r.acc_norm, "n": r.n, "interval": list(r.interval)} | r.answers_json()
                for name, r in self.tasks.items()
            },
            "speed": self.speed,
            "memory": self.memory,
        }

    def _text(self, result: Perplexity) -> dict[str, Any]:
        """With the size of the vocabulary where guessing among all of it, at random, does better."""
        cell = _perplexity_json(result)
        return cell | ({"worse_than_guessing": self.vocabulary} if (cell["value"] or 0) > self.vocabulary else {})


def evaluate(
    models: Any,
    *,
    texts: Sequence[str | Path | Texts] = (),
    tasks: Sequence[str | Path | TaskSet] = (),
    window: int = 1024,
    windows: int | None = None,
    limit: int | None = None,
    shots: int | None = None,
    with_speed: bool = False,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    memory: int | None = None,
    progress: Any = None,
) -> dict[str, Any]:
    """Measures one model, or several on the same text and rows.

    Args:
        models: one or a list of: a `Loaded`, a transformers model (with `tokenizer`), or what `load` reads.
        texts: for perplexity: what `read_texts` reads (`demo` is the test half of the demo text), or (name, texts).
        tasks: .jsonl files, `TaskSet`s, names of lm-evaluation-harness, or `demo` for all demo tasks.
        window: tokens in a window of text, and the context that memory is measured at.
        windows: at most so many windows of each text, from its start.
        limit: at most so many rows of each task, from its start.
        shots: see `score_tasks`.
        with_speed: time prefill and decoding, the models in turns; those of one shape once.
        tokenizer: for models that come without one.
        dtype: of models that are loaded here; see `load`.
        device: the same.
        trust_remote_code: the same.
        memory: bytes that the process may hold: the blocks of models that are loaded here are then read one at a time.
        progress: shows what is going on.

    Returns:
        One model: `{"schema_version", "model", "params", "block_params", "perplexity": {name: {"value", "tokens",
        "window", "interval"}} (where it is above that of guessing also "worse_than_guessing": the number of tokens to
        guess among), "tasks": {name: {"acc", "acc_norm", "n", "interval"}}, "speed", "memory"}`. A task whose
        rows all have the same answers to choose from (yes or no) has also `"majority": {"answer", "share"}`, which is
        the accuracy of always saying it, and `"said": {answer: share}`, what the model chose.
        A list: `{"schema_version", "models": [such objects], "comparisons"}`; each comparison sets a later model
        against the first: `{"model", "reference", "perplexity": {name: {"ratio", "interval"}}, "tasks": {name:
        {"difference", "interval", "difference_norm", "interval_norm"}}, "speed": {"prefill", "decode": {"ratio",
        "interval"}}}`. From three models on there are also `steps`: each model from the third on against the one before
        it, in the same form, without speed.
        Intervals are of 95 %: of texts by a bootstrap over windows; of accuracies Wilson's, their differences
        Newcombe's (paired); those of speed hold the middle half of the rounds. A list with one model gives one object,
        as on the command line.

    Raises:
        InputError: data, names or models that cannot be used, before the first model is loaded where possible; too
            little memory for one, before it is read.
    """
    progress, named = shown(progress), read_named(texts)
    sets = read_tasks(tasks)
    sources = list(models) if isinstance(models, (list, tuple)) else [models]
    if not sources:
        raise InputError("there is no model to evaluate; give at least one")
    if memory is not None and with_speed:
        raise InputError("a model that is read block by block has no speed to time; leave out speed or memory")
    options = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code, "memory": memory}
    found: list[Evidence] = []
    first: dict[str, Tensor] = {}
    for source in sources:
        model, own, name, directory = open_model(source, tokenizer, options)
        check_walk(model, f"eval of {name}", progress)
        evidence = Evidence(name, sum(p.numel() for p in model.parameters()), block_params(model))
        evidence.vocabulary = model.get_output_embeddings().weight.shape[0]
        cut = {
            title: token_windows(text, tokenizer_of(own, name), window=window, windows=windows)
            for title, text in named.items()
        }
        first = first or cut
        for title, ids in cut.items():
            if not torch.equal(ids, first[title]):
                raise InputError(
                    f"{name} and {found[0].model} split {title!r} into different tokens; evaluate them one by one"
                )
            evidence.perplexity[title] = perplexity(model, ids, progress=progress, name=f"{name}: {title}")
        if sets:
            evidence.tasks = score_tasks(
                model, tokenizer_of(own, name), sets, limit=limit, shots=shots, progress=progress
            )
        evidence.memory = memory_of(model, context=capped(model, window), directory=directory)
        found.append(evidence)
        del model  # one model at a time in memory, where they are loaded here
    if with_speed:
        # names may repeat, numbers do not
        opened = {str(number): open_model(source, tokenizer, options)[0] for number, source in enumerate(sources)}
        prompt = min(max(1, capped(model, 512 + 32) - 32) for model in opened.values())
        alike = _alike(opened)  # one shape has one speed: it is timed once
        rates = speed({name: opened[name] for name in dict.fromkeys(alike.values())}, prompt=prompt, progress=progress)
        for number, evidence in enumerate(found):
            evidence.speed = rates[alike[str(number)]]
    if len(found) == 1:
        return found[0].to_json()
    result = {
        "schema_version": SCHEMA_VERSION,
        "models": [evidence.to_json() for evidence in found],
        "comparisons": [compare(found[0], other) for other in found[1:]],
    }
    if len(found) > 2:
        steps = [compare(before, after) for before, after in itertools.pairwise(found[1:])]
        result["steps"] = [step | {"speed": {}} for step in steps]  # `speed` compares with the first model only
    return result


def compare(reference: Evidence, other: Evidence) -> dict[str, Any]:
    """`other` against `reference`: ratios of perplexity and speed, differences of accuracy, with paired intervals."""
    result: dict[str, Any] = {
        "model": other.model,
        "reference": reference.model,
        "perplexity": {},
        "tasks": {},
        "speed": {},
    }
    for name, mine in other.perplexity.items():
        ratio, interval = mine.ratio(reference.perplexity[name])
        result["perplexity"][name] = {"ratio": finite(ratio), "interval": finite_pair(interval)}
    for name, score in other.tasks.items():
        base = reference.tasks[name]
        cell: dict[str, Any] = {
            "difference": score.acc - base.acc,
            "interval": finite_pair(difference_interval(score.correct, base.correct)),
        }
        if score.correct_norm is not None and base.correct_norm is not None:
            cell["difference_norm"] = (score.acc_norm or 0.0) - (base.acc_norm or 0.0)
            cell["interval_norm"] = finite_pair(difference_interval(score.correct_norm, base.correct_norm))
        result["tasks"][name] = cell
    for part in ("prefill", "decode"):
        if ratio_of := other.speed.get(f"{part}_ratio"):
            result["speed"][part] = {"ratio": ratio_of["median"], "interval": [ratio_of["low"], ratio_of["high"]]}
    return result


def read_texts_named(source: str | Path | Texts) -> Texts:
    """Texts with their name: of a file its name without the format; `demo` is the test half of the demo text.

    Raises:
        InputError: see `read_texts`.
    """
    if isinstance(source, tuple):
        return source
    if str(source) == "demo":
        return "demo", demo_texts("test")
    return str(source) if str(source).startswith("hf:") else stem(source), read_texts(source)


def read_tasks(tasks: Sequence[str | Path | TaskSet]) -> list[TaskSet | str]:
    """Task sets of files and of the demo (all of them, or `demo:arc_easy`); harness names are left as they are.

    Raises:
        InputError: see `read_task`.
    """
    sets: list[TaskSet | str] = []
    for task in tasks:
        if isinstance(task, TaskSet):
            sets.append(task)
        elif str(task).partition(":")[0] == "demo":
            sets += demo_tasks([str(task).removeprefix("demo:")] if ":" in str(task) else None)
        elif Path(task).suffix in (".jsonl", ".gz") or isinstance(task, Path) or "/" in task:
            sets.append(read_task(task))
        else:
            sets.append(task)
    return sets


def block_params(model: Any) -> int:
    """Parameters of the decoder blocks (the largest list of modules): no embeddings, head or final norm."""
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]
    return max((sum(p.numel() for p in blocks.parameters()) for blocks in lists), default=0)


def _alike(models: Mapping[str, Any]) -> dict[str, str]:
    """For each model the first one that computes the same: of the same class, with matrices of the same sizes."""
    first: dict[Any, str] = {}
    found = {}
    for name, model in models.items():
        sizes = tuple((key, value.shape, value.dtype) for key, value in model.named_parameters())
        found[name] = first.setdefault((type(model), sizes), name)
    return found


def read_named(texts: Sequence[str | Path | Texts]) -> dict[str, list[str]]:
    """Texts by their names; see `read_texts_named`.

    Raises:
        InputError: two have one name.
    """
    named: dict[str, list[str]] = {}
    for name, read in map(read_texts_named, texts):
        if name in named:
            raise InputError(f"two texts are called {name!r}; rename one of the files")
        named[name] = read
    return named


def _perplexity_json(result: Perplexity) -> dict[str, Any]:
    cell = {
        "value": finite(result.value),
        "tokens": result.tokens,
        "window": result.window,
        "interval": finite_pair(result.interval),
    }
    return cell | ({"diverged": result.diverged} if result.diverged else {})
