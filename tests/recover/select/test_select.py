from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recover.recovering import by_topic, damaged, loaded, pool, shaken, small_model
from sentei.errors import InputError
from sentei.models.load import Loaded
from sentei.progress import Progress
from sentei.recover.select import damage, selection
from sentei.recover.select.select import reselect, select
from sentei.recover.select.selection import Selection
from sentei.report.selection import write_page

FILES = {".sentei.json", "pool.jsonl.gz", "clusters.safetensors", "rejections.json", "scores", "reference.safetensors"}
FILES |= {"selected.jsonl", "manifest.jsonl", "selection.json", "summary.json"}


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.select.select._embedded", by_topic)


@pytest.fixture(scope="module")
def dense() -> Loaded:
    return loaded(small_model(), "dense")


@pytest.fixture(scope="module")
def pruned(dense: Loaded) -> Loaded:
    return loaded(damaged(shaken(dense.model, 0.01)), "pruned")


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def make(dense: Loaded, pruned: Loaded, out: Path, rows: Any = None, **options: Any) -> Selection:
    usual = {"budget": 10, "filters": [], "clusters": 2}
    return select(dense, pruned, pool() if rows is None else rows, out, **{**usual, **options})


def test_the_budget_follows_planted_damage(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    made = make(dense, pruned, tmp_path / "out")
    manifest = lines(tmp_path / "out" / "manifest.jsonl")
    of = {topic: Counter(row["cluster"] for row in manifest if row["id"][0] == topic) for topic in "ab"}
    assert len(of["a"]) == len(of["b"]) == 1 and of["a"] != of["b"], "topics are clusters"
    hurt = {topic: np.mean([row["jsd"] for row in manifest if row["id"][0] == topic]) for topic in "ab"}
    assert hurt["b"] > 5 * hurt["a"]
    chosen = [row["id"] for row in lines(tmp_path / "out" / "selected.jsonl")]
    assert sum(id.startswith("b") for id in chosen) >= 8 and len(chosen) == 10
    random = reselect(made, tmp_path / "random", budget=10, strategy="random")
    assert sum(row["id"].startswith("b") for row in lines(random.directory / "selected.jsonl")) < 8
    other = loaded(damaged(dense.model, "a"), "other")  # and the other way round
    make(dense, other, tmp_path / "other")
    assert all(row["id"].startswith("a") for row in lines(tmp_path / "other" / "selected.jsonl"))


def test_a_selection_holds_the_rows_and_a_reason_for_every_row(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    rows = pool()
    rows[3] = {**rows[3], "completion": " "}
    rows += [{**rows[0], "id": "again"}, {**rows[5]}]
    made = make(dense, pruned, tmp_path / "out", rows, filters=["empty", "duplicate"], budget="25%")
    assert {path.name for path in made.directory.iterdir()} == FILES
    selected, manifest = (lines(made.directory / f"{name}.jsonl") for name in ("selected", "manifest"))
    assert selected == [rows[i] for i in made.chosen] and len(selected) == round(0.25 * 42)
    assert [row["id"] for row in manifest] == [*(row["id"] for row in rows[:-1]), "b5#41"]
    assert all(row["reason"] and row["decision"] in ("selected", "left out", "rejected") for row in manifest)
    assert [i for i, row in enumerate(manifest) if row["decision"] == "selected"] == sorted(made.chosen)
    assert "empty: " in manifest[3]["reason"] and manifest[3]["decision"] == "rejected"
    assert {manifest[40]["decision"], manifest[41]["decision"]} == {"rejected"}
    for row in manifest:
        if row["decision"] == "selected":
            assert f"in cluster {row['cluster']}, within the cluster's share" in row["reason"]
    write_page(made.directory)
    html = (made.directory / "selection.html").read_text()
    assert "filters: empty, duplicate" in html and "Selection of 10 rows" in html
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_reselection_is_the_selection_at_that_budget(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    """Also after the directory moved, and without what is not given again."""
    choice = {"temperature": 2.0, "weights": {0: 3.0}, "minimum": 1, "seed": 4, "filters": ["empty"]}
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in pool()]  # without ids
    make(dense, pruned, tmp_path / "first", rows, budget=20, **choice)
    direct = make(dense, pruned, tmp_path / "direct", rows, budget="100 tokens", **choice)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "first", tmp_path / "elsewhere" / "moved")
    again = reselect(moved, tmp_path / "again", budget="100 tokens")
    wanted, found = contents(direct.directory), contents(again.directory)
    assert wanted.keys() == found.keys()
    assert wanted["selection.json"].decode() == found["selection.json"].decode()
    assert [name for name in wanted if wanted[name] != found[name]] == []
    shutil.rmtree(tmp_path / "elsewhere")
    assert reselect(again, tmp_path / "third", budget=3).about["budget"]["selected"] == 3


def test_another_strategy_brings_its_own_filters(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    rows = pool()
    rows += [{**row, "id": f"copy{i}"} for i, row in enumerate(rows[:10])]
    made = make(dense, pruned, tmp_path / "auto", rows, filters=None)
    assert sum("duplicate" in row["reason"] for row in lines(made.directory / "manifest.jsonl")) == 10
    random = reselect(made, tmp_path / "random", budget="100%", strategy="random")
    assert random.about["filters"] == [] and len(random.chosen) == 50
    back = reselect(random, tmp_path / "back", budget=10, strategy="auto")
    assert back.chosen == made.chosen and back.about["filters"] == made.about["filters"]
    without = reselect(made, tmp_path / "without", budget="100%", filters=[])
    assert len(without.chosen) == 50


@pytest.mark.parametrize("strategy", ["paser", "uniform", "random", "length", "perplexity", "ifd", "ids", "all"])
def test_every_strategy_selects(dense: Loaded, pruned: Loaded, tmp_path: Path, strategy: str) -> None:
    ids = {"ids": [f"{'ab'[i % 2]}{i}" for i in range(30, 4, -1)]} if strategy == "ids" else {}
    made = make(dense, pruned, tmp_path / "out", strategy=strategy, filters=None, **ids)
    selected = lines(made.directory / "selected.jsonl")
    assert len(selected) == (40 if strategy == "all" else 10) and made.about["filters"] == []
    reasons = [row["reason"] for row in lines(made.directory / "manifest.jsonl")]
    assert any("in cluster" in reason for reason in reasons) is (strategy in ("paser", "uniform"))
    if strategy == "ids":
        assert [row["id"] for row in selected] == ids["ids"][:10]
        assert reselect(made, tmp_path / "again", budget=10).chosen == made.chosen
    if strategy != "ifd":
        with pytest.raises(InputError, match="select from the models with it"):
            reselect(made, tmp_path / "ifd", budget=3, strategy="ifd")


def test_a_contradiction_is_told_by_the_dense_model(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    """Of two answers to one question, the one that the dense model itself would give stays, wherever it is."""
    tokenizer, rows = dense.tokenizer, pool()
    with torch.no_grad():
        for at, question in ((4, "w10 w11 w12"), (9, "w20 w21 w22 w23")):
            ids = tokenizer(question, return_tensors="pt")["input_ids"]
            start = ids.shape[1]
            for _ in range(6):
                ids = torch.cat([ids, dense.model(ids).logits[:, -1, 3:].argmax(1, keepdim=True) + 3], 1)
            likely = " ".join(f"w{int(i)}" for i in ids[0, start:])
            rows[at] = {"prompt": question, "completion": likely, "id": f"true{at}"}
            rows[20 - at] = {"prompt": f" {question.upper().lower()} ", "completion": "w99 w98 w97 w96 w95 w94"}
            rows[20 - at]["id"] = f"false{at}"
    make(dense, pruned, tmp_path / "out", rows, filters=["contradiction"])
    found = {row["id"]: row for row in lines(tmp_path / "out" / "manifest.jsonl")}
    assert {id for id, row in found.items() if row["decision"] == "rejected"} == {"false4", "false9"}
    assert "whose answer the dense model finds likeliest" in found["false9"]["reason"]


def test_a_wanted_capability_gets_the_budget(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    made = make(dense, pruned, tmp_path / "out", filters=None, target=["w3 w4", "w9 w20 w30"])
    assert all(row["id"].startswith("a") for row in lines(made.directory / "selected.jsonl"))
    assert made.about["filters"][-1] == "off-target"
    assert reselect(made, tmp_path / "again", budget=10).chosen == made.chosen
    random = reselect(made, tmp_path / "random", budget=10, strategy="random")
    with pytest.raises(InputError, match="'off-target' needs a target and the embeddings"):
        reselect(random, tmp_path / "x", budget=10, strategy="auto")


def test_a_killed_selection_goes_on_to_the_same_bytes(
    dense: Loaded, pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "SHARD_TOKENS", 100)
    monkeypatch.setattr(damage, "by_length", lambda lengths, tokens: [[i] for i in range(len(lengths))])
    whole = make(dense, pruned, tmp_path / "a" / "out")
    real, calls = damage._score_batch, []

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(damage, "_score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        make(dense, pruned, tmp_path / "b" / "out")
    (partial,) = (tmp_path / "b").iterdir()
    assert partial.name.startswith(".out.partial-") and not (tmp_path / "b" / "out").exists()
    done = len(calls)
    again = make(dense, pruned, tmp_path / "b" / "out")
    assert len(calls) - done < 40, "what was scored is not scored again"
    assert contents(again.directory) == contents(whole.directory)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["out"]


def test_other_settings_do_not_go_on_with_these_scores(
    dense: Loaded, pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bf16 = loaded(copy.deepcopy(pruned.model).to(torch.bfloat16), "pruned")
    with monkeypatch.context() as patch:
        patch.setattr("sentei.recover.select.write.write_scored", full)
        for other, options in ((pruned, {}), (bf16, {}), (pruned, {"length": 9}), (pruned, {"top": 0})):
            with pytest.raises(InputError, match=r"cannot write .*out: No space left on device; free space or choose"):
                make(dense, other, tmp_path / "out", **options)
    assert len(list(tmp_path.iterdir())) == 4 and not (tmp_path / "out").exists()
    make(dense, pruned, tmp_path / "out")


@pytest.mark.parametrize("what", ["save_file", "write_json"])
def test_a_full_disk_leaves_no_half_selection(
    dense: Loaded, pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from safetensors import SafetensorError

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="No space left") as error,
    ):
        patch.setattr(selection, what, full)
        make(dense, pruned, tmp_path / "out")
    assert str(error.value).startswith(f"cannot write {tmp_path / 'out'}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [".out.partial"]


def test_what_a_person_should_know_is_said_and_is_on_the_page(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    stranger = loaded(small_model("qwen3", hidden_size=48, intermediate_size=90), "stranger")
    for other, words in (
        (
            stranger,
            "stranger may be no pruning of dense: its architecture is qwen3, not llama; its hidden size is 48, not",
        ),
        (dense, "dense has the weights of dense: there is no damage to find"),
    ):
        said = Said()
        made = make(dense, other, tmp_path / other.name, length=9, progress=said)
        note = next(line for line in said.lines if words in line)
        write_page(made.directory)
        page = (made.directory / "selection.html").read_text()
        assert note.strip() in page and "rows are longer than 9 tokens and were cut there" in page
        assert len(made.chosen) == 10 and any("longer than 9 tokens" in line for line in said.lines)
    quiet = Said()
    make(dense, pruned, tmp_path / "quiet", progress=quiet)
    assert [line for line in quiet.lines if not line.startswith("pool: ")] == []
    short = loaded(small_model(max_position_embeddings=7), "short")
    said = Said()
    cut = make(short, pruned, tmp_path / "short", progress=said)
    assert "are longer than 7 tokens and were cut there; the models see no more" in said.lines[1]
    assert max(row["tokens"] for row in lines(cut.directory / "manifest.jsonl")) == 7


def test_what_cannot_be_selected_is_refused_before_the_models_read(
    dense: Loaded, pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def read(*_: Any) -> None:
        raise AssertionError("a model has read")

    monkeypatch.setattr(damage, "_score_batch", read)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")))
    for message, models_, options in (
        (
            "the budget is 41 rows, the pool has 40 rows that may be selected; lower --budget, or give a",
            {},
            {"budget": 41},
        ),
        ("the budget is 9,999 tokens, the pool has", {}, {"budget": "9999 tokens"}),
        ("budget '2.5' is not understood", {}, {"budget": 2.5}),
        (r"unknown strategy 'atuo' \(did you mean 'auto'\?\)", {}, {"strategy": "atuo"}),
        (r"unknown filter 'emty' \(did you mean 'empty'\?\)", {}, {"filters": ["emty"]}),
        ("'off-target' needs texts of the wanted capability; give some with --target", {}, {"filters": ["off-target"]}),
        ("pruned have different tokenizers", {"pruned": Loaded(pruned.model, other, "pruned", "")}, {}),
        ("dense has no tokenizer", {"dense": Loaded(dense.model, None, "dense", "")}, {}),
        (
            r"the token 'w1\d\d', number 1\d\d, .* embedding has 99 rows and its tokenizer 128",
            {"pruned": loaded(small_model(vocab_size=99), "pruned")},
            {},
        ),
        ("is empty: there is no row", {}, {"rows": []}),
    ):
        with pytest.raises(InputError, match=message):
            make(**{"dense": dense, "pruned": pruned, "out": tmp_path / "out", **models_, **options})
    assert not list(tmp_path.iterdir())


def test_all_rows_rejected(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    rows = [{"prompt": "w5", "completion": ""} for _ in range(5)]
    with pytest.raises(
        InputError, match="no row has an answer to learn from; 5 rows train nothing: 5 × there is no answer with"
    ):
        make(dense, pruned, tmp_path / "out", rows, filters=["empty"], budget=1)
    with pytest.raises(InputError, match=r"the budget is 3 rows, the pool has 2 .*\(3 of 5 rows are rejected"):
        make(dense, pruned, tmp_path / "out", rows[:3] + pool(2), filters=["empty"], budget=3)
    assert not (tmp_path / "out").exists()


def test_odd_rows_survive_the_way_to_disk(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    import datetime

    rows = pool()
    rows[1] |= {"when": datetime.date(2024, 2, 1), "line": "a\u2028b", "id": None}
    made = make(dense, pruned, tmp_path / "out", rows, budget="100%")
    selected = lines(made.directory / "selected.jsonl")
    odd = next(row for row in selected if row["id"] is None)
    assert odd == rows[1] | {"when": "2024-02-01"}
    assert reselect(made, tmp_path / "again", budget=3).scored().pool.rows[1].id == "1"


def test_directories_that_hold_no_selection(dense: Loaded, pruned: Loaded, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no selection \(selection\.json is missing\); `sentei select` makes"):
        reselect(tmp_path, tmp_path / "x", budget=3)
    made = make(dense, pruned, tmp_path / "out")
    with pytest.raises(InputError, match="is the selection that is read; choose another --out"):
        reselect(made, made.directory, budget=3, overwrite=True)
    with pytest.raises(InputError, match="exists and is not empty"):
        make(dense, pruned, made.directory)
    (made.directory / "pool.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"is not complete: pool\.jsonl\.gz is missing; copy the whole directory"):
        Selection.load(made.directory)
    (made.directory / "selection.json").write_text('{"schema_version": 9}')
    with pytest.raises(InputError, match="has schema_version 9, expected 1"):
        Selection.load(made.directory)


def test_the_installed_embedder_finds_the_topics(
    dense: Loaded, pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way on real language, with the packaged MiniLM."""
    from sentei.recover.select.embed import embed

    try:
        embed(["x"])
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("sentei.recover.select.select._embedded", lambda texts, *_: embed(list(texts)))
    cook = [
        f"How do I cook {dish} with {spice}?"
        for dish in ("rice", "soup", "eggs", "fish")
        for spice in ("salt", "pepper", "herbs")
    ]
    code = [
        f"Write a Python function that {what} a {thing}."
        for what in ("sorts", "reverses", "copies", "prints")
        for thing in ("list", "string", "dictionary")
    ]
    rows = [{"prompt": p, "completion": "w5 w6"} for pair in zip(cook, code, strict=True) for p in pair]
    make(dense, pruned, tmp_path / "out", rows, budget=4)
    clusters = [row["cluster"] for row in lines(tmp_path / "out" / "manifest.jsonl")]
    assert len(set(clusters[::2])) == len(set(clusters[1::2])) == 1 and clusters[0] != clusters[1]


def test_the_page_says_in_words_why_there_are_so_many_clusters(dense, pruned, tmp_path):
    made = make(dense, pruned, tmp_path / "sel")
    write_page(made.directory)
    notes = (tmp_path / "sel" / "selection.html").read_text().split("<h2>Notes</h2>")[1]
    assert "2 clusters: as asked for" in notes and "{" not in notes
    prompts = {row.prompt for row in made.scored().pool.rows}
    assert len(made.about["clusters"]["typical"]) == 2 and set(made.about["clusters"]["typical"]) <= prompts
