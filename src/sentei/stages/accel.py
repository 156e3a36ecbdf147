"""The stage that cuts and trains in turns: in place of measure, plan and cut, where a recipe has a section `accel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentei import estimate
from sentei.errors import InputError
from sentei.files import write_json
from sentei.fingerprint import fingerprint
from sentei.outputs import publish
from sentei.recipe import Accel, Prune, Recipe
from sentei.stages import checks
from sentei.stages.base import Context, Stage

if TYPE_CHECKING:
    from sentei.data.pools import Pool
    from sentei.models.load import Loaded

STATE = 12  # bytes per parameter of the blocks: fp32 masters and two moments
HELDOUT = 0.15  # tokens that are read of held-out rows, for each that is trained on


def _section(recipe: Recipe) -> Accel:
    assert recipe.accel is not None  # the stage is wanted only then
    return recipe.accel


def _pool(recipe: Recipe) -> Pool:
    from sentei.data.pools import read_pool

    section = _section(recipe)
    return read_pool(section.pool, evaluated=recipe.prove.limit, strict=section.strict_rows)


def _method(recipe: Recipe) -> Prune:
    """How each stage is planned: `auto` without ranks, which cannot be measured again."""
    prune = recipe.prune
    return prune.model_copy(update={"method": "structural"}) if prune.method == "auto" else prune


def _whole(recipe: Recipe, source: str) -> Loaded:
    """A model in memory, whatever the recipe says of it."""
    from sentei.models.load import load

    trust = recipe.trust_remote_code
    return load(source, dtype=recipe.dtype, device=recipe.device, trust_remote_code=trust)


def _accel(context: Context) -> dict[str, Any]:
    from sentei.accel.family import stage_dir
    from sentei.accel.loop import accel
    from sentei.data.text import read_texts
    from sentei.families import family_of
    from sentei.files import check_space

    recipe, section = context.recipe, _section(context.recipe)
    dense = context.dense() if recipe.memory is None else _whole(recipe, recipe.model)
    shape = family_of(dense.model.config).shape(dense.model.config)
    models = section.stages * shape.params() * shape.itemsize
    check_space(context.out, models + 3 * STATE * shape.block_params(), "accel")
    family = accel(
        dense,
        read_texts(recipe.data),
        _pool(recipe),
        recipe.budget,
        section.settings(recipe.seed),
        context.work,
        prune=_method(recipe).model_dump(exclude_none=True),
        teacher=None if section.teacher is None else _whole(recipe, section.teacher),
        strict=section.strict_rows,
        progress=context.progress,
    )
    for stage in range(1, len(family.stages) + 1):
        publish(family.model(stage), stage_dir(context.out / "family", stage))
    last = family.model(len(family.stages))
    publish(last, context.out / "model")
    publish(last / "plan.json", context.out / "plan.json")
    publish(family.directory / "profile", context.out / "profile")
    record = {"schema_version": 1, "stopped": family.stopped, "note": family.note, **family.record}
    write_json(context.out / "accel.json", record | {"family": family.stages})
    if family.note:
        context.progress.say(f"  {family.note}")
    return {"stopped": family.stopped, "stages": len(family.stages)}


def _check(recipe: Recipe) -> None:
    from sentei.accel.trained import check_trained
    from sentei.data.text import read_texts
    from sentei.prune.methods import LOW_RANK, method
    from sentei.recover.select.embed import find_embedder
    from sentei.recover.tune.tune import check_names

    section, made = _section(recipe), _method(recipe)
    if LOW_RANK in method(made.method).kinds:
        raise InputError(
            f"prune.method: {made.method} makes low-rank matrices, which the next stage of accel cannot measure; use a "
            "structural one, such as structural or adapt"
        )
    measured = recipe.measure.model_copy(update={"gradient_tokens": section.gradient_tokens})
    checks.check_parts(recipe.model_copy(update={"prune": made, "measure": measured}))
    check_trained(section.train)
    check_names(adapter=section.train, loss=section.loss)
    if section.select == "damage":
        find_embedder()
    read_texts(recipe.data)
    _pool(recipe)


def _suits(recipe: Recipe, dense: Loaded) -> None:
    """Every stage removes something, the pool fills the slices, the teacher fits, and there is memory and disk."""
    from sentei.accel.cutting import sizes_of
    from sentei.accel.memory import accel_bytes
    from sentei.accel.trained import check_suits
    from sentei.families import family_of
    from sentei.machine import free_memory
    from sentei.memory import check_free, check_memory
    from sentei.recover.teacher import Present

    section = _section(recipe)
    settings = section.settings(recipe.seed)
    shape = family_of(dense.model.config).shape(dense.model.config)
    check_suits(settings.train, shape)
    sizes_of(dense.model, recipe.budget, settings)
    made = recipe.model_copy(update={"prune": _method(recipe)})
    checks.measure_suits(made, dense)
    checks.plan_suits(made, dense)
    if section.teacher is not None:
        Present.of(_whole(recipe, section.teacher), dense)
    needed = accel_bytes(shape, settings.step_tokens, dense.model.dtype.itemsize)
    mend = "it holds the dense model, the one that is trained, and its optimiser; train an adapter, or use more memory"
    check_memory(recipe.limit, needed, "accel", mend)
    check_free(free_memory(dense.model.device), needed, "accel", mend)


def _tokens(recipe: Recipe) -> float:
    """Training with its looks, the teacher, and what each stage measures, cuts and proves."""
    from sentei.recover.tune.loss import LOSSES

    section = _section(recipe)
    step = estimate.STEP + HELDOUT + (1.0 if LOSSES[section.loss].teacher else 0.0)
    once = (estimate.MEASURE + estimate.CUT) * section.calibration + estimate.GRADIENT * section.gradient_tokens
    return step * section.tokens + section.stages * once


def _reads(recipe: Recipe) -> list[Any]:
    section = _section(recipe)
    teacher = None if section.teacher is None else fingerprint(section.teacher)
    return [
        fingerprint(recipe.model),
        fingerprint(recipe.data),
        fingerprint(section.pool),
        recipe.prove.limit if section.pool == "demo" else None,
        teacher,
        recipe.dtype,
        recipe.budget.model_dump(),
        recipe.prune.model_dump(),
        section.model_dump(exclude={"pool", "teacher"}),
        recipe.seed,
    ]


ACCEL = Stage(
    _accel,
    reads=_reads,
    check=_check,
    suits=_suits,
    wanted=lambda r: r.accel is not None,
    tokens=_tokens,
    publishes=("model", "family"),
)
