"""A model whose blocks are read one at a time is exported like one that is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sentei.errors import InputError
from sentei.families.streamed import streamed_blocks
from sentei.memory import held
from sentei.models.load import Loaded, load
from sentei.models.save import save
from sentei.ship import ROUTES
from sentei.ship.export import export
from ship.byte_level import cut_model, whole_model
from ship.shipping import cut_like, randomly_cut
from tiny import tiny_model, tiny_tokenizer

PLENTY = 10**12


def weights(path: Path) -> dict[str, Any]:
    if path.is_file():
        return {"file": path.read_bytes()}
    return {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("route", "made_of"),
    [
        ("hf", randomly_cut("llama-tied")),
        ("dense-fold", randomly_cut("llama", hidden_size=48)),
        ("nemotron-nas", randomly_cut("llama", bias=True)),
        ("uniform", cut_like(tiny_model(), [32] * 4)),
        ("gguf", cut_model("llama", 3)),
        ("gguf", cut_model("qwen3", 1, tie_word_embeddings=True)),
    ],
)
def test_the_same_weights(route: str, made_of: Loaded, dtype: str, tmp_path: Path) -> None:
    save(made_of.model, tmp_path / "model", tokenizer=made_of.tokenizer)
    made = []
    for memory in (None, PLENTY):
        out = tmp_path / f"{memory}{ROUTES[route].suffix}"
        facts = export(tmp_path / "model", route, out, dtype=dtype, check=False, memory=memory)
        made.append((weights(out), {**facts, "bytes": 0}))
    assert same(made[0][0], made[1][0]) and made[0][0]
    assert made[0][1] == made[1][1], "the facts too, but for the size of the index"


def test_a_block_is_read_once_for_a_route_that_writes_tensor_by_tensor(tmp_path: Path) -> None:
    whole = whole_model()
    save(whole.model, tmp_path / "model", tokenizer=whole.tokenizer)
    model = load(tmp_path / "model", dtype="float32", memory=PLENTY)
    blocks, reads = streamed_blocks(model.model), []
    assert blocks is not None
    read = blocks.read
    blocks.read = lambda index: (reads.append(index), read(index))[1]  # type: ignore[method-assign]
    for route in ("dense-fold", "gguf"):
        reads.clear()
        export(model, route, tmp_path / f"out{ROUTES[route].suffix}", overwrite=True, check=False)
        assert reads == [0, 1, 2, 3], route


def test_what_does_not_fit_is_refused_with_the_figure(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model", tokenizer=tiny_tokenizer())
    with pytest.raises(InputError, match=r"needs about .* GB of memory, --memory allows 0.20 GB; allow more"):
        export(model, "hf", tmp_path / "out", memory=200_000_000)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="a parity check holds the model twice"):
        export(model, "hf", tmp_path / "out", memory=PLENTY, check=True)


@pytest.mark.engine
def test_a_route_that_holds_the_whole_model_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the package onnxscript")
    model = save(tiny_model(), tmp_path / "model", tokenizer=tiny_tokenizer())
    said = "export to onnx needs about .*; onnx holds the whole model; allow more, or use --to hf"
    with pytest.raises(InputError, match=said):
        export(model, "onnx", tmp_path / "out", memory=held() + 10**8)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="onnx holds the whole model, which is not in memory"):
        export(load(model, streamed=True), "onnx", tmp_path / "out")
