from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentei.errors import InputError
from sentei.measure import Profile, measure
from sentei.plan import Budget
from sentei.prune.methods import METHODS
from sentei.prune.planning import plan
from tiny import tiny_model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stored(tmp_path: Path, ids: torch.Tensor) -> Path:
    measure(tiny_model(), ids, gradient_tokens=64, keep_grams=True).save(tmp_path / "profile")
    read(tmp_path / "profile")
    return tmp_path / "profile"


def read(path: Path) -> None:
    """Everything that is in a profile."""
    for block in Profile.load(path).blocks:
        for part in (block.attention, block.ffn):
            assert part is not None and part.gram.shape == part.gram.T.shape


def change(file: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, file)


def test_tensors_are_those_of_the_shape(stored: Path) -> None:
    files = sorted(stored.rglob("block-0000[01].safetensors"))
    whole = {file.relative_to(stored).as_posix(): load_file(file) for file in files}
    blocks, grams = "blocks/block-00000.safetensors", "grams/block-00000.safetensors"
    mean, gram = whole[blocks]["ffn.mean"], whole[grams]["ffn.gram"]
    channels, heads = (whole[blocks][f"curve.obs.{key}"] for key in ("channels", "heads"))
    uneven = heads.clone()
    uneven[1, 0] = torch.tensor([0, 1], dtype=torch.uint8)
    for file, name, value, why in (
        (grams, "ffn.gram", None, r"ffn\.gram: expected shape \(\d+,\), got nothing; measure again"),
        (blocks, "ffn.extra", gram, r"ffn\.extra: expected shape nothing, got \(\d+,\)"),
        (grams, "ffn.gram", gram[:-1].clone(), r"ffn\.gram: expected shape"),
        (grams, "ffn.gram", gram * float("nan"), r"ffn\.gram: expected finite"),
        (blocks.replace("0.", "1."), "attention.rank.q_proj", None, r"attention\.rank\.q_proj: expected shape"),
        (blocks, "ffn.mean", mean.int(), r"ffn\.mean: expected finite floating point"),
        (blocks, "curve.obs.channels", channels.float(), r"curve\.obs\.channels: expected integers"),
        (blocks, "curve.obs.channels", channels * 0, "channels are not each there once"),
        (blocks, "curve.obs.ffn_loss", -torch.arange(41.0), "losses fall along the order"),
        (blocks, "curve.obs.heads", heads * 0, "attention options are not from all heads to none"),
        (blocks, "curve.obs.heads", uneven, "an attention option does not keep as many heads"),
    ):
        change(stored / file, name, value)
        with pytest.raises(InputError, match=rf"{file}: {why}"):
            read(stored)
        save_file(whole[file], stored / file)
    (stored / blocks).write_bytes((stored / blocks).read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{blocks} cannot be read .*; measure again"):
        read(stored)


def test_keys_are_those_of_a_profile(stored: Path) -> None:
    file = stored / "profile.json"
    whole = json.loads(file.read_text())
    for changes, why in (
        (
            {"shape": whole["shape"] | {"blocks": whole["shape"]["blocks"] * 2}},
            r"block-00004\.safetensors cannot be read",
        ),
        ({"shape": whole["shape"] | {"hidden": 10**9}}, "shape.hidden: Input should be less than or equal to 16777216"),
        ({"tokens": 0}, "tokens: Input should be greater than or equal to 1; got 0"),
        ({"scores": ["obs"]}, "expected shape nothing"),
        ({"grams": False}, "holds no Gram matrices"),
        (
            {"schema_version": 3, "info": {"model": "my model", "data": "d.txt"}},
            "is a profile of version 3, this sentei reads 4; measure again: "
            "sentei measure 'my model' --data d.txt --out .*profile --overwrite$",
        ),
        ({"schema_version": 1, "info": None}, "is a profile of version 1, .*sentei measure MODEL --data DATA"),
    ):
        file.write_text(json.dumps(whole | changes))
        with pytest.raises(InputError, match=why):
            read(stored)
    file.write_text("[]")
    with pytest.raises(InputError, match=r"profile\.json: \(top level\): Input should be"):
        read(stored)


def test_a_profile_without_gram_matrices_is_smaller_and_plans_the_same(
    stored: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    measure(tiny_model(), ids, gradient_tokens=64).save(tmp_path / "small")
    small, whole = Profile.load(tmp_path / "small"), Profile.load(stored)
    assert not (tmp_path / "small" / "grams").exists()
    assert small.digest() == whole.digest()
    budget = Budget(sparsity=0.3)
    for profile in (small, whole):
        profile.curves.clear()
    for method in METHODS:
        assert plan(small, budget, method) == plan(whole, budget, method)
    for score in ("obs", "newton", "flap", "magnitude"):
        for weigh in ("none", "gradient", "energy", "share", "standardise"):
            one, two = (
                plan(p, budget, "structural", score=score, weigh=weigh, protect="first:1") for p in (small, whole)
            )
            assert one == two
    with pytest.raises(InputError, match="holds no Gram matrices, which this needs; measure again with --keep-grams"):
        small.check_grams()


def test_blocks_are_read_when_they_are_asked_for(stored: Path) -> None:
    profile = Profile.load(stored)
    (stored / "blocks" / "block-00002.safetensors").unlink()
    (stored / "grams" / "block-00001.safetensors").unlink()
    assert profile.blocks[1].angle and len(profile.blocks) == 4
    with pytest.raises(InputError, match=r"block-00001\.safetensors cannot be read"):
        profile.blocks[1].part("ffn").whole()
    with pytest.raises(InputError, match=r"block-00002\.safetensors cannot be read"):
        profile.blocks[2]
