from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quiz import choices, partial
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.prove.evaluate import block_params, evaluate, read_tasks, read_texts_named
from sentei.report.figures import collect
from tiny import make_plan, random_blocks, tiny_model


@pytest.fixture(scope="module")
def story(stories: Any) -> str:
    ids = stories.model.generate(torch.tensor([[1]]), max_new_tokens=220, do_sample=False, pad_token_id=0)
    return stories.tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.fixture(scope="module")
def pruned(stories: Any) -> Any:
    shape = family_of(stories.model.config).shape(stories.model.config)
    return prune(stories.model, make_plan(stories.model, random_blocks(shape, seed=2)))


def test_one_model_gives_one_object(stories: Any, story: str, tmp_path: Path) -> None:
    (tmp_path / "lm.test.jsonl").write_text(json.dumps({"text": story}))
    (tmp_path / "quiz.val.jsonl").write_text("\n".join(map(json.dumps, choices(9).rows)))
    found = evaluate(
        stories,
        texts=[tmp_path / "lm.test.jsonl"],
        tasks=[str(tmp_path / "quiz.val.jsonl")],
        window=64,
        windows=3,
        limit=7,
    )
    keys = ["schema_version", "model", "params", "block_params", "perplexity", "tasks", "speed", "memory"]
    assert list(found) == keys and found["schema_version"] == 1 and found["speed"] == {}
    assert found["params"] == 260_032 and found["block_params"] == 260_032 - 512 * 64 - 64
    text = found["perplexity"]["lm.test"]
    assert (text["tokens"], text["window"]) == (3 * 63, 64)
    assert text["interval"][0] <= text["value"] <= text["interval"][1]
    assert list(found["tasks"]["quiz.val"]) == ["acc", "acc_norm", "n", "interval"]
    assert found["tasks"]["quiz.val"]["n"] == 7
    assert found["memory"]["weights_bytes"] == 4 * 260_032 and found["memory"]["disk_bytes"] > 1_000_000
    json.dumps(found, allow_nan=False)


def test_several_models_are_compared_in_pairs(stories: Any, pruned: Any, story: str) -> None:
    found = evaluate(
        [stories, pruned],
        texts=[("mine", [story])],
        tasks=[choices(20), partial(10)],
        window=32,
        with_speed=True,
        tokenizer=stories.tokenizer,
    )
    dense, cut = found["models"]
    assert cut["block_params"] == family_of(pruned.config).shape(pruned.config).block_params() < dense["block_params"]
    (pair,) = found["comparisons"]
    assert (pair["model"], pair["reference"]) == (cut["model"], dense["model"])
    text, task = pair["perplexity"]["mine"], pair["tasks"]["choices"]
    assert text["ratio"] == pytest.approx(cut["perplexity"]["mine"]["value"] / dense["perplexity"]["mine"]["value"])
    assert 1 < text["interval"][0] <= text["ratio"] <= text["interval"][1], "a cut at random hurts"
    assert task["difference"] == pytest.approx(cut["tasks"]["choices"]["acc"] - dense["tasks"]["choices"]["acc"])
    assert task["interval"][0] <= task["difference"] <= task["interval"][1] and "difference_norm" in task
    assert "difference_norm" not in pair["tasks"]["partial"]
    assert pair["speed"]["prefill"]["ratio"] == cut["speed"]["prefill_ratio"]["median"]
    json.dumps(found, allow_nan=False)


def test_a_third_model_is_also_set_against_the_second(stories: Any, pruned: Any, story: str) -> None:
    options: dict[str, Any] = {"texts": [("t", [story])], "tasks": [choices(6)], "window": 32}
    options["tokenizer"] = stories.tokenizer
    found = evaluate([stories, pruned, stories], with_speed=True, **options)
    assert len(found["comparisons"]) == 2 and found["comparisons"][1]["speed"]
    (step,) = found["steps"]
    assert step["speed"] == {}, "speed is measured against the first model only"
    (back,) = evaluate([pruned, stories], **options)["comparisons"]
    assert step == back
    assert step["perplexity"]["t"]["ratio"] == pytest.approx(1 / found["comparisons"][0]["perplexity"]["t"]["ratio"])
    assert "steps" not in evaluate([stories, pruned], **options)


