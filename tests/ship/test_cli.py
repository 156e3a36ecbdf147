"""`sentei export` and `sentei parity` on the command line: what they print, exit codes, one line per mistake."""

from __future__ import annotations

import json

import pytest

from cli.calling import refused
from cli.conftest import sentei  # noqa: F401
from sentei.models.save import save
from ship.shipping import TEXTS, randomly_cut


@pytest.fixture
def place(tmp_path):
    model = randomly_cut("llama", bias=True)
    save(model.model, tmp_path / "m", tokenizer=model.tokenizer)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def test_export_parity_and_list(sentei, place):  # noqa: F811
    m, x, text = place / "m", place / "x", place / "text.jsonl"
    shown = sentei("export", m, "--to", "nemotron-nas", "--out", x, "--text", text)
    assert shown.code == 0, shown
    assert "nemotron-nas, F32," in shown.out and "of them padding (" in shown.out
    assert "trtllm cannot read it: takes no biases" in shown.out and "parity passed, max |Δ log p|" in shown.out
    assert "vllm: not run; sentei cannot run this engine" in shown.out

    checked = sentei("parity", m, x, "--text", text, "--tokens", 120, "--lengths", 8, 50, "--engine", "transformers")
    assert checked.code == 0, checked
    assert checked.out.splitlines()[-1].startswith("parity: passed, max |Δ log p| ")
    assert "over 120 tokens × 128 words, transformers" in checked.out.splitlines()[-1]
    as_json = sentei(
        "parity", m, x, "--text", text, "--tokens", 20, "--engine", "transformers", "--format", "json"
    ).json()
    assert as_json["schema_version"] == 1 and as_json["passed"] and as_json["windows"] == [16, 4]
    assert json.loads((x / "export.json").read_text())["parity"]["transformers"]["windows"] == [16, 4]

    strict = sentei("parity", m, x, "--text", text, "--tokens", 20, "--engine", "transformers", "--tolerance", 1e-12)
    refused(strict, "does not give the log-probabilities of", code=3)
    assert strict.out.splitlines()[-1].startswith("parity: FAILED")

    rows = {row["route"]: row for row in sentei("export", m, "--list", "--format", "json").json()["routes"]}
    assert rows["uniform"]["refused"] and rows["hf"]["engines"]["transformers"]
    assert "use --to dense-fold" in sentei("export", m, "--list").out


def test_mistakes_are_one_line(sentei, place):  # noqa: F811
    m = place / "m"
    refused(sentei("export", m), "needs --to ROUTE and --out PATH")
    refused(sentei("export", m, "--to", "gguff", "--out", place / "x"), "unknown export", "did you mean 'gguf'")
    refused(sentei("export", m, "--to", "gguf", "--out", place / "x"), "ends in .gguf")
    refused(sentei("export", m, "--to", "uniform", "--out", place / "x"), "cannot be exported to uniform: blocks have")
    refused(sentei("export", m, "--to", "hf", "--out", place / "x", "--option", "a"), "expected NAME=VALUE")
    refused(sentei("parity", m, m), "is no export of sentei")
    assert not (place / "x").exists()
