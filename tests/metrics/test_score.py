"""Prepared tasks against the harness, against plain forward passes, and against plain greedy decoding."""

from __future__ import annotations

import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quiz import WORDS, choices, say
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import TaskRow, read_rows
from sentei.data.tasks import TaskSet
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.inference.greedy import Lines, write
from sentei.metrics import score as scoring
from sentei.metrics.score import prepare
from sentei.progress import Progress
from sentei.prove.tasks import score_tasks
from tiny import VARIANTS, make_plan, random_blocks, tiny_model, tiny_tokenizer


def row(context: str, target: str, some: tuple[str, ...] = (), label: int = -1, *aliases: str) -> TaskRow:
    return TaskRow("0", context, some, label, target, aliases, {"target": target.strip()}, "f:1")


def chosen(task: TaskSet) -> list[TaskRow]:
    made = []
    for r in task.rows:
        some = tuple(f" {choice}" for choice in r["choices"])
        made.append(row(r["context"], some[r["label"]], some, r["label"]))
    return made


@pytest.mark.parametrize("start", ["", "once upon a time there was a little girl who had a big red ball and a dog. "])
def test_choices_score_as_in_the_harness(stories: Any, start: str) -> None:
    task = choices(60, seed=2, start=start)
    result = score_tasks(stories.model, stories.tokenizer, [task])["choices"]
    outcome = prepare(chosen(task), stories.tokenizer, "acc").score(stories.model)
    by_length = prepare(chosen(task), stories.tokenizer, "acc_norm").score(stories.model)
    assert outcome.score.tolist() == result.correct and by_length.score.tolist() == result.correct_norm
    assert result.correct != result.correct_norm and (outcome.weight == 1).all()
    # the right one has the highest share, where it is right: more than 1 / choices of the softmax
    shares, sizes = np.exp(-outcome.loss), np.array([len(r["choices"]) for r in task.rows])
    assert (shares[outcome.score == 1] > 1 / sizes[outcome.score == 1] - 1e-9).all() and (outcome.loss >= 0).all()
    assert (shares[outcome.score == 0] <= 0.5 + 1e-9).all()


def test_the_loss_of_choices_is_their_cross_entropy(stories: Any) -> None:
    context, some = "once upon a time", (" there was", " the cat", " dog dog dog")

    def log_p(choice: str) -> float:
        whole = stories.tokenizer(context + choice)["input_ids"]
        start = len(stories.tokenizer(context)["input_ids"])
        with torch.inference_mode():
            table = stories.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return float(sum(table[i - 1, whole[i]] for i in range(start, len(whole))))

    sums = torch.tensor([log_p(choice) for choice in some])
    rows = [row(context, some[1], some, 1)]
    loss = prepare(rows, stories.tokenizer, "acc").score(stories.model).loss[0]
    assert loss == pytest.approx(-float(sums.log_softmax(0)[1]), abs=1e-3)
    loss = prepare(rows, stories.tokenizer, "acc_norm").score(stories.model).loss[0]
    means = sums / torch.tensor([9, 7, 11])  # characters, without the space
    assert loss == pytest.approx(-float(means.log_softmax(0)[1]), abs=1e-4)


def test_many_choices_cost_little_more_than_the_contexts(stories: Any) -> None:
    """27 intents of several tokens: the naive way reads 27 times the contexts."""
    rng = random.Random(0)
    some = tuple(sorted({f" {say(rng, 2, 4)}" for _ in range(40)}))[:27]
    rows = [row(say(rng, 20, 30), some[i % 27], some, i % 27) for i in range(12)]
    prepared = prepare(rows, stories.tokenizer, "acc")
    read: list[int] = []
    hook = stories.model.model.embed_tokens.register_forward_hook(lambda m, i, o: read.append(i[0].numel()))
    prepared.score(stories.model)
    hook.remove()
    naive = sum(len(context) + len(target) - 1 for context, target in prepared._requests)
    assert sum(read) < naive / 6


def test_parts_add_up_to_the_whole_and_models_can_be_switched(stories: Any) -> None:
    prepared = prepare(chosen(choices(30)), stories.tokenizer, "acc")
    whole = prepared.score(stories.model)
    parts = [prepared.score(stories.model, start, stop) for start, stop in ((0, 7), (7, 8), (8, 30))]
    assert np.allclose(np.concatenate([part.loss for part in parts]), whole.loss, atol=1e-4)
    assert (np.concatenate([part.score for part in parts]) == whole.score).all() and len(prepared) == 30
    other = tiny_model("llama", vocab_size=stories.model.config.vocab_size)
    assert not np.allclose(prepared.score(other).loss, whole.loss, atol=0.1)
    assert np.array_equal(prepared.score(stories.model).loss, whole.loss), "nothing of another model stays"
    assert len(prepared._layouts) == 5, "laid out once per range, and again for another context length"
    for start, stop in ((3, 3), (-1, 2), (0, 31)):
        with pytest.raises(ValueError, match="of 30 are none"):
            prepared.score(stories.model, start, stop)


