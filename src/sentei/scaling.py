"""A recipe made to fit: its windows into the model's context, and its numbers into the minutes that it may take.

A recipe says what is wanted. With `minutes` its tokens, windows and rows are taken times one factor, at most 1, so
that the estimate of all stages meets them; each keeps a floor below which its figures say nothing. What recovery
trains on is taken times the root of it: an evaluation of fewer rows has wider intervals, but training on too few
heals nothing. The recipe in the run's directory holds the scaled numbers: a run that goes on does not scale again, on
whatever machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sentei import estimate
from sentei.errors import InfeasibleError
from sentei.files import hash_json
from sentei.recipe import Recipe, Scaled

# What is scaled, and how far down. From less calibration than that the compensation fits noise; 8 windows and 24 rows
# are what a bootstrap and a paired interval need to be of use; fewer candidates leave too few that are held out.
FLOORS = {
    "measure.tokens": 4096,
    "measure.gradient_tokens": 2048,
    "prove.windows": 8,
    "prove.limit": 24,
    "recover.rows": 120,
    "recover.tokens": 4000,
    "accel.tokens": 20000,
}
SHARE = 0.85  # of the minutes that the estimate may fill: loading, reading and writing are not in it
_NEAR = 0.02  # of what is allowed: so close is close enough


def within_context(recipe: Recipe, context: int, say: Callable[[str], object]) -> Recipe:
    """The recipe with windows that the model sees whole."""
    for name in ("measure.window", "prove.window"):
        if (window := _get(recipe, name)) > context:
            say(f"  {name}: {window:,} → {context:,}, the model sees no more")
            recipe = _set(recipe, name, context)
    return recipe


def within_minutes(
    recipe: Recipe,
    tokens: Callable[[Recipe], Mapping[str, float]],
    pace: float,
    say: Callable[[str], object],
    asked: str = "",
) -> Recipe:
    """The recipe with numbers that its minutes allow; one that was made to fit them already stays as it is.

    Args:
        recipe: one without `minutes` is given back without what earlier ones made of it.
        tokens: what each stage of a recipe costs, in tokens of forward passes of the dense model.
        pace: of the dense model, in tokens per second.
        say: is told in a line what became smaller.
        asked: the digest of the recipe that was given; see `known_scaling`.

    Raises:
        InfeasibleError: even the floors take longer, with the fewest minutes that do not.
    """
    if recipe.minutes == (recipe.fitted.minutes if recipe.fitted else None):
        return recipe
    recipe = _unfitted(recipe)
    if recipe.minutes is None:
        return recipe
    allowed, numbers = SHARE * 60 * recipe.minutes * pace, _numbers(recipe)

    def cost(made: Recipe) -> float:
        return sum(tokens(made).values())

    made, most = recipe, cost(recipe)
    if most > allowed:
        made, least = _scaled(recipe, numbers, 0.0), cost(_scaled(recipe, numbers, 0.0))
        if least > allowed:
            raise InfeasibleError(
                f"minutes: {recipe.minutes:g} is too little at {pace:,.0f} tokens/s; the least that says something "
                f"takes {math.ceil(10 * least / (SHARE * 60 * pace)) / 10:g}"
            )
        low, high = 0.0, 1.0
        for step in range(12):  # the cost rises, bent and broken: halving now and then keeps a chord going
            factor = (low + high) / 2 if step % 2 else low + (high - low) * (allowed - least) / (most - least)
            tried = _scaled(recipe, numbers, factor)
            spent = cost(tried)
            if spent > allowed:
                high, most = factor, spent
            else:
                made, low, least = tried, factor, spent
            if (1 - _NEAR) * allowed <= spent <= allowed:
                break
    smaller = {name: value for name, value in numbers.items() if made is not recipe and _get(made, name) != value}
    said = ", ".join(f"{name} {_words(value)} → {_words(_get(made, name))}" for name, value in smaller.items())
    say(f"  {recipe.minutes:g} minutes at {pace:,.0f} tokens/s: {said or 'all that the recipe asks for'}")
    fitted = Scaled(minutes=recipe.minutes, tokens_per_second=round(pace, 1), wanted=smaller, asked=asked)
    return made.model_copy(update={"fitted": fitted})


def known_scaling(recipe: Recipe, before: Recipe) -> Recipe:
    """The recipe of a run directory, where that run was begun with this recipe: its numbers are made to fit already."""
    same = before.fitted is not None and before.fitted.asked == digest_of(recipe)
    return before if same else recipe


def digest_of(recipe: Recipe) -> str:
    """What stands for a recipe in `Scaled.asked`."""
    return hash_json(recipe.dump())


def _unfitted(recipe: Recipe) -> Recipe:
    for name, value in recipe.fitted.wanted.items() if recipe.fitted else ():
        recipe = _set(recipe, name, value)
    return recipe.model_copy(update={"fitted": None})


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """What is wanted; where a recipe wants all, how much there is. Tasks of the harness are not counted."""
    from sentei.data.tasks import TaskSet
    from sentei.data.text import read_texts
    from sentei.prove.evaluate import read_tasks, read_texts_named

    prove = recipe.prove
    there = estimate.tokens_of(read_texts(recipe.data))
    texts = [estimate.tokens_of(read_texts_named(source)[1]) for source in prove.texts]
    rows = [len(task.rows) for task in read_tasks(prove.tasks) if isinstance(task, TaskSet)]
    found: dict[str, Any] = {
        "measure.tokens": min(recipe.measure.tokens, int(there)),
        "measure.gradient_tokens": recipe.measure.gradient_tokens,
        "prove.windows": prove.windows or math.ceil(max(texts, default=0) / prove.window),
        "prove.limit": prove.limit or max(rows, default=0),
    }
    if recipe.recover is not None:
        from sentei.stages.pool import pool_of

        found["recover.rows"] = len(pool_of(recipe).rows)
        found["recover.tokens"] = recipe.recover.tokens
        found["recover.budget"] = recipe.recover.budget
    if recipe.accel is not None:
        found["accel.tokens"] = recipe.accel.tokens
    return {name: value for name, value in found.items() if value}


def _scaled(recipe: Recipe, numbers: Mapping[str, Any], factor: float) -> Recipe:
    for name, floor in FLOORS.items():
        if name in numbers:
            share = math.sqrt(factor) if name.startswith("recover.") else factor
            value = max(min(numbers[name], floor), int(share * numbers[name]))
            if name == "measure.tokens":
                value = max(1, value // recipe.measure.window) * recipe.measure.window
            recipe = _set(recipe, name, value)
    if recipe.recover is not None and recipe.recover.rows is not None:
        from sentei.recover.select.picking import Amount

        amount, share = Amount.parse(recipe.recover.budget), recipe.recover.rows / numbers["recover.rows"]
        if amount.unit != "share":  # a share of fewer rows is fewer rows already
            value = max(2, int(share * amount.value))
            recipe = _set(recipe, "recover.budget", value if amount.unit == "rows" else f"{value} tokens")
    return recipe


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _get(recipe: Recipe, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)


def _set(recipe: Recipe, name: str, value: Any) -> Recipe:
    section, key = name.split(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={key: value})})
