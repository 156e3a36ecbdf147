from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sentei.accel.family import composed, load_state, rebuilt, save_state
from sentei.accel.moments import weights_of
from sentei.families import family_of
from sentei.families.surgery import prune
from tiny import VARIANTS, make_plan, random_blocks, tiny_model


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_cuts_in_a_row_are_one(variant: str) -> None:
    dense = tiny_model(variant)
    first = make_plan(dense, random_blocks(family_of(dense.config).shape(dense.config), 1, skip=0.0))
    once = prune(dense, first)
    second = make_plan(once, random_blocks(family_of(once.config).shape(once.config), 2, skip=0.0))
    twice, whole = prune(once, second), prune(dense, composed(first, second))
    assert composed(None, first) == first
    one, other = dict(twice.named_parameters()), dict(whole.named_parameters())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_makes_the_model_again(tmp_path: Path) -> None:
    dense = tiny_model()
    plan = make_plan(dense, random_blocks(family_of(dense.config).shape(dense.config), 0))
    small = prune(dense, plan)
    with torch.no_grad():
        for param in family_of(small.config).blocks(small).parameters():
            param.add_(0.5)
    save_state(tmp_path / "state.safetensors", weights_of(small, "value"))
    again = rebuilt(dense, plan, load_state(tmp_path / "state.safetensors"), "value")
    one, other = dict(small.named_parameters()), dict(again.named_parameters())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