def greedy(model: Any, ids: list[int], limit: int, lines: Lines) -> list[int]:
    """One context, no cache, no padding."""
    said: list[int] = []
    while len(said) < limit and not (said and lines.ends(said[-1])):
        with torch.inference_mode():
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_answers_are_what_plain_greedy_decoding_says(variant: str, cut: bool) -> None:
    model, lines = tiny_model(variant), Lines(tiny_tokenizer())
    if cut:
        model = prune(model, make_plan(model, random_blocks(family_of(model.config).shape(model.config), seed=5)))
    model.generation_config.repetition_penalty = 9.0  # nothing of it is used
    rng = random.Random(0)
    contexts = [rng.choices(range(3, 128), k=rng.randint(1, 20)) for _ in range(8)]

    def ends(token: int) -> bool:
        return lines.ends(token) or token % 7 == 0

    with torch.inference_mode():
        answers = write(model, contexts, limit=6, ends=ends)
    for context, answer in zip(contexts, answers, strict=True):
        said = greedy(model, context, 6, lines)
        stop = next((at + 1 for at, token in enumerate(said) if ends(token)), 6)
        assert answer == said[:stop]
    if not variant.startswith("gpt"):  # tiny ones say one token for ever
        assert len({len(answer) for answer in answers}) > 1


Told = tuple[list[TaskRow], list[list[int]]]


@pytest.fixture(scope="module")
def told(stories: Any) -> Told:
    """Contexts, and as targets what the model says there up to a line break; every third one is spoilt."""
    lines = Lines(stories.tokenizer)
    rng = random.Random(1)
    rows, said = [], []
    for number in range(6):
        context = f"{say(rng, 2, 6)}. Once there was a {rng.choice(WORDS)}"
        tokens = greedy(stories.model, stories.tokenizer(context)["input_ids"], 60, lines)
        target = stories.tokenizer.decode(stories.tokenizer(context)["input_ids"] + tokens, skip_special_tokens=True)
        target = target[len(context) :].partition("\n")[0]
        rows.append(row(context, f"{target} dog" if number % 3 == 2 else target))
        said.append(tokens)
    return rows, said


