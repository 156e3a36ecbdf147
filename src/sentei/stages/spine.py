"""The stages of the spine: measure, plan, cut, prove, report. Each reads the recipe and the files of earlier stages.

Those of recovery, which come between cut and prove, are in `recover.py`, that of shipping in `ship.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei import estimate
from sentei.files import write_json, write_text
from sentei.fingerprint import fingerprint
from sentei.outputs import remove
from sentei.recipe import Prune, Recipe
from sentei.record import read_record
from sentei.stages import checks
from sentei.stages.base import Context, Stage

SAME = 0.01  # of a text, above which it is said that it was calibrated on

if TYPE_CHECKING:
    from sentei.data.windows import Windows
    from sentei.measure.profile import Profile


def _measure(context: Context) -> dict[str, Any]:
    recipe = context.recipe
    profile = _profile(context, keep_grams=recipe.measure.keep_grams or _chosen_in_place(recipe))
    profile.info["data"] = Path(recipe.data).name
    profile.save(context.out / "profile")
    return {"tokens": profile.tokens, "window": profile.window, "model_digest": profile.model_digest}


def _profile(context: Context, *, keep_grams: bool) -> Profile:
    """Statistics of the dense model, in the stage's directory of work."""
    from sentei.data.text import read_texts
    from sentei.measure.collect import measure

    recipe = context.recipe
    settings = recipe.measure.model_dump() | {"keep_grams": keep_grams}
    texts = read_texts(recipe.data)
    return measure(
        context.dense(), texts, memory=recipe.limit, work=context.work, progress=context.progress, **settings
    )


def _chosen_in_place(recipe: Recipe) -> bool:
    """Whether plans are tried in place: in a model in memory, and with the profile's Gram matrices."""
    return _could_choose(recipe) and recipe.memory is None


def _could_choose(recipe: Recipe) -> bool:
    return recipe.prune == Prune(method="auto") and recipe.budget.limits.low_rank


def _check_data(recipe: Recipe) -> None:
    from sentei.data.text import read_texts

    read_texts(recipe.data)


def _plan(context: Context) -> dict[str, Any]:
    from sentei.measure.profile import Profile
    from sentei.prune.planning import plan, warning
    from sentei.search.choose import choose

    profile = Profile.load(context.before["measure"] / "profile")
    recipe = context.recipe
    parts = recipe.prune.model_dump(exclude_none=True)
    if _chosen_in_place(recipe) and not profile.contents.grams:  # of a run that was begun with another method
        context.progress.say("  plan: tries candidates in place, for which it measures with Gram matrices")
        profile = _profile(context, keep_grams=True)
    if _chosen_in_place(recipe):
        made = choose(context.dense().model, profile, recipe.budget, _judges(context), progress=context.progress)
    else:
        if _could_choose(recipe):
            context.progress.say("  plan: kinds are not tried in the model, which is not in memory; predictions decide")
        with context.progress.stage("plan"):
            made = plan(profile, recipe.budget, seed=recipe.seed, **parts)
    made.save(context.out / "plan.json")
    if said := warning(made):
        context.progress.say(f"  plan: {said}")
    return {"method": made.method, "budget": made.budget.describe(), "predicted": made.predicted}


def _judges(context: Context) -> Windows:
    """Windows of the calibration text behind those that `measure` read, or its last ones where it is no longer."""
    from sentei.data.calibration import as_windows
    from sentei.data.text import read_texts
    from sentei.search.choose import WINDOWS

    settings = context.recipe.measure
    tokens = settings.tokens + WINDOWS * settings.window
    return as_windows(read_texts(context.recipe.data), context.dense().tokenizer, window=settings.window, tokens=tokens)


def _cut(context: Context) -> dict[str, Any]:
    from sentei.data.text import read_texts
    from sentei.measure.profile import Profile
    from sentei.models.save import save
    from sentei.plan import Plan
    from sentei.prune.cut import cut

    recipe, dense = context.recipe, context.dense()
    own = Profile.load(context.before["measure"] / "profile").own_text
    plan = Plan.load(context.before["plan"] / "plan.json")
    remove(blocks := context.work / "blocks")  # of a killed run
    model = cut(
        dense,
        plan,
        read_texts(recipe.data),
        tokens=recipe.measure.tokens,
        window=recipe.measure.window,
        own_text=own if own is not None else 0,
        memory=recipe.limit,
        work=blocks,
        progress=context.progress,
    )
    save(model, context.out / "model", tokenizer=dense.tokenizer, plan=plan)
    return {"block_params": plan.shape().block_params(), "params": plan.shape().params()}


def _prove(context: Context) -> dict[str, Any]:
    from sentei.prove.evaluate import evaluate
    from sentei.report.words import calibrated_on

    recipe = context.recipe
    settings = recipe.prove.model_dump(exclude={"speed"})
    made = [context.before[name] / "model" for name in ("cut", "accel", "tune") if name in context.before]
    evidence = evaluate(
        [recipe.model, *made],
        with_speed=recipe.prove.speed and recipe.memory is None,  # read block by block, it has none
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
        memory=recipe.limit,
        progress=context.progress,
        **settings,
    )
    if shares := _calibrated_on(recipe):
        evidence["calibrated_on"] = shares
        context.progress.say(f"  {calibrated_on(shares)}")
    write_json(context.out / "evidence.json", evidence)
    return {}


def _calibrated_on(recipe: Recipe) -> dict[str, float]:
    """The texts for perplexity of which calibration could read a part, and how large it is."""
    from sentei.data.overlap import overlap
    from sentei.data.text import read_texts
    from sentei.prove.evaluate import read_texts_named

    calibration = read_texts(recipe.data)
    shares = {name: overlap(texts, calibration) for name, texts in map(read_texts_named, recipe.prove.texts)}
    return {name: share for name, share in shares.items() if share >= SAME}