def test_a_model_against_itself_does_not_differ(stories: Any, story: str) -> None:
    (pair,) = evaluate([stories, stories], texts=[("t", [story])], tasks=[choices(5)], window=32)["comparisons"]
    assert pair["perplexity"]["t"] == {"ratio": 1.0, "interval": [1.0, 1.0]}
    low, high = pair["tasks"]["choices"]["interval"]
    assert pair["tasks"]["choices"]["difference"] == 0.0 and -0.6 < low < -0.1 and high == -low, "five rows say little"


def test_paths_are_loaded(stories: Any, stories_dir: Path, story: str) -> None:
    loaded = evaluate(str(stories_dir), texts=[("t", [story])], window=32, dtype="float32")
    given = evaluate(stories, texts=[("t", [story])], window=32)
    assert loaded["perplexity"] == given["perplexity"] and loaded["memory"]["disk_bytes"] > 1_000_000


def test_divergence_is_null_and_named(stories: Any) -> None:
    model = tiny_model(vocab_size=512)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    found = evaluate(model, texts=[("t", ["a cat sat on a mat " * 20])], window=16, tokenizer=stories.tokenizer)
    cell = found["perplexity"]["t"]
    assert cell["value"] is None and cell["interval"] is None and "not finite" in cell["diverged"]
    json.dumps(found, allow_nan=False)


def test_bad_input_is_named_before_a_model_is_loaded(stories: Any, tmp_path: Path) -> None:
    for options, message in (
        ({"texts": [tmp_path / "none.jsonl"]}, "does not exist"),
        ({"tasks": ["none.jsonl"]}, "none.jsonl does not exist"),
        ({"texts": [("a", ["x"]), ("a", ["y"])]}, "two texts are called 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(["/no/such/model"], **options)
    with pytest.raises(InputError, match="no model to evaluate"):
        evaluate([])
    with pytest.raises(InputError, match="has no tokenizer"):
        evaluate(stories.model, texts=[("a", ["x"])])
    with pytest.raises(InputError, match=r"the text has \d+ tokens, one window needs 64"):
        evaluate(stories, texts=[("a", ["a cat"])], window=64)


def test_names_of_the_harness_are_left_as_they_are(tmp_path: Path) -> None:
    assert read_tasks(["piqa", choices(1)])[0] == "piqa"
    (tmp_path / "x.test.txt").write_text("hello")
    assert read_texts_named(tmp_path / "x.test.txt") == ("x.test", ["hello"])


@pytest.mark.parametrize("variant", ["llama", "llama-biases", "mistral", "qwen2", "qwen3"])
def test_block_params_are_those_of_the_shape(variant: str) -> None:
    model = tiny_model(variant)
    shape = family_of(model.config).shape(model.config)
    assert block_params(model) == shape.block_params()
    assert sum(p.numel() for p in model.parameters()) == shape.params()


def test_one_shape_is_timed_once(stories: Any, pruned: Any, story: str) -> None:
    found = evaluate([stories, pruned, pruned], with_speed=True, tokenizer=stories.tokenizer)
    dense, cut, healed = (model["speed"] for model in found["models"])
    assert cut == healed != dense, "pruned and recovered are one shape, and have one speed"


def test_a_perplexity_that_guessing_would_beat_is_told(stories: Any, story: str) -> None:
    broken = copy.deepcopy(stories.model)
    with torch.no_grad():
        broken.model.norm.weight.mul_(-20)
    options: dict[str, Any] = {"texts": [("t", [story])], "window": 32, "tokenizer": stories.tokenizer}
    assert "worse_than_guessing" not in evaluate(stories, **options)["perplexity"]["t"]
    found = evaluate(broken, **options)
    assert found["perplexity"]["t"]["worse_than_guessing"] == 512 < found["perplexity"]["t"]["value"]
    (figure,) = [figure for figure in collect(found) if figure.group == "perplexity"]
    assert figure.samples.endswith(", worse than guessing among 512 tokens")
