"""What is read for calibration: the data, and the model's own text beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sentei.budget import Budget
from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.measure import reading
from sentei.measure.collect import measure
from sentei.measure.profile import Profile
from sentei.models.load import Loaded, load
from sentei.plan import Plan
from sentei.progress import Progress
from sentei.prune.cut import cut
from sentei.prune.planning import plan

TEXT = ["Once upon a time there was a little cat that liked to play in the garden with the dog. " * 60]
SIZES = {"tokens": 1024, "window": 64}


def test_own_text_is_read_beside_texts_as_much_as_of_them_at_most(stories: Loaded) -> None:
    profile = measure(stories, TEXT, **SIZES)
    assert profile.own_text is not None and profile.own_text.shape == (16, 64)
    assert profile.tokens == 2048 and profile.own_tokens == 1024
    assert measure(stories, TEXT, own_text=256, **SIZES).own_tokens == 256
    assert measure(stories, TEXT, own_text=0, **SIZES).own_text is None


def test_windows_say_what_is_read(stories: Loaded) -> None:
    ids = torch.randint(3, 500, (4, 64))
    for data in (ids, Windows(ids)):
        assert measure(stories, data).tokens == 256


def test_both_are_spread_over_the_whole(stories: Loaded) -> None:
    own = torch.full((4, 64), 7)
    windows, _ = reading.read_windows(stories, TEXT, **SIZES, own_text=own, progress=Progress())
    places = (windows.ids == 7).all(1).nonzero().flatten().tolist()
    assert len(windows.ids) == 20 and places == [2, 7, 12, 17]


def test_a_cut_reads_as_much_as_the_plans_profile_did(stories: Loaded, tmp_path: Path) -> None:
    profile = measure(stories, TEXT, **SIZES)
    profile.save(tmp_path / "profile")
    again = Profile.load(tmp_path / "profile")
    assert again.own_text is not None and torch.equal(again.own_text, profile.own_text)
    assert again.digest() == profile.digest()
    decided = plan(again, Budget(sparsity=0.2))
    assert decided.own_text == 1024
    decided.save(tmp_path / "plan.json")
    decided = Plan.load(tmp_path / "plan.json")
    written = cut(stories, decided, TEXT, **SIZES)
    given = cut(stories, decided, TEXT, **SIZES, own_text=profile.own_text)
    without = cut(stories, decided, TEXT, **SIZES, own_text=0)
    one, other, third = (m.model.layers[2].mlp.down_proj.weight for m in (written, given, without))
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_a_stopped_measurement_does_not_write_again(
    stories: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(stories, TEXT, work=tmp_path / "work", **SIZES)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(reading, "write_own_text", never)
    assert measure(stories, TEXT, work=tmp_path / "work", **SIZES).data_digest == whole.data_digest


def test_a_streamed_model_writes_none_and_says_so(stories_dir: Path) -> None:
    said: list[str] = []

    class Told(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    streamed = load(stories_dir, dtype="float32", streamed=True)
    assert measure(streamed, TEXT, progress=Told(), **SIZES).own_text is None
    assert any("writes none" in line for line in said)


def test_a_damaged_file_and_windows_of_another_length_are_refused(stories: Loaded, tmp_path: Path) -> None:
    measure(stories, TEXT, **SIZES).save(tmp_path / "profile")
    file = tmp_path / "profile" / "own_text.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="missing or damaged"):
        Profile.load(tmp_path / "profile")
    file.unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        Profile.load(tmp_path / "profile")
    with pytest.raises(InputError, match="own text in windows of 32 tokens"):
        measure(stories, TEXT, own_text=torch.full((4, 32), 7), **SIZES)
