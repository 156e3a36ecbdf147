"""What a run is computed in: settled where it begins, and kept where it goes on."""

from __future__ import annotations

from collections.abc import Callable

from sentei.machine import describe
from sentei.recipe import Recipe
from sentei.record import MachineRecord


def settle(
    asked: Recipe, began: MachineRecord | None, goes_on: Callable[[Recipe], bool], say: Callable[[str], object]
) -> Recipe:
    """Gives `dtype: auto` its meaning: what is fast here, or what the run was started with, where it goes on.

    Args:
        asked: the recipe as it was given.
        began: the machine on which the first stage was made, see `describe`; None where there is none yet.
        goes_on: whether that stage is kept with a recipe.
        say: is told in one line where the machine is another one.
    """
    here = describe(asked.dtype, asked.device)
    fresh = asked.model_copy(update={"dtype": here["dtype"]})
    if not began:
        return fresh
    kept = asked.model_copy(update={"dtype": began["dtype"]}) if asked.dtype == "auto" else fresh
    if not goes_on(kept):  # another recipe
        return fresh
    there, now = (f"{at['name']} ({at['device']}, bf16: {at['bf16']})" for at in (began, here))
    if there != now or kept != fresh:
        differs = f"; {here['dtype']} is fast here: `dtype: {here['dtype']}` would start anew" if kept != fresh else ""
        say(f"started on {there}, goes on on {now}, computed in {kept.dtype} as it began{differs}")
    return kept


def seed_all(seed: int) -> None:
    """Starts every generator that a library below may draw from."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries below us draw from it
    torch.manual_seed(seed)
