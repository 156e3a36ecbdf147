"""`sentei watch`, from a log to the files: on a selection of two topics, one of which the pruned model lost."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.calling import Result, refused
from recover.recovering import damaged, loaded, pool, small_model, words
from sentei.files import read_json
from sentei.recover.select.select import reselect, select

Sentei = Callable[..., Result]
PATCHED = "sentei.recover.select.select._embedded"


def embedded(texts: Any, *_: Any, turned: int = 0, **__: Any) -> np.ndarray:
    """Unit vectors: one direction per topic (a third for words that the pool has not), and much of the text's own."""
    vectors = np.zeros((len(texts), 40), np.float32)
    for row, text in enumerate(texts):
        numbers = [int(word[1:]) for word in text.split() if word.startswith("w") and word[1:].isdigit()]
        vectors[row] = np.random.default_rng(zlib.crc32(text.encode())).normal(0, 0.12, 40)
        vectors[row, 2 if not numbers else int(np.mean(numbers) >= 64)] += 1
    vectors = np.roll(vectors, turned, axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("selected") / "sel"
    dense = small_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PATCHED, embedded)
        select(loaded(dense), loaded(damaged(dense)), pool(400), out, budget=0.5, clusters=2, filters=[])
    return out


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.watch.watch.embed", embedded)


def write(folder: Path, share: float = 0.5, count: int = 200, more: list[str] | None = None) -> Path:
    """A log in which topic b has a share."""
    rng = np.random.default_rng(5)
    texts = [words(rng, "b" if n < share * count else "a", int(rng.integers(2, 8))) for n in range(count)] + (
        more or []
    )
    rows = [{"id": str(n), "time": n, "request": {"prompt": text}} for n, text in enumerate(texts)]
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def watch(sentei: Sentei, run: Path, log: Path, out: Path, *more: object) -> Result:
    return sentei("watch", run, "--log", log, "--out", out, *more)