def _check_evidence(recipe: Recipe) -> None:
    from sentei.prove.evaluate import read_named, read_tasks
    from sentei.prove.tasks import check_tasks

    read_named(recipe.prove.texts)
    check_tasks(read_tasks(recipe.prove.tasks))


def _calibration(recipe: Recipe) -> float:
    """Calibration tokens, about."""
    return _of_the_data(recipe) + _own_text(recipe)


def _of_the_data(recipe: Recipe) -> float:
    from sentei.data.text import read_texts

    return min(recipe.measure.tokens, estimate.tokens_of(read_texts(recipe.data)))


def _own_text(recipe: Recipe) -> float:
    """Tokens that the model writes for calibration; one that is streamed writes none."""
    return min(recipe.measure.own_text, _of_the_data(recipe)) if recipe.memory is None else 0.0


def _plan_tokens(recipe: Recipe) -> float:
    """`auto` reads the judging windows once for the dense model and once for each kind of plan."""
    from sentei.search.choose import CANDIDATES, WINDOWS

    return (1 + len(CANDIDATES)) * WINDOWS * recipe.measure.window if _chosen_in_place(recipe) else 0.0


def _prove_tokens(recipe: Recipe) -> float:
    """Texts and rows, read by two or three models."""
    from sentei.data.tasks import TaskSet
    from sentei.prove.evaluate import read_tasks, read_texts_named
    from sentei.prove.speed import ROUNDS

    prove = recipe.prove
    most = prove.windows * prove.window if prove.windows else float("inf")
    texts = sum(min(most, estimate.tokens_of(read_texts_named(source)[1])) for source in prove.texts)
    rows = sum(
        estimate.tokens_of(part for row in task.rows[: prove.limit] for value in row.values() for part in _texts(value))
        for task in read_tasks(prove.tasks)
        if isinstance(task, TaskSet)
    )
    timed = (ROUNDS + 1) * (512 + 32 * estimate.DECODE) if prove.speed and recipe.memory is None else 0
    return (3 if recipe.recover else 2) * (texts + rows + timed)


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _report(context: Context) -> dict[str, Any]:
    from sentei.measure.profile import Profile
    from sentei.plan import Plan
    from sentei.report.build import build
    from sentei.report.format_accel import AccelRecord
    from sentei.report.format_evidence import Evidence
    from sentei.report.format_run import Exported
    from sentei.report.html import render
    from sentei.report.recovery import collect
    from sentei.schema import read

    stages = context.before
    seconds = {name: read_record(path)["seconds"] for name, path in stages.items()}
    recovery = None
    if context.recipe.recover is not None:
        recovery = collect(context.recipe.recover, stages["select"], stages["tune"], stages["compare"], seconds)
    exports = read(stages["ship"] / "exports.json", list[Exported]) if "ship" in stages else []
    accel = read(stages["accel"] / "accel.json", AccelRecord) if "accel" in stages else None
    report = build(
        recipe=context.recipe,
        profile=Profile.load(stages["accel" if accel else "measure"] / "profile"),
        plan=Plan.load(stages["accel" if accel else "plan"] / "plan.json"),
        evidence=read(stages["prove"] / "evidence.json", Evidence),
        seconds=seconds,
        recovery=recovery,
        exports=exports,
        accel=accel,
    )
    if context.failed:
        report["failed"] = dict(context.failed)
    write_json(context.out / "report.json", report)
    write_text(context.out / "report.html", render(report))
    return {}


def _in_one_cut(recipe: Recipe) -> bool:
    """Whether there is one cut of a measured model; `accel` measures, plans and cuts in its own stage."""
    return recipe.accel is None


MEASURE = Stage(
    _measure,
    reads=lambda r: [
        fingerprint(r.model),
        fingerprint(r.data),
        r.dtype,
        r.measure.model_dump(),
        r.seed,
        *(["no own text"] if r.measure.own_text and r.memory is not None else []),
    ],
    check=_check_data,
    suits=checks.measure_suits,
    wanted=_in_one_cut,
    tokens=lambda r: (
        estimate.MEASURE * _calibration(r)
        + estimate.GRADIENT * r.measure.gradient_tokens
        + estimate.WRITE * _own_text(r)
    ),
)
PLAN = Stage(
    _plan,
    reads=lambda r: [
        r.budget.model_dump(),
        r.prune.model_dump(),
        r.seed,
        *(["predicted"] if _could_choose(r) and not _chosen_in_place(r) else []),
    ],
    check=checks.check_parts,
    suits=checks.plan_suits,
    wanted=_in_one_cut,
    after=("measure",),
    tokens=_plan_tokens,
)
CUT = Stage(
    _cut,
    reads=lambda r: None,
    suits=checks.cut_suits,
    wanted=_in_one_cut,
    after=("measure", "plan"),
    tokens=lambda r: estimate.CUT * _calibration(r),
    publishes=("model",),
)
PROVE = Stage(
    _prove,
    reads=lambda r: [r.prove.model_dump(), [fingerprint(source) for source in [*r.prove.texts, *r.prove.tasks]]],
    check=_check_evidence,
    suits=checks.prove_suits,
    after=("cut", "accel", "tune"),
    tokens=_prove_tokens,
)
REPORT = Stage(
    _report,
    reads=lambda r: r.recover and [r.recover.watts, r.recover.price_per_hour, r.recover.currency],
    after=("measure", "plan", "cut", "accel", "select", "tune", "compare", "prove", "ship"),
    publishes=("report.html", "report.json"),
)
