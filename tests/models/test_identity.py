"""Identities: one model is one, however it is loaded; whatever computes something else is another."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sentei
from sentei.errors import InputError
from sentei.families import family_of
from sentei.models.identity import _old_digest, check_same, difference, digest, hash_tokenizer
from sentei.models.load import Loaded, as_loaded, load
from sentei.models.save import save
from tiny import make_plan, tiny_model, tiny_tokenizer, whole


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "model", tokenizer=tiny_tokenizer())


def changed(source: Path, target: Path, **values: Any) -> Path:
    """A copy with other values in config.json; None takes one away."""
    import shutil

    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return target


def test_loads_of_one_file_are_one_model(saved: Path) -> None:
    found = [load(saved, dtype=dtype) for dtype in ("float32", "float16", "bfloat16", "auto")]
    assert len({loaded.digest for loaded in found}) == 1
    assert found[0].digest == digest(found[0].model, found[0].tokenizer), "nothing was rounded"
    assert found[2].digest != digest(found[2].model, found[2].tokenizer), "rounded: another model where no file is"
    code = "import sys, sentei; print(sentei.load(sys.argv[1], dtype='bfloat16').digest)"
    other = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == found[0].digest


def test_the_dtype_of_exact_values_does_not_count(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    names = [digest(model), digest(copy.deepcopy(model).float()), load(save(model, tmp_path / "m")).digest]
    assert len(set(names)) == 1
    half = tiny_model("llama").half()
    assert digest(half) == digest(copy.deepcopy(half).float()) != names[0]


def test_shards_wrappers_and_a_stored_head_do_not_count(saved: Path, tmp_path: Path) -> None:
    before = load(saved).digest
    tensors = load_file(saved / "model.safetensors")
    parts = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    where = {}
    for i, part in enumerate(parts):
        save_file({f"_orig_mod.{name}": value for name, value in part.items()}, saved / f"{i}.safetensors")
        where |= {f"_orig_mod.{name}": f"{i}.safetensors" for name in part}
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert load(saved).digest == before


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"rope_theta": 500000.0, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, False),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}}, False),
        ({"rms_norm_eps": 1e-3}, False),
        ({"hidden_act": "gelu"}, False),
        ({"rope_theta": 10000, "rope_parameters": None, "rope_scaling": None}, True),
        ({"bos_token_id": 7, "use_cache": False, "initializer_range": 0.5, "transformers_version": "1"}, True),
    ],
)
def test_what_a_config_computes_counts(saved: Path, tmp_path: Path, values: dict[str, Any], same: bool) -> None:
    one, other = load(saved), load(changed(saved, tmp_path / "other", **values))
    assert (one.digest == other.digest) == same
    assert difference(other, one.digest) == ("" if same else "config")


def test_every_weight_counts(saved: Path, tmp_path: Path) -> None:
    one = load(saved)
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"][0] += 2.0**-20  # no bf16 load shows it
    save_file(tensors, changed(saved, tmp_path / "other") / "model.safetensors", {"format": "pt"})
    assert difference(load(tmp_path / "other"), one.digest) == "weights"


def test_a_tokenizer_is_its_vocabulary_merges_rules_and_template() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def bpe(merges: list[tuple[str, str]]) -> Any:
        vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=merges)))

    one, other = bpe([("a", "b"), ("b", "c")]), bpe([("b", "c"), ("a", "b")])
    assert one.get_vocab() == other.get_vocab() and hash_tokenizer(one) != hash_tokenizer(other)
    before = hash_tokenizer(one)
    one("abc", truncation=True, max_length=2)
    assert hash_tokenizer(one) == before, "a call changes nothing"
    one.chat_template = "{{ messages }}"
    assert hash_tokenizer(one) != before


def test_a_plan_is_applied_to_its_model_only(saved: Path, tmp_path: Path) -> None:
    profile = sentei.measure(load(saved, dtype="float32"), torch.randint(3, 128, (4, 16)), gradient_tokens=16)
    plan = sentei.plan(profile, sentei.Budget(sparsity=0.2), method="structural")
    windows = torch.randint(3, 128, (4, 16))
    for dtype in ("float32", "bfloat16"):
        assert sentei.cut(load(saved, dtype=dtype), plan, windows)
    in_memory = load(saved, dtype="float32").model
    assert sentei.cut(in_memory, plan, windows), "without a tokenizer nothing is said about it"
    other = changed(saved, tmp_path / "other", rope_theta=5e5, rope_parameters={"rope_theta": 5e5})
    with pytest.raises(InputError, match=r"the plan is for another model \(other config than other\)"):
        sentei.cut(load(other), plan, windows)
    bigger = plan.model_copy(update={"dense": plan.dense.model_copy(update={"vocab": 129})})
    with pytest.raises(InputError, match=r"dense\.vocab is 129, the model has 128"):
        sentei.cut(load(saved), bigger, windows)


def test_files_of_the_first_version_name_the_weights_alone() -> None:
    model = tiny_model("llama")
    plan = make_plan(model, whole(family_of(model.config).shape(model.config))).model_copy(
        update={"model": _old_digest(model)}
    )
    check_same(as_loaded(model), plan.model, plan.dense, "the plan")
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(InputError, match="other weights than"):
        check_same(as_loaded(model), plan.model, plan.dense, "the plan")


def test_another_tokenizer_for_a_loaded_model() -> None:
    loaded = as_loaded(tiny_model("llama"), tiny_tokenizer())
    bare = Loaded(loaded.model, None, "m", digest(loaded.model))
    assert as_loaded(bare, tiny_tokenizer()).digest == loaded.digest != bare.digest
    assert not difference(bare, loaded.digest)
