"""The stage of shipping: exports for the engines that a recipe names, proven there, timed against the dense model."""

from __future__ import annotations

from typing import Any

from sentei import estimate
from sentei.errors import InputError
from sentei.files import write_json
from sentei.recipe import Recipe, Ship
from sentei.stages.base import Context, Stage
from sentei.stages.checks import ship_suits

PROMPT, NEW = 512, 64  # tokens of the timing
PARITY = 1000  # tokens of prompts that writing and the parity check take as long as


def _section(recipe: Recipe) -> Ship:
    """What the recipe says about shipping; the stage is wanted only where it says something."""
    assert recipe.ship is not None
    return recipe.ship


def _ship(context: Context) -> dict[str, Any]:
    from sentei.models.load import load
    from sentei.ship import ROUTES
    from sentei.ship.export import export

    ship = _section(context.recipe)
    last = next(name for name in ("compare", "accel", "cut") if name in context.before)
    path, limit = context.before[last] / "model", context.recipe.limit
    small = path if limit is not None else load(path, dtype="stored", device="cpu")
    exports = []
    for name in ship.to:
        file = f"model{ROUTES[name].suffix}" if ROUTES[name].suffix else name
        facts = export(
            small, name, context.out / "exports" / file, dtype=ship.dtype, memory=limit, progress=context.progress
        )
        context.progress.say(f"  {file}: {facts['bytes'] / 1e6:.1f} MB for {', '.join(facts['engines'])}")
        speed = _speed(context, name, file, facts) if ship.speed and limit is None else None
        exports.append({"file": f"exports/{file}", **facts, "speed": speed})
    write_json(context.out / "exports.json", exports)
    return {"exports": [row["file"] for row in exports]}


def _speed(context: Context, route: str, file: str, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The export against the dense model's, which is made for that and goes with the stage; None where it cannot run.

    A prompt that the model's context does not hold, with what comes after it, is shortened.
    """
    from sentei.models.load import context_length
    from sentei.ship.bench import bench
    from sentei.ship.engines import ENGINES
    from sentei.ship.export import export

    known = [ENGINES[name] for name in facts["engines"] if name in ENGINES]
    if not any(engine.installed() for engine in known):
        missing = (
            f"{known[0].name} is not installed: pip install {known[0].package}" if known else "sentei runs no engine"
        )
        context.progress.say(f"  {file} is not timed: {missing}")
        return None
    path, dense = context.out / "exports" / file, context.work / f"dense-{file}"
    model = context.dense()
    sees = context_length(model.model)
    if sees < 4:
        context.progress.say(f"  {file} is not timed: the model sees {sees} tokens")
        return None
    new = min(NEW, sees // 2)
    prompt = min(PROMPT, sees - new - 1)  # llama.cpp keeps room for one more
    if prompt < PROMPT:
        context.progress.say(f"  timed with {prompt} + {new} tokens: the model sees {sees:,}")
    made = export(model, route, dense, dtype=facts["dtype"], check=False, overwrite=True)
    found = bench([dense, path], prompt=prompt, new=new, progress=context.progress)
    runs = [run | {"export": f"exports/{file}"} for run in found["runs"] if run["export"] == str(path)]
    return {"protocol": found["protocol"], "dense_bytes": made["bytes"], "runs": runs}


def _check_ship(recipe: Recipe) -> None:
    from sentei.ship import ROUTES
    from sentei.ship.base import Options

    ship, planned = _section(recipe), recipe.budget.target_engine
    for name in ship.to:
        route = ROUTES[name]
        route.check(Options(ship.dtype))
        if route.sizes and planned not in route.sizes:
            raise InputError(
                f"ship.to: {name} wants a plan with legal sizes for it, and budget.target_engine is {planned!r}; "
                f"set it to {' or '.join(map(repr, route.sizes))}, or ship to another route"
            )
    if len({*ship.to}) < len(ship.to):
        raise InputError(f"ship.to names a route twice: {', '.join(ship.to)}; name each once")


def _ship_tokens(recipe: Recipe) -> float:
    """Parity, and the timing of two models in one engine for each route."""
    from sentei.ship.bench import ROUNDS

    ship = _section(recipe)
    if recipe.memory is not None:
        return 0.0  # neither: both hold the model
    timed = 2 * (ROUNDS + 1) * (PROMPT + NEW * estimate.DECODE) if ship.speed else 0
    return len(ship.to) * (PARITY + timed)


SHIP = Stage(
    _ship,
    tokens=_ship_tokens,
    reads=lambda r: r.ship and r.ship.model_dump(),
    check=_check_ship,
    suits=ship_suits,
    after=("cut", "accel", "compare"),
    wanted=lambda r: r.ship is not None,
    publishes=("exports",),
    optional=True,
)
