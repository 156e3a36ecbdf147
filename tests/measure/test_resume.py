"""A measurement that was stopped goes on where it was, and ends with the same bits; so does one that spills."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sentei.errors import InputError
from sentei.measure import Profile, measure, states
from sentei.measure.collect import _Block
from sentei.measure.needs import Needs
from sentei.memory import held
from sentei.progress import Progress
from tiny import tiny_model

BLOCKS = 4


class Stopped(Exception):
    pass


class StopsAt(Progress):
    """Stops when so many steps are done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
        yield self

    def advance(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Stopped


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 128, (16, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model().to(getattr(torch, request.param))


SETTINGS: dict[str, Any] = {"gradient_tokens": 64, "keep_grams": True}


def files(profile: Profile, path: Path) -> dict[str, bytes]:
    profile.save(path)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("block-*.safetensors")}


@pytest.mark.parametrize("worth", [0, 10**9])
@pytest.mark.parametrize("spilled", [False, True])
def test_stopped_anywhere_it_ends_with_the_same_bits(
    model: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: int, spilled: bool
) -> None:
    monkeypatch.setattr(states, "WORTH", worth)
    monkeypatch.setattr(Needs, "check", lambda *_: spilled)
    whole = files(measure(model, ids, work=tmp_path / "whole-work", **SETTINGS), tmp_path / "whole")
    assert len(whole) == 2 * BLOCKS
    for step in range(1, 2 * BLOCKS + 1):
        work = tmp_path / f"work-{step}"
        with pytest.raises(Stopped):
            measure(model, ids, work=work, progress=StopsAt(step), **SETTINGS)
        ran: list[int] = []
        run = _Block.run
        monkeypatch.setattr(
            _Block, "run", lambda block, s, run=run, ran=ran: (ran.append(block.index), run(block, s))[1]
        )
        again = measure(model, ids, work=work, **SETTINGS)
        monkeypatch.setattr(_Block, "run", run)
        assert files(again, tmp_path / f"again-{step}") == whole
        if spilled or worth == 0:  # else the states of the first block alone were written
            assert ran == list(range(max(0, step - BLOCKS), BLOCKS))


def test_what_a_measurement_goes_on_with_is_its_own(model: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        measure(model, ids, work=tmp_path / "work", progress=StopsAt(2), **SETTINGS)
    for changed in ({"keep_grams": False}, {"gradient_tokens": 0}):
        with pytest.raises(InputError, match="holds the work of another model, data or settings; remove it"):
            measure(model, ids, work=tmp_path / "work", **SETTINGS | changed)
    with pytest.raises(InputError, match="holds the work of another model, data or settings; remove it"):
        measure(model, ids[1:], work=tmp_path / "work", **SETTINGS)
    file = next((tmp_path / "work").glob("back-*.safetensors"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"back-\d\.safetensors cannot be read .* and the work begins anew"):
        measure(model, ids, work=tmp_path / "work", **SETTINGS)


def test_states_that_do_not_fit_are_spilled(ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all in memory it is refused where there is no directory, and done through files where there is one."""
    model, seen = tiny_model(), []
    many = ids.repeat(2000, 1)  # 64 MB of hidden states
    begin = states.States.__init__

    def begun(self: states.States, *given: Any, **options: Any) -> None:
        seen.append(options["spilled"])
        begin(self, *given, **options)

    monkeypatch.setattr(states.States, "__init__", begun)
    limit = held() + 130_000_000
    with pytest.raises(InputError, match=r"measure needs about .* GB of memory, --memory allows"):
        measure(model, many, tokens=10**9, gradient_tokens=0, memory=limit)
    spilled = measure(model, many, tokens=10**9, gradient_tokens=0, memory=limit, work=tmp_path / "work")
    resident = measure(model, many, tokens=10**9, gradient_tokens=0, work=tmp_path / "other")
    assert seen == [True, False]
    assert files(spilled, tmp_path / "one") == files(resident, tmp_path / "two")


def test_too_little_disk_is_said_before_the_work(
    model: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"measure needs about 0\.00 GB of disk beside its output, 0\.00 GB are free"):
        measure(model, ids, work=tmp_path / "work", **SETTINGS)
    assert not (tmp_path / "work").exists()
