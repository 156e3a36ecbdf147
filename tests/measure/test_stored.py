from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentei.errors import InputError
from sentei.measure import Profile, measure
from tiny import tiny_model


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    measure(tiny_model(), torch.randint(0, 128, (4, 16)), gradient_tokens=64).save(tmp_path / "profile")
    Profile.load(tmp_path / "profile")
    return tmp_path / "profile"


def change(file: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, file)


def test_tensors_are_those_of_the_shape(stored: Path) -> None:
    whole = {block: load_file(stored / "blocks" / f"{block}.safetensors") for block in ("block-00000", "block-00001")}
    gram, mean = (whole["block-00000"][name] for name in ("ffn.gram", "ffn.mean"))
    for block, name, value, why in (
        ("block-00000", "ffn.gram", None, r"ffn\.gram: expected shape \(\d+,\), got nothing; measure again"),
        ("block-00000", "ffn.extra", gram, r"ffn\.extra: expected shape nothing, got \(\d+,\)"),
        ("block-00000", "ffn.gram", gram[:-1].clone(), r"ffn\.gram: expected shape"),
        ("block-00000", "ffn.gram", gram * float("nan"), r"ffn\.gram: expected finite"),
        ("block-00001", "attention.rank.q_proj", None, r"attention\.rank\.q_proj: expected shape"),
        ("block-00000", "ffn.mean", mean.int(), r"ffn\.mean: expected finite floating point"),
    ):
        change(stored / "blocks" / f"{block}.safetensors", name, value)
        with pytest.raises(InputError, match=rf"{block}\.safetensors: {why}"):
            Profile.load(stored)
        save_file(whole[block], stored / "blocks" / f"{block}.safetensors")


def test_keys_are_those_of_a_profile(stored: Path) -> None:
    file = stored / "profile.json"
    whole = json.loads(file.read_text())
    for changes, why in (
        ({"blocks": whole["blocks"][1:]}, "statistics of 3 blocks, the shape has 4"),
        ({"shape": whole["shape"] | {"hidden": 10**9}}, "shape.hidden: Input should be less than or equal to 16777216"),
        ({"tokens": 0}, "tokens: Input should be greater than or equal to 1; got 0"),
        ({"blocks": [{**whole["blocks"][0], "ffn_energy": None}, *whole["blocks"][1:]]}, "ffn_energy is None"),
        ({"schema_version": 1}, "is a profile of version 1"),
    ):
        file.write_text(json.dumps(whole | changes))
        with pytest.raises(InputError, match=why):
            Profile.load(stored)
    file.write_text("[]")
    with pytest.raises(InputError, match=r"profile\.json: \(top level\): Input should be"):
        Profile.load(stored)
