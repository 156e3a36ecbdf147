"""The stages of recovery: select the data, tune on them, compare the damage before and after.

They are wanted where the recipe has a section `recover`. `select` and `tune` go on inside the stage after a kill.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sentei import estimate
from sentei.errors import InputError
from sentei.files import write_json
from sentei.fingerprint import fingerprint
from sentei.outputs import publish
from sentei.recipe import Recipe, Recover
from sentei.schema import LARGEST
from sentei.stages import checks
from sentei.stages.base import Context, Stage
from sentei.stages.pool import pool_of

if TYPE_CHECKING:
    from sentei.models.load import Loaded


def _section(recipe: Recipe) -> Recover:
    """What the recipe says about recovery; the stages here are wanted only where it says something."""
    assert recipe.recover is not None
    return recipe.recover


def _wanted_texts(recover: Recover) -> list[str]:
    """The wanted capability, as instructions."""
    from sentei.data.pools import read_pool

    return [row.prompt for row in read_pool(recover.target, strict=recover.strict_rows).rows] if recover.target else []


def _load(context: Context, stage: str, *, whole: bool = False) -> Loaded:
    """The model that an earlier stage made; `whole`: in memory, whatever the recipe says."""
    from sentei.models.load import load

    recipe = context.recipe
    limit = None if whole else recipe.limit
    return load(context.before[stage] / "model", dtype=recipe.dtype, device=recipe.device, memory=limit)


def _select(context: Context) -> dict[str, Any]:
    from sentei.recover.select.select import select
    from sentei.report.selection import write_page

    recover = _section(context.recipe)
    made = select(
        context.dense(),
        _load(context, "cut"),
        pool_of(context.recipe),
        context.work / "selection",  # its shards are kept beside it, so they survive a kill
        budget=recover.budget,
        strategy=recover.select,
        target=_wanted_texts(recover),
        languages=recover.languages,
        strict=recover.strict_rows,
        seed=context.recipe.seed,
        overwrite=True,
        progress=context.progress,
    )
    for path in made.directory.iterdir():
        path.rename(context.out / path.name)
    write_page(context.out)
    return {"strategy": recover.select, **made.about["budget"]}


def _check_select(recipe: Recipe) -> None:
    from sentei.recover.select.embed import find_embedder
    from sentei.recover.select.filters.language import check_languages
    from sentei.recover.select.picking import Amount
    from sentei.recover.select.strategies import find_strategy

    recover = _section(recipe)
    find_strategy(recover.select)
    if recover.select == "ids":
        raise InputError("recover.select: 'ids' needs a list of ids, which a recipe cannot give; use `sentei select`")
    find_embedder()
    check_languages(recover.languages)
    amount, rows = Amount.parse(recover.budget), len(pool_of(recipe).rows)
    if not find_strategy(recover.select).takes_all and amount.unit != "tokens":
        amount.check(rows, 0)
        if amount.units(rows) < 2:
            raise InputError(
                f"recover.budget: {recover.budget} of {rows:,} rows is one row, at least 2 are learnt from"
            )
    _wanted_texts(recover)


def _tune(context: Context) -> dict[str, Any]:
    from sentei.recover.tune.tune import tune

    recover = _section(context.recipe)
    if context.recipe.memory is not None:
        checks.tune_fits(context.recipe, _load(context, "cut"))
    tuned = tune(
        _load(context, "cut", whole=True),
        context.before["select"],
        adapter=recover.tune,
        budget_params=recover.budget_params,
        criterion=recover.criterion,
        mask=recover.mask,
        tokens=recover.tokens,
        batch_tokens=recover.batch_tokens,
        loss=recover.loss,
        learning_rate=recover.learning_rate,
        seed=context.recipe.seed,
        work=context.work,
        progress=context.progress,
    )
    tuned.save(context.out / "model")
    if tuned.record["note"]:
        context.progress.say(f"  {tuned.record['note']}")
    return {"stopped": tuned.record["stopped"]}


def _check_tune(recipe: Recipe) -> None:
    from sentei.recover.tune.tune import check_names, parameter_budget

    recover = _section(recipe)
    parameter_budget(recover.budget_params, LARGEST)
    check_names(adapter=recover.tune, loss=recover.loss, criterion=recover.criterion, mask=recover.mask)


def _compare(context: Context) -> dict[str, Any]:
    from sentei.data.text import read_texts
    from sentei.recover.capabilities import compare
    from sentei.recover.select.selection import Selection
    from sentei.recover.yardstick import judge, on_text

    recipe, progress = context.recipe, context.progress
    dense = functools.cache(context.dense)
    found = compare(
        dense,
        lambda: _load(context, "tune"),
        Selection.load(context.before["select"]),
        context.work,
        seed=recipe.seed,
        progress=progress,
    )
    text = on_text(
        dense,
        lambda: _load(context, "cut"),
        lambda: _load(context, "tune"),
        read_texts(recipe.data),
        context.work,
        skip=recipe.measure.tokens,
        progress=progress,
    )
    verdict = judge(found["overall"], text)
    recovered = verdict["kept"] == "recovered"
    publish(context.before["tune" if recovered else "cut"] / "model", context.out / "model")
    progress.say(f"  {verdict['reason']}" + ("" if recovered else ": recovery made it worse, the cut model is kept"))
    write_json(context.out / "capabilities.json", found | {"yardstick": verdict})
    return {"rows": found["overall"]["rows"], "kept": verdict["kept"]}


def _pool_tokens(recipe: Recipe, most: int | None = None) -> float:
    """Tokens of the pool, about; of `most` rows of it."""
    rows = pool_of(recipe).rows
    share = 1.0 if most is None else min(1.0, most / len(rows))
    letters = estimate.tokens_of(text for row in rows for text in (row.prompt, row.response))
    return share * (letters + estimate.TEMPLATE * len(rows))


def _compare_tokens(recipe: Recipe) -> float:
    """The rows that are left out, by two models, and the other text, twice by two models."""
    from sentei.recover.capabilities import ROWS
    from sentei.recover.select.picking import Amount
    from sentei.recover.yardstick import WINDOW, WINDOWS

    amount, count = Amount.parse(_section(recipe).budget), len(pool_of(recipe).rows)
    left = count - amount.units(count) if amount.unit != "tokens" else count
    return estimate.SCORE * (_pool_tokens(recipe, min(ROWS, left)) + 2 * WINDOWS * WINDOW)


def _of_select(recipe: Recipe) -> list[Any]:
    recover = _section(recipe)
    target = fingerprint(recover.target) if recover.target else None
    evaluated = recipe.prove.limit if recover.pool == "demo" else None
    return [
        fingerprint(recover.pool),
        recover.rows,
        evaluated,
        recover.select,
        str(recover.budget),
        target,
        recover.languages,
        recover.strict_rows,
        recipe.seed,
    ]


def _of_tune(recipe: Recipe) -> list[Any]:
    r = _section(recipe)
    return [
        r.tune,
        str(r.budget_params),
        r.criterion,
        r.mask,
        r.loss,
        r.tokens,
        r.batch_tokens,
        r.learning_rate,
        recipe.seed,
    ]


def _is_wanted(recipe: Recipe) -> bool:
    return recipe.recover is not None


SELECT = Stage(
    _select,
    reads=_of_select,
    check=_check_select,
    suits=checks.select_suits,
    after=("cut",),
    tokens=lambda r: estimate.SCORE * _pool_tokens(r),
    wanted=_is_wanted,
    publishes=("selection.html",),
)
TUNE = Stage(
    _tune,
    reads=_of_tune,
    check=_check_tune,
    suits=checks.tune_suits,
    after=("cut", "select"),
    tokens=lambda r: estimate.TUNE * _section(r).tokens,
    wanted=_is_wanted,
)
COMPARE = Stage(
    _compare,
    reads=lambda r: r.seed,
    after=("cut", "select", "tune"),
    wanted=_is_wanted,
    tokens=_compare_tokens,
    publishes=("model",),
)
