"""Scores are those of a direct computation: sum of log P(" " + choice | context), one request at a time."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from quiz import choices, partial, say
from sentei.data.tasks import TaskSet
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.inference import branches
from sentei.prove import harness
from sentei.prove.scored import Scored
from sentei.prove.tasks import score_tasks
from tiny import VARIANTS, make_plan, random_blocks, tiny_model


def log_p(loaded: Any, context: str, continuation: str) -> float:
    """The whole string is tokenised, as the harness does, and cut where the context ends."""
    whole = loaded.tokenizer(context + " " + continuation)["input_ids"]
    start = len(loaded.tokenizer(context)["input_ids"])
    with torch.no_grad():
        scores = loaded.model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(float(scores[i - 1, whole[i]]) for i in range(start, len(whole)))


def naive(loaded: Any, task: TaskSet) -> tuple[list[float], list[float]]:
    plain, by_length = [], []
    for row in task.rows:
        if task.partial:
            sums = [log_p(loaded, context, row["continuation"]) for context in row["contexts"]]
            lengths = [1] * len(sums)
        else:
            sums = [log_p(loaded, row["context"], choice) for choice in row["choices"]]
            lengths = [len(choice) for choice in row["choices"]]
        plain.append(float(max(range(len(sums)), key=sums.__getitem__) == row["label"]))
        means = [s / n for s, n in zip(sums, lengths, strict=True)]
        by_length.append(float(max(range(len(sums)), key=means.__getitem__) == row["label"]))
    return plain, by_length


def test_scores_equal_a_direct_computation(stories: Any) -> None:
    task, other = choices(40), partial(20)
    found = score_tasks(stories.model, stories.tokenizer, [task, other])
    result = found["choices"]
    correct, norm = naive(stories, task)
    assert result.correct == correct and result.correct_norm == norm and correct != norm
    assert result.acc == sum(correct) / 40 and result.acc_norm == sum(norm) / 40 and result.n == 40
    assert result.interval[0] <= result.acc <= result.interval[1] and result.metric == "acc"
    assert found["partial"].correct == naive(stories, other)[0]
    assert found["partial"].acc_norm is None and found["partial"].correct_norm is None


class Request:
    task_name = None

    def __init__(self, context: str, continuation: str) -> None:
        self.args = (context, continuation)


@pytest.mark.parametrize("start", ["", "once upon a time there was a little girl who had a big red ball and a dog. "])
@pytest.mark.parametrize("branch", [True, False])
def test_log_likelihoods_equal_a_direct_computation(
    stories: Any, start: str, branch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a beginning that all contexts share, choices in one row or each in its own."""
    shared = []
    if not branch:
        monkeypatch.setattr(branches, "branch_limit", lambda model: 0)
    whole = branches._shared
    monkeypatch.setattr(branches, "_shared", lambda rows: shared.append(found := whole(rows)) or found)
    rows = choices(30, seed=3, start=start).rows
    pairs = [(row["context"], choice) for row in rows for choice in row["choices"]]
    lm = harness.InMemoryLM(stories.model, stories.tokenizer)
    with torch.inference_mode():
        found = lm.loglikelihood([Request(context, " " + choice) for context, choice in pairs])
    assert [score for score, _ in found] == pytest.approx([log_p(stories, *pair) for pair in pairs], abs=1e-3)
    assert any(shared) == bool(start)
    assert stories.tokenizer.pad_token_id is None, "the harness pads its own copy"


def test_a_greedy_continuation_is_known(stories: Any) -> None:
    start = stories.tokenizer("Once upon a time", return_tensors="pt").input_ids
    text = stories.tokenizer.decode(
        stories.model.generate(start, max_new_tokens=8, do_sample=False, pad_token_id=0)[0][1:]
    )
    lm = harness.InMemoryLM(stories.model, stories.tokenizer)
    rest = text[len("Once upon a time") :]
    requests = [Request("Once upon a time", rest), Request("Once upon a time", " dog dog")]
    assert [greedy for _, greedy in lm.loglikelihood(requests)] == [True, False]
    rolled = lm.loglikelihood_rolling([type("R", (), {"args": (text,)})()], disable_tqdm=True)
    assert rolled[0] < 0


def test_long_contexts_lose_their_beginning_and_it_is_said(stories: Any) -> None:
    row = {"context": "a cat sat. " * 300, "choices": ["on it", "a dog and a ball"], "label": 0}
    with pytest.warns(UserWarning, match="2 requests exceeded the model's context of 512 tokens"):
        assert score_tasks(stories.model, stories.tokenizer, [TaskSet("long", [row])])["long"].n == 1
    row = {"context": "a", "choices": ["b", "a cat sat. " * 300], "label": 0}
    with pytest.raises(InputError, match=r"a continuation has \d+ tokens, expected 1 to 512"):
        score_tasks(stories.model, stories.tokenizer, [TaskSet("long", [row])])


