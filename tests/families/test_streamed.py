"""A model whose blocks are read one at a time computes, measures and is cut like one that is in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.measure import measure
from sentei.measure.blocks import StoredBlocks
from sentei.measure.profile import Profile
from sentei.memory import parse_bytes
from sentei.models.load import load
from sentei.models.save import save
from sentei.plan import BlockPlan, Budget
from sentei.prune.cut import _memory_needed, cut
from sentei.prune.planning import plan
from sentei.prune.refine import refine_bytes
from tiny import make_plan, tiny_model


@pytest.fixture(params=[name for name in FAMILIES if FAMILIES[name].installed])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tiny_model(request.param), tmp_path / "dense")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 60, (8, 24), generator=torch.Generator().manual_seed(0))


def test_one_block_is_in_memory_and_the_logits_are_the_same(directory: Path, ids: torch.Tensor) -> None:
    whole, streamed = load(directory, dtype="float32"), load(directory, dtype="float32", streamed=True)
    assert whole.digest == streamed.digest
    with torch.no_grad():
        assert torch.equal(whole.model(ids).logits, streamed.model(ids).logits)
    blocks = family_of(streamed.model.config).blocks(streamed.model)
    assert [any(p.is_meta for p in block.parameters()) for block in blocks] == [True] * (len(blocks) - 1) + [False]


def test_profile_and_cut_are_the_same(directory: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    for streamed in (False, True):
        model = load(directory, dtype="float32", streamed=streamed)
        work = tmp_path / f"measured{streamed}" if streamed else None
        experts = bool(family_of(model.model.config).ffn_part.experts)
        profile = measure(model, ids, keep_grams=not experts, work=work)
        assert isinstance(profile.blocks, StoredBlocks) == streamed
        profile.save(out := tmp_path / f"profile{streamed}")
        decided = plan(Profile.load(out), Budget(sparsity=0.3), "structural")
        small = cut(model, decided, ids, work=tmp_path / "work")
        save(small, tmp_path / f"cut{streamed}", plan=decided)
    for name in ("profile", "cut"):
        one, other = (
            {key: value for file in sorted(where.rglob("*.safetensors")) for key, value in load_named(file).items()}
            for where in (tmp_path / f"{name}False", tmp_path / f"{name}True")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    reloaded = load(tmp_path / "cutTrue", dtype="float32").model
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, load(tmp_path / "cutFalse", dtype="float32").model(ids).logits)


def test_a_cut_that_becomes_a_stock_class_has_its_last_block(tmp_path: Path, ids: torch.Tensor) -> None:
    save(tiny_model(), tmp_path / "dense")
    for streamed in (False, True):
        model = load(tmp_path / "dense", dtype="float32", streamed=streamed)
        one_size = BlockPlan(kv_groups=[0, 2], query_heads=[[0, 1]] * 2, ffn=list(range(3, 35)))
        decided = make_plan(model.model, [one_size] * 4).model_copy(update={"model": model.digest})
        small = cut(model, decided, ids, work=tmp_path / "work")
        save(small, tmp_path / f"cut{streamed}", plan=decided)
    one, other = (load(tmp_path / f"cut{streamed}", dtype="float32").model for streamed in (False, True))
    assert one.config.model_type == other.config.model_type == "mistral"
    for (name, value), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, twin), name


def test_blocks_are_refined_the_same(ids: torch.Tensor, tmp_path: Path) -> None:
    directory = save(tiny_model(), tmp_path / "dense")
    for streamed in (False, True):
        model = load(directory, dtype="float32", streamed=streamed)
        decided = plan(measure(model, ids), Budget(sparsity=0.3), "flap", refine="block")
        small = cut(model, decided, ids, work=tmp_path / "work")
        save(small, tmp_path / f"cut{streamed}", plan=decided)
    unrefined = cut(load(directory, dtype="float32"), decided.model_copy(update={"refine": "none"}), ids)
    one, other = (load(tmp_path / f"cut{streamed}", dtype="float32").model for streamed in (False, True))
    for (name, value), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, twin), name
    assert not torch.equal(one.model.layers[2].mlp.down_proj.weight, unrefined.model.layers[2].mlp.down_proj.weight)


def test_memory_that_refinement_takes_is_part_of_the_promise(directory: Path, ids: torch.Tensor) -> None:
    model = load(directory, dtype="float32", streamed=True)
    decided = plan(measure(model, ids), Budget(sparsity=0.3), "flap", refine="block")
    windows = Windows(ids)
    plain = _memory_needed(decided.model_copy(update={"refine": "none"}), windows, 4)
    assert _memory_needed(decided, windows, 4) == refine_bytes(decided, windows, 4) > plain
    with pytest.raises(InputError, match=r"cut needs about .* GB of memory, --memory allows 0.00 GB; read fewer --tok"):
        cut(model, decided, ids, memory=1000)


def load_named(file: Path) -> dict[str, torch.Tensor]:
    """Tensors; those of a profile with their folder and the number of their block."""
    prefix = f"{file.parent.name}.{file.stem}." if file.stem.startswith("block-") else ""
    return {prefix + key: value for key, value in load_file(file).items()}


def test_too_little_memory_is_said_before_the_work(directory: Path, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"measure needs about .* GB of memory, --memory allows 0.00 GB; read fewer"):
        measure(load(directory, streamed=True), ids, memory=1000)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("800m", 8 * 10**8), ("12", 12)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "four", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no size of memory; expected one like 4GB"):
        parse_bytes(text)
