"""The comparison itself: it finds a single wrong number and says where; texts, engines and files are checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sentei.errors import InputError, QualityError
from sentei.ship import parity as parity_module
from sentei.ship.compared import Compared
from sentei.ship.engines import Timing, engine_for
from sentei.ship.engines.transformers import ENGINE, own_code
from sentei.ship.export import export, listing, load_for, record
from sentei.ship.facts import facts_path, read_facts
from sentei.ship.parity import parity, reference_rows, text_windows
from ship.shipping import TEXTS, loaded, randomly_cut
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def model():
    return randomly_cut("llama", bias=True)


@pytest.fixture
def made(model, tmp_path):
    export(model, "hf", tmp_path / "x", check=False)
    return tmp_path / "x"


def rows(n, seed=0):
    logits = np.random.default_rng(seed).normal(size=(n, 20)).astype(np.float32)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_one_wrong_number_is_found_and_named():
    wanted = rows(6)
    got = wanted.copy()
    got[4, 7] += 0.01
    seen = Compared()
    seen.add(wanted, wanted.copy(), text=1, first=0, tolerance=1e-3)
    assert seen.delta == 0 and seen.flips == 0
    seen.add(wanted, got, text=3, first=10, tolerance=1e-3)
    assert seen.delta == pytest.approx(0.01, rel=1e-3)
    assert seen.worst == {"text": 3, "token_index": 14, "token": 7} and seen.positions == 12


def test_nan_counts_as_infinitely_wrong():
    seen, got = Compared(), rows(3)
    got[1, 2] = np.nan
    seen.add(rows(3), got, text=0, first=0, tolerance=1e-3)
    assert seen.delta == np.inf and seen.worst == {"text": 0, "token_index": 1, "token": 2}


def test_a_tie_may_flip_and_a_clear_winner_may_not():
    wanted = np.log(np.array([[0.6, 0.3, 0.1], [0.4001, 0.3999, 0.2]], dtype=np.float32))
    seen = Compared()
    seen.add(wanted, wanted[:, [1, 0, 2]], text=0, first=0, tolerance=1e-3)
    assert (seen.flips, seen.ties) == (1, 1)


def test_other_vocabularies_are_refused():
    with pytest.raises(InputError, match=r"expected \[3, 20\]"):
        Compared().add(rows(3), rows(3)[:, :19], text=0, first=0, tolerance=1e-3)


def test_windows_are_real_text_of_the_lengths_in_turns():
    windows = text_windows(TEXTS, tiny_tokenizer(), (4, 300, 9), 700)
    assert [len(ids) for _, ids in windows] == [4, 300, 9, 4, 300, 9, 4, 70]
    assert [text for text, _ in windows] == [0, 1, 3, 4, 5, 7, 8, 9]  # 300 tokens take two texts of 200
    assert windows[1][1] == [int(w[1:]) for w in (TEXTS[1] + " " + TEXTS[2]).split()][:300]
    with pytest.raises(InputError, match="the text ends after 200 tokens, parity wants 1000"):
        text_windows(TEXTS[:1], tiny_tokenizer(), (512,), 1000)
    with pytest.raises(InputError, match="no tokenizer"):
        text_windows(TEXTS, None, (4,), 8)
    with pytest.raises(InputError, match="at least 2 tokens"):
        text_windows(TEXTS, tiny_tokenizer(), (1,), 8)


def test_prefill_and_cache_agree_with_the_reference(model, made):
    session = ENGINE.open(made)
    ids = list(range(3, 33))
    wanted = reference_rows(model.model, ids)
    assert wanted.shape == (30, 128) and np.abs(np.exp(wanted).sum(1) - 1).max() < 1e-5
    np.testing.assert_allclose(session.log_probs(ids), wanted, atol=2e-4)
    np.testing.assert_allclose(session.decode(ids, 11), wanted[11:], atol=2e-4)
    timing = session.generate(ids, 5)
    assert isinstance(timing, Timing) and 0 < timing.first < timing.total
    session.close()


def test_a_single_changed_weight_fails_parity(model, made):
    before = parity(model, made, texts=TEXTS, lengths=(16, 64), tokens=160)
    assert before.passed and before.verdict().startswith("parity: passed, max |Δ log p| ")
    assert "over 160 tokens × 128 words, transformers" in before.verdict()
    tensors = load_file(made / "model.safetensors")
    name = next(n for n in tensors if n.endswith("down_proj.weight"))
    tensors[name][0, 0] += 0.5
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    after = parity(model, made, texts=TEXTS, lengths=(16, 64), tokens=160)
    assert not after.passed and "FAILED" in after.verdict() and "worst at text " in after.verdict()
    facts = record(made, after)
    assert facts["parity"]["transformers"]["passed"] is False
    assert "FAILED" in (made / "README.md").read_text()


def test_export_runs_parity_and_keeps_the_record(model, tmp_path):
    facts = export(model, "hf", tmp_path / "x", texts=TEXTS)
    kept = json.loads((tmp_path / "x" / "export.json").read_text())
    assert kept == facts and kept["parity"]["transformers"]["passed"]
    assert kept["parity"]["transformers"]["prefill"]["positions"] == 144
    assert kept["not_run"].keys() <= {"vllm"} and kept["digest"] == model.digest
    card = (tmp_path / "x" / "README.md").read_text()
    assert card.index("## How to serve") < card.index("## Limitations") and card.count("## How to serve") == 1
    assert "Parity in transformers" in card


def test_export_fails_loudly_where_the_engine_disagrees(model, tmp_path, monkeypatch):
    wrong = lambda reference, ids: rows(len(ids), 1).repeat(7, 1)[:, :128]  # noqa: E731
    monkeypatch.setattr(parity_module, "reference_rows", wrong)
    with pytest.raises(QualityError, match=r"was written, but parity: FAILED.*do not serve it"):
        export(model, "hf", tmp_path / "x", texts=TEXTS)
    assert read_facts(tmp_path / "x")["parity"]["transformers"]["passed"] is False


def test_rounded_weights_get_the_tolerance_of_their_dtype(tmp_path):
    model = loaded(tiny_model("llama", hidden_size=48))
    facts = export(model, "hf", tmp_path / "x", dtype="F16", check=False)
    assert not facts["lossless"] and facts["dtype"] == "F16"
    assert parity(model, tmp_path / "x", texts=TEXTS, tokens=20).tolerance == pytest.approx(1e-3 + 0.025)
    assert export(model, "hf", tmp_path / "y", dtype="F32", check=False)["lossless"]
    assert parity(model, tmp_path / "y", texts=TEXTS, tokens=20).tolerance == 1e-3
    assert parity(model, tmp_path / "y", texts=TEXTS, tokens=20, tolerance=1e-9).passed is False


def test_bad_input_is_one_clear_line(model, made, tmp_path):
    for make, words in (
        (lambda: parity(model, tmp_path / "nowhere", texts=TEXTS), "does not exist; make it with sentei export"),
        (lambda: parity(loaded(tiny_model("llama")), made, texts=TEXTS), "made from another model .other weights"),
        (lambda: parity(model, made, engine="mlx", texts=TEXTS), "unknown engine for this export 'mlx'; known: tra"),
        (lambda: export(model, "ggufs", tmp_path / "y"), "did you mean 'gguf'"),
        (lambda: export(model, "hf", tmp_path / "y", dtype="F8"), "unknown dtype for hf 'F8'"),
        (lambda: export(model, "hf", tmp_path / "y", options={"a": "1"}), "hf has no option 'a'; known: none"),
        (lambda: export(model, "hf", made), "exists and is not empty"),
        (lambda: read_facts(tmp_path), "is missing, so .* is no export"),
    ):
        with pytest.raises(InputError, match=words):
            make()
    assert not (tmp_path / "y").exists()


def test_foreign_code_beside_an_export_is_not_run(made):
    assert own_code(made)
    with open(made / "modeling_sentei.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(InputError, match="is not what this version of sentei bundles, so it is not run"):
        ENGINE.open(made)


def test_a_missing_engine_says_how_to_install_it(model, tmp_path, monkeypatch):
    from sentei.ship.engines import mlx

    monkeypatch.setattr(mlx.MlxEngine, "installed", lambda self: False)
    dense = loaded(tiny_model("llama", hidden_size=48))
    facts = export(dense, "nemotron-nas", tmp_path / "x", texts=TEXTS)
    card = (tmp_path / "x" / "README.md").read_text()
    assert "vllm serve DIRECTORY --trust-remote-code" in card and "Not run here: mlx, vllm, sglang, trtllm." in card
    assert facts["not_run"]["mlx"].startswith("not installed: pip install mlx") and "transformers" in facts["parity"]
    assert "cannot run this engine" in facts["not_run"]["vllm"]
    with pytest.raises(InputError, match="mlx is not installed, and it reads this export: pip install mlx"):
        engine_for(facts, "mlx")
    assert engine_for(facts).name == "transformers"


def test_an_export_without_text_to_check_says_so(tmp_path):
    model = randomly_cut("llama")
    model.tokenizer = None
    facts = export(model, "hf", tmp_path / "x", texts=TEXTS)
    assert not facts["parity"] and "no tokenizer" in facts["not_run"]["transformers"]


def test_k_quants_are_a_question_of_quality(model, made):
    facts = read_facts(made) | {"dtype": "Q4_K_M", "lossless": False}
    facts_path(made).write_text(json.dumps(facts))
    with pytest.raises(InputError, match="no question of parity; compare quality with sentei eval"):
        parity(model, made, texts=TEXTS, tokens=20)
    assert parity(model, made, texts=TEXTS, tokens=20, tolerance=1e-3).passed


def test_facts_lie_in_a_directory_or_beside_a_file(tmp_path):
    assert facts_path(tmp_path) == tmp_path / "export.json"
    assert facts_path(tmp_path / "m.gguf") == tmp_path / "m.gguf.json"


def test_the_listing_names_every_route_with_engines_or_a_reason(model):
    found = {row["route"]: row for row in listing(model)}
    assert list(found) == ["gguf", "nemotron-nas", "uniform", "hf", "dense-fold", "onnx", "openvino"]
    assert all(bool(row["engines"]) != bool(row["refused"]) for row in found.values())
    assert found["hf"]["engines"]["transformers"] is True
    assert "dense-fold" in found["uniform"]["refused"]


def test_models_are_loaded_with_all_that_the_export_keeps(model, made):
    assert load_for(made, "F16").model.dtype is torch.float32
    assert load_for(made, "BF16").model.dtype is torch.bfloat16
    assert load_for(made).digest == model.digest