def test_unchanged_traffic(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    result = watch(sentei, selected, write(tmp_path), tmp_path / "w", "--format", "json")
    assert result.code == 0, result
    found = result.json()
    assert found == read_json(tmp_path / "w" / "watch.json") and next(iter(found)) == "schema_version"
    assert (found["drift"], found["mix"], found["changed"], found["recommendation"]) == (False, False, False, "nothing")
    assert found["foreign"] == [] and not any(row["alarm"] or row["examples"] for row in found["capabilities"])
    assert sum(row["then"]["share"] for row in found["capabilities"][:-1]) == pytest.approx(1)
    assert sum(row["now"]["requests"] for row in found["capabilities"][:-1]) == found["window"]["compared"]
    assert found["capabilities"][-1]["cluster"] is None and found["damage"] == "of the pruned model, before recovery"
    again = watch(sentei, selected, tmp_path / "log.jsonl", tmp_path / "again", "--format", "json").json()
    assert again == found, "the same log, the same verdict"


def test_requests_that_the_pool_has_not(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    new = [f"<script>alert('{word} & more')</script>" for word in "abcdefghijklmnopqrstuvwxyzäöüßéèàçñøåæ"]
    result = watch(sentei, selected, write(tmp_path, count=160, more=new), tmp_path / "w", "--format", "json")
    refused(result, "re-evaluate is recommended", str(tmp_path / "w" / "watch.html"), code=3)
    found = result.json()
    assert found["drift"] and found["recommendation"] == "re-evaluate"
    assert len(found["foreign"]) == 5 and all(row["text"].startswith("<script>") for row in found["foreign"])
    assert any("like no capability of the pool" in line for line in found["arithmetic"])
    page = (tmp_path / "w" / "watch.html").read_text()
    assert (
        "<script" not in page and "&lt;script&gt;alert(&#x27;" in page and "http" not in page.replace("http-equiv", "")
    )


def test_more_of_what_is_damaged_is_worth_tuning(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    more = watch(sentei, selected, write(tmp_path, 0.9), tmp_path / "more", "--format", "json")
    refused(more, "re-tune is recommended", code=3)
    found = more.json()
    assert not found["drift"] and found["mix"] and found["recommendation"] == "re-tune"
    (grown,) = [row for row in found["capabilities"] if row["now"]["share"] > row["then"]["share"] + 0.2]
    assert (
        grown["alarm"]
        and grown["p"] < 0.001
        and grown["damage"] == max(r["damage"] or 0 for r in found["capabilities"])
    )
    assert len(grown["examples"]) == 5
    less = watch(sentei, selected, write(tmp_path, 0.1), tmp_path / "less")
    assert less.code == 0 and "harmless" in less.out and "recommended: alert" in less.out
    assert (tmp_path / "less" / "watch.html").is_file()


def test_a_run_knows_the_damage_that_is_left(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    shutil.copytree(selected, tmp_path / "run" / "stages" / "04-select")
    names = read_json(selected / "selection.json")["clusters"]["names"]
    value = {"value": 0.5, "interval": None}
    change = {"rows": 9, "before": value, "after": value, "came_back": None, "interval": None}
    kept = {"kept": "recovered", "reason": "", "enough": 32, "rows": change, "text": change}
    rows = [
        {
            "name": name,
            "cluster": k,
            "pool_rows": 9,
            "selected": 1,
            "share": 0.5,
            **change,
            "after": {**value, "value": left},
        }
        for k, (name, left) in enumerate(zip(names, (0.25, 0.125), strict=True))
    ]
    compare = tmp_path / "run" / "stages" / "06-compare"
    compare.mkdir()
    table = {"capabilities": rows, "overall": change, "yardstick": kept, "notes": []}
    (compare / "capabilities.json").write_text(json.dumps(table))
    found = watch(sentei, tmp_path / "run", write(tmp_path), tmp_path / "w", "--format", "json").json()
    assert [row["damage"] for row in found["capabilities"]] == [0.25, 0.125, None]
    assert found["damage"] == "of the recovered model, on held-out rows of the pool"


def test_labels_say_whether_what_moved_is_answered_worse(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    log, labels = write(tmp_path, 0.1), tmp_path / "labels.jsonl"

    def labelled(bad: str) -> Result:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        topics = {row["id"]: "a" if int(row["request"]["prompt"].split()[0][1:]) < 64 else "b" for row in rows}
        labels.write_text("".join(json.dumps({"id": id, "label": topic != bad}) + "\n" for id, topic in topics.items()))
        return watch(sentei, selected, log, tmp_path / f"w{bad}", "--labels", labels, "--format", "json")

    refused(labelled("a"), "re-tune is recommended", code=3)
    fine = labelled("b")
    assert fine.code == 0 and fine.json()["recommendation"] == "alert"
    means = [row["labels"]["mean"] for row in fine.json()["capabilities"] if row["now"]["share"] > 0.5]
    assert means == [1.0] and fine.json()["labels"]["count"] == fine.json()["window"]["compared"]
    assert "mean label" in (tmp_path / "wb" / "watch.html").read_text()
    labels.write_text('{"id": "none", "label": 1}\n')
    refused(watch(sentei, selected, log, tmp_path / "no", "--labels", labels), "none of 1 labels is of a request")


def test_a_request_that_is_sent_again_and_again_is_one(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    log = write(tmp_path, more=["Zzz 17?", *[f"zzz  {n}?" for n in range(150)]])
    result = watch(sentei, selected, log, tmp_path / "w", "--format", "json")
    assert result.code == 0 and not result.json()["drift"] and result.json()["window"]["compared"] <= 201
    assert any("those that differ in more than numbers" in note for note in result.json()["notes"])


def test_selecting_again_keeps_the_reference(sentei: Sentei, selected: Path, tmp_path: Path) -> None:
    reselect(selected, tmp_path / "sel", budget=20)
    one, other = (path / "reference.safetensors" for path in (selected, tmp_path / "sel"))
    assert one.read_bytes() == other.read_bytes()
    assert watch(sentei, tmp_path / "sel", write(tmp_path), tmp_path / "w").code == 0


def test_what_is_refused(sentei: Sentei, selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, out = write(tmp_path), tmp_path / "w"
    refused(watch(sentei, tmp_path / "none", log, out), "none is no directory")
    (tmp_path / "empty").mkdir()
    refused(watch(sentei, tmp_path / "empty", log, out), "holds no selection", "section recover")
    shutil.copytree(selected, tmp_path / "old")
    (tmp_path / "old" / "reference.safetensors").unlink()
    refused(watch(sentei, tmp_path / "old", log, out), "has no reference.safetensors", "an earlier version")
    (tmp_path / "old" / "reference.safetensors").write_bytes(b"no")
    refused(watch(sentei, tmp_path / "old", log, out), "truncated or corrupt", "select again")
    refused(watch(sentei, selected, log, out, "--window", 300), "has 200 requests, --window 300 needs 300")
    assert watch(sentei, selected, log, out, "--window", 99).code == 2
    refused(watch(sentei, selected, log, selected), "is the input", "never replaced")
    log.write_text(log.read_text() + "{broken\n")
    refused(watch(sentei, selected, log, out, "--strict"), "log.jsonl:201 is not JSON")
    refused(watch(sentei, selected, write(tmp_path, count=60), out), "60 requests to judge", "at least 100")
    same = "".join(json.dumps({"id": n, "text": f"What is {n}?"}) + "\n" for n in range(300))
    log.write_text(same)
    refused(watch(sentei, selected, log, out), "300 requests to judge, of which 1 differ")
    write(tmp_path)
    monkeypatch.setattr("sentei.watch.watch.embed", lambda texts, **_: embedded(texts, turned=7))
    refused(watch(sentei, selected, log, out), "gives other vectors than when the pool was read", "select again")
    assert not out.exists()
