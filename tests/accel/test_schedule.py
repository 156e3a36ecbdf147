from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.accel.schedule import check_steps, divide, rate, shares, targets
from sentei.errors import InputError


def test_linear_targets_are_those_of_the_paper() -> None:
    assert targets(1000, 500, 5, "linear") == [900, 800, 700, 600, 500]
    cosine, ratio = targets(1000, 500, 4, "cosine"), targets(1000, 250, 2, "ratio")
    assert cosine == [927, 750, 573, 500] and ratio == [500, 250]


def test_slices_grow_as_in_the_paper() -> None:
    assert shares(4, "linear") == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert shares(4, "constant") == [0.25] * 4
    cosine = shares(4, "cosine")
    assert sum(cosine) == pytest.approx(1) and all(a < b for a, b in pairwise(cosine))


@given(
    st.integers(1, 30), st.sampled_from(["linear", "cosine", "ratio"]), st.integers(10**4, 10**9), st.floats(0.01, 0.99)
)
def test_sizes_fall_to_the_budget(stages: int, kind: str, dense: int, share: float) -> None:
    final = round(dense * share)
    found = targets(dense, final, stages, kind)
    assert len(found) == stages and found[-1] == final
    assert all(a >= b for a, b in pairwise([dense, *found]))


@given(st.lists(st.integers(1, 50), min_size=40, max_size=80), st.integers(1, 8))
def test_every_step_belongs_to_one_stage_near_its_share(sizes: list[int], stages: int) -> None:
    parts = shares(stages, "constant")
    found = divide(sizes, parts)
    assert [at for part in found for at in part] == list(range(len(sizes)))
    read = list(accumulate(sum(sizes[at] for at in part) for part in found))
    for tokens, share in zip(read, accumulate(parts), strict=True):
        assert abs(tokens - share * sum(sizes)) <= max(sizes)


def test_a_slice_without_a_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"stage 1 of 10 would train on 2 tokens, less than a step \(about 10\)"):
        divide([10] * 10, shares(10, "linear"))


def test_the_rate_warms_up_stays_and_falls() -> None:
    assert [rate(x) for x in (0.025, 0.05, 0.5, 0.9)] == pytest.approx([0.5, 1, 1, 1])
    assert rate(0.95) == pytest.approx(0.5) and rate(1) == 0 == rate(0)


def test_a_stage_that_removes_nothing_is_refused() -> None:
    check_steps(1000, targets(1000, 500, 5, "linear"), 100)
    with pytest.raises(InputError, match=r"stage 1 of 6 goes from 1,000 to 917 and removes .* at most 5 stages"):
        check_steps(1000, targets(1000, 500, 6, "linear"), 100)
    with pytest.raises(InputError, match=r"stage 1 of 1 goes from 1,000 to 990 .* remove more, with a smaller --to"):
        check_steps(1000, [990], 100)