def test_limit_and_shots(stories: Any) -> None:
    task = choices(12)
    plain = score_tasks(stories.model, stories.tokenizer, [task], limit=5)["choices"]
    assert plain.n == 5 and plain.correct == naive(stories, task)[0][:5]
    lm_rows = []
    whole = harness.InMemoryLM._rows

    class Spy(harness.InMemoryLM):
        def _rows(self, requests: Any) -> Any:
            lm_rows.extend(requests)
            return whole(self, requests)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(harness, "InMemoryLM", Spy)
        for sets in ([task], [partial(6)]):
            score_tasks(stories.model, stories.tokenizer, sets, limit=3, shots=2)
    assert lm_rows and all(request[0][0].count("\n\n") == 2 for request in lm_rows)


def test_the_same_answers_everywhere_show_their_majority(stories: Any) -> None:
    """Whatever the order of the choices is; with choices of their own, rows have no majority."""
    rng = random.Random(0)
    rows = []
    for number in range(20):
        options = ["yes", "no"] if number % 2 else ["no", "yes"]
        right = "yes" if number < 13 else "no"
        rows.append({"context": say(rng, 3, 12), "choices": options, "label": options.index(right)})
    found = score_tasks(stories.model, stories.tokenizer, [TaskSet("boolq", rows), choices(20), partial(8)])
    result = found["boolq"]
    assert result.answers is not None and result.answers.majority() == ("yes", 0.65)
    said = [max(row["choices"], key=lambda choice: log_p(stories, row["context"], choice)) for row in rows]
    assert result.answers.said == said and result.answers_json()["said"]["yes"] == said.count("yes") / 20
    assert result.acc == sum(a == b for a, b in zip(result.answers.right, said, strict=True)) / 20
    assert found["choices"].answers is None and found["partial"].answers is None
    assert found["choices"].answers_json() == {}


def test_names(stories: Any) -> None:
    with pytest.raises(InputError, match="two tasks are called 'choices'"):
        score_tasks(stories.model, stories.tokenizer, [choices(2), choices(2)])
    with pytest.raises(InputError, match="limit is 0"):
        score_tasks(stories.model, stories.tokenizer, [choices(2)], limit=0)
    with pytest.raises(InputError, match=r"unknown task 'hellaswagg' \(did you mean 'hellaswag'\?\)"):
        score_tasks(stories.model, stories.tokenizer, ["hellaswagg"])
    assert score_tasks(stories.model, stories.tokenizer, []) == {}


def test_rows_of_a_group_are_pooled_and_tasks_without_accuracy_are_refused() -> None:
    row = {"filter": "none", "metrics": ["acc"], "acc": 1.0}
    assert harness._pool("g", [[row], [{**row, "acc": 0.0}]]) == Scored([1.0, 0.0], None, "acc")
    strict = {"filter": "strict", "metrics": ["exact_match"], "exact_match": 1.0}
    assert harness._pool("g", [[strict, {**strict, "filter": "loose"}]]) == Scored([1.0], None, "exact_match")
    with pytest.raises(InputError, match="no accuracy per row"):
        harness._pool("w", [[{"filter": "none", "metrics": ["word_perplexity"], "word_perplexity": (1.0, 2)}]])


HARNESS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: {kind}
doc_to_text: context
doc_to_target: "{target}"
{more}
"""


def test_tasks_and_groups_of_the_harness_run_by_name(
    stories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools

    import lm_eval.tasks

    task = choices(8)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, task.rows)))
    choose = "doc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
    write = (
        "generation_kwargs: {until: ['.'], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
    )
    for name, kind, target, more in (
        ("quiz_a", "multiple_choice", "label", choose),
        ("quiz_b", "multiple_choice", "label", choose),
        ("say", "generate_until", "{{choices[0]}}", write),
    ):
        text = HARNESS.format(name=name, file=tmp_path / "rows.jsonl", kind=kind, target=target, more=more)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [quiz_a, quiz_b]\n")
    manager = functools.partial(lm_eval.tasks.TaskManager, include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = score_tasks(stories.model, stories.tokenizer, ["both", "say", task], limit=6)
    expected = naive(stories, task)[0][:6]
    assert found["choices"].correct == expected and found["both"].correct == expected * 2
    assert (found["say"].metric, found["say"].n) == ("exact_match", 6) and found["say"].answers is None
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="the data of task 'quiz_a' cannot be loaded"):
        score_tasks(stories.model, stories.tokenizer, ["quiz_a"])


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_family_scores_right_dense_and_pruned(variant: str, cut: bool, tokenizer: Any) -> None:
    """Branches and the shared beginning, against one plain forward pass per request; random logits are large."""
    model = tiny_model(variant)
    if cut:
        model = prune(model, make_plan(model, random_blocks(family_of(model.config).shape(model.config), seed=5)))
    rng = random.Random(0)
    start = rng.choices(range(3, 128), k=40)
    contexts = [start + rng.choices(range(3, 128), k=rng.randint(1, 9)) for _ in range(20)]
    requests = [(None, c, rng.choices(range(3, 128), k=rng.randint(1, 6))) for c in contexts for _ in range(3)]
    found = harness.InMemoryLM(model, tokenizer)._loglikelihood_tokens(requests)
    for (_, context, target), (score, _) in zip(requests, found, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([context + target])).logits[0].log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(target) - 1)
        assert score == pytest.approx(sum(float(table[i, t]) for i, t in zip(places, target, strict=True)), abs=2e-3)
