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


def change(path: Path, name: str, value: torch.Tensor | None) -> None:
    file = path / "profile.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, file)


def test_tensors_are_those_of_the_shape(stored: Path) -> None:
    whole = load_file(stored / "profile.safetensors")
    gram = whole["0.ffn.gram"]
    for name, value, why in (
        ("0.ffn.gram", None, r"0\.ffn\.gram: expected shape \(\d+,\), got nothing; measure again"),
        ("0.ffn.extra", gram, r"0\.ffn\.extra: expected shape nothing, got \(\d+,\)"),
        ("0.ffn.gram", gram[:-1].clone(), r"0\.ffn\.gram: expected shape"),
        ("0.ffn.gram", gram * float("nan"), r"0\.ffn\.gram: expected finite"),
        ("1.attention.rank.q_proj", None, r"1\.attention\.rank\.q_proj: expected shape"),
        ("0.ffn.mean", whole["0.ffn.mean"].int(), r"0\.ffn\.mean: expected finite floating point"),
    ):
        save_file(whole, stored / "profile.safetensors")
        change(stored, name, value)
        with pytest.raises(InputError, match=why):
            Profile.load(stored)


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