def test_an_exact_match_is_what_greedy_decoding_says(stories: Any, told: Told) -> None:
    """One pass instead of one per token; a story that does not end within the answer is no match."""
    lines = Lines(stories.tokenizer)
    rows, said = told
    ended = [lines.only_ends(tokens[-1]) for tokens in said]
    outcome = prepare(rows, stories.tokenizer, "exact_match").score(stories.model)
    expected = [float(end and at % 3 != 2) for at, end in enumerate(ended)]
    assert outcome.score.tolist() == expected and sum(expected) >= 3
    cut = [row(r.context, r.target[: len(r.target) // 2].rpartition(" ")[0]) for r in rows]
    assert prepare(cut, stories.tokenizer, "exact_match").score(stories.model).score.sum() == 0, "it goes on"


def test_a_tiny_model_that_stops_is_matched(tokenizer: Any) -> None:
    """Of a random model's greedy words, exactly those up to its end token match."""
    model = tiny_model("qwen3")
    with torch.no_grad():  # it likes to end
        model.lm_head.weight[2] += 0.5 * model.lm_head.weight[3:].mean(0) + 0.3
    lines, matched = Lines(tokenizer), 0
    for seed in range(40):
        context = random.Random(seed).choices(range(3, 128), k=5)
        said = greedy(model, context, 12, lines)
        words = [" ".join(f"w{t}" for t in tokens) for tokens in (context, said[:-1], said)]
        if len(said) < 2 or not lines.ends(said[-1]) or min(said[:-1]) < 3:
            continue
        matched += 1
        rows = [row(words[0], f" {words[1]}"), row(words[0], f" {words[1]} w9"), row(words[0], " w5")]
        outcome = prepare(rows, tokenizer, "exact_match").score(model)
        assert outcome.score[:2].tolist() == [1, 0] and outcome.score[2] == (said[:-1] == [5])
        f1 = prepare(rows, tokenizer, "f1").score(model)
        assert f1.score[0] == 1 and 0 < f1.score[1] < 1 and np.allclose(f1.loss, outcome.loss)
    assert matched >= 3


class Stages(Progress):
    def __init__(self) -> None:
        self.seen: dict[str, float | None] = {}

    def stage(self, name: str, total: float | None = None, unit: str = "") -> Any:
        self.seen[name] = total
        return super().stage(name, total, unit)


def test_written_answers_are_judged(stories: Any, told: Told, tmp_path: Path) -> None:
    lines = Lines(stories.tokenizer)
    rows, said = told
    texts = [lines.text(tokens) for tokens in said]
    (tmp_path / "judging.py").write_text("def same(prediction, row): return len(prediction)")
    metric = f"python:{tmp_path / 'judging.py'}:same"
    stages = Stages()
    prepared = prepare(rows, stories.tokenizer, metric, max_new_tokens=60)
    outcome = prepared.score(stories.model, progress=stages)
    assert outcome.score.tolist() == [float(len(text)) for text in texts]
    exact = int(prepare(rows, stories.tokenizer, "exact_match").score(stories.model).score.sum())
    assert stages.seen == {"score": 6, "write": 6 - exact}, "what is known to be the target is not written"
    short = prepare(rows, stories.tokenizer, metric, max_new_tokens=3).score(stories.model, 2, 5)
    assert short.score.tolist() == [float(len(lines.text(tokens[:3]))) for tokens in said[2:5]]
    aliased = [row(r.context, " nothing", (), -1, text) for r, text in zip(rows, texts, strict=True)]
    found = prepare(aliased, stories.tokenizer, "exact_match", max_new_tokens=60).score(stories.model)
    assert found.score.tolist() == [1.0] * 6
    (tmp_path / "judging.py").write_text("def same(prediction, row): return None")
    with pytest.raises(InputError, match="f:1: the metric same returned None"):
        prepare(rows, stories.tokenizer, metric).score(stories.model)
    with pytest.raises(InputError, match="answers of up to 512 tokens leave no room in the model's context of 512"):
        prepare(rows, stories.tokenizer, "f1", max_new_tokens=512).score(stories.model)


def test_perplexity_is_that_of_all_target_tokens(stories: Any) -> None:
    rows = [
        row("", "Once upon a time there was a cat."),
        row("the cat", " sat"),
        row("a big", " red ball was very happy"),
    ]
    prepared = prepare(rows, stories.tokenizer, "perplexity")
    outcome = prepared.score(stories.model)
    nll = count = 0.0
    for r in rows:
        ids = stories.tokenizer(r.context + r.target)["input_ids"]
        start = len(stories.tokenizer(r.context)["input_ids"]) if r.context else 1
        with torch.inference_mode():
            table = stories.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll -= float(sum(table[i - 1, ids[i]] for i in range(start, len(ids))))
        count += len(ids) - start
    assert prepared.metric.aggregate(outcome.score, outcome.weight) == pytest.approx(np.exp(nll / count), rel=1e-4)
    assert outcome.weight.sum() == count and np.array_equal(outcome.score, outcome.loss)


@pytest.mark.parametrize(
    ("metric", "score"), [("acc", 0), ("acc_norm", 0), ("exact_match", 0), ("f1", 0), ("perplexity", np.inf)]
)
def test_a_model_that_diverged_is_never_right(metric: str, score: float, tokenizer: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    some = (" w3", " w4 w5")
    outcome = prepare([row("w9 w8", some[0], some, 0), row("w7", some[1], some, 1)], tokenizer, metric).score(model)
    assert (outcome.score == score).all() and (outcome.loss == np.inf).all()


def test_long_contexts_are_cut_and_it_is_said(tokenizer: Any) -> None:
    rows = [row("w3 " * 300 + "w4", " w5 w6", (" w5 w6", " w7"), 0)]
    prepared = prepare(rows, tokenizer, "acc")
    with pytest.warns(UserWarning, match="2 contexts exceeded the model's context of 256 tokens"):
        prepared.score(tiny_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared.score(tiny_model())  # said once


def test_what_cannot_be_prepared(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="there are no rows to score"):
        prepare([], tokenizer, "acc")
    with pytest.raises(InputError, match="f:1: acc compares choices, and this row has 0"):
        prepare([row("w3", " w4")], tokenizer, "acc")
    with pytest.raises(InputError, match=re.escape("f:1: a continuation of this row has no tokens of its own")):
        prepare([row("w3", " ")], tokenizer, "perplexity")


def test_a_task_file_is_scored(stories: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            f'{{"text": "the {animal} ran. the {animal} ran", "what": "{animal}"}}\n'
            for animal in ("cat", "dog", "cat")
        )
    )
    (tmp_path / "t.yaml").write_text("name: t\ndata: rows.jsonl\ninput: '{text}. the'\ntarget: ' {what}'\n")
    task = TaskFile.load(tmp_path / "t.yaml")
    prepared = scoring.prepare(read_rows(task), stories.tokenizer, task.metric)
    assert prepared.metric.aggregate(prepared.score(stories.model).score) == 1.0, "a story goes on with what it has"
