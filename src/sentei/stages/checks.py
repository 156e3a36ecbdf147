"""What the stages can see to be wrong with the dense model at hand, before the first of them begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentei import estimate
from sentei.errors import InputError
from sentei.plan import Protect
from sentei.recipe import Recipe

if TYPE_CHECKING:
    from sentei.models.load import Loaded


def measure_suits(recipe: Recipe, dense: Loaded) -> None:
    """There is a tokenizer, and text for one window."""
    from sentei.data.text import read_texts, token_windows

    token_windows(read_texts(recipe.data), _tokenizer(dense), window=recipe.measure.window, windows=1)


def check_parts(recipe: Recipe) -> None:
    """Refuses a method that cannot plan for this budget, whatever the model.

    Raises:
        InputError: unknown names; parts that need each other, an engine or gradients.
    """
    from sentei.measure.scores import SCORES
    from sentei.prune.allocation import ALLOCATIONS
    from sentei.prune.methods import LOW_RANK, method
    from sentei.prune.planning import RANK_ALLOCATIONS, parts_of

    prune, budget, gradients = recipe.prune, recipe.budget, recipe.measure.gradient_tokens > 0
    base = method(prune.method)
    score, allocation, _ = parts_of(base, prune.score, prune.allocation, prune.compensation)
    found = SCORES[score]
    ranks = LOW_RANK in base.kinds and (base.name != "auto" or budget.limits.low_rank)
    if ranks and not budget.limits.low_rank:
        raise InputError(
            f"prune.method: {base.name} makes low-rank matrices, which engine {budget.target_engine!r} does not hold; "
            "use a structural one (auto), or budget.target_engine transformers, onnx or openvino"
        )
    if ranks and allocation not in RANK_ALLOCATIONS:
        raise InputError(f"prune.allocation: {allocation!r} knows no ranks; use {' or '.join(RANK_ALLOCATIONS)}")
    if ranks and found.scale != "nats":
        raise InputError(f"prune.score: ranks are priced in nats of the loss, and {score!r} is none; use obs-fisher")
    if not ranks and not ALLOCATIONS[allocation].needs_score:
        return
    if score == "block-influence":
        raise InputError("prune.score: 'block-influence' is about whole blocks; use it with allocation: blocks")
    compared = found.scale == "output" and (prune.weigh or base.weigh) == "gradient"
    if (found.needs_gradients or compared) and not gradients:
        what = f"score {score!r}" if found.needs_gradients else "weigh: gradient"
        raise InputError(f"measure.gradient_tokens is 0, and {what} needs gradients; set it to 8192")


def plan_suits(recipe: Recipe, dense: Loaded) -> None:
    """The architecture can have this budget for this engine, whatever is removed; see `Problem` and `Budget.target`."""
    from sentei.families import family_of
    from sentei.prune.allocation.problem import Problem
    from sentei.prune.methods import method
    from sentei.prune.planning import parts_of

    prune, shape = recipe.prune, family_of(dense.model.config).shape(dense.model.config)
    base = method(prune.method)
    score, _, compensation = parts_of(base, prune.score, prune.allocation, prune.compensation)
    Problem(shape, (), (), recipe.budget, score, compensation, prune.protect or Protect(), prune.weigh or base.weigh)
    recipe.budget.target(shape)


def cut_suits(recipe: Recipe, dense: Loaded) -> None:
    """There is memory to fit what any plan leaves. Refinement, whose need depends on the plan, is left to `cut`."""
    from sentei.data.text import read_texts
    from sentei.families import family_of
    from sentei.memory import check_memory
    from sentei.prune.compensation import COMPENSATIONS
    from sentei.prune.cut import cut_bytes
    from sentei.prune.methods import LOW_RANK, method
    from sentei.prune.planning import parts_of

    tokens = min(recipe.measure.tokens, int(estimate.tokens_of(read_texts(recipe.data))))
    shape, prune = family_of(dense.model.config).shape(dense.model.config), recipe.prune
    base = method(prune.method)
    *_, compensation = parts_of(base, prune.score, prune.allocation, prune.compensation)
    squares = COMPENSATIONS[compensation].weights or LOW_RANK in base.kinds
    needed = cut_bytes(shape, tokens, dense.model.dtype.itemsize, squares=squares)
    check_memory(recipe.limit, needed, "cut", "allow more, or read fewer measure.tokens")


def select_suits(recipe: Recipe, dense: Loaded) -> None:
    """The pool has the tokens that are asked for, and there is memory. Rows that filters will reject are not known."""
    from sentei.data.chat import encode
    from sentei.models.load import context_length
    from sentei.recover.select.picking import Amount
    from sentei.recover.select.select import LENGTH, check_scoring, find_strategy
    from sentei.stages.pool import pool_of

    assert recipe.recover is not None
    check_scoring(dense)
    amount = Amount.parse(recipe.recover.budget)
    if not find_strategy(recipe.recover.select).takes_all and amount.unit == "tokens":
        rows = pool_of(recipe).rows
        samples = encode(rows, _tokenizer(dense), length=min(LENGTH, context_length(dense.model)))
        amount.check(len(rows), sum(len(sample.ids) for sample in samples))


def tune_suits(recipe: Recipe, dense: Loaded) -> None:
    """No more parameters are to be trained than there will be."""
    from sentei.families import family_of
    from sentei.recover.tune.adapters.base import linears
    from sentei.recover.tune.tune import parameter_budget

    assert recipe.recover is not None
    params, config = sum(m.weight.numel() for m in linears(dense.model).values()), dense.model.config
    if recipe.budget.metric == "params":
        params = min(params, recipe.budget.target(family_of(config).shape(config)))
    parameter_budget(recipe.recover.budget_params, params)
    shape = family_of(config).shape(config)
    tune_fits(recipe, dense, recipe.budget.target(shape) / recipe.budget.cost(shape))


def tune_fits(recipe: Recipe, model: Loaded, share: float = 1.0) -> None:
    """Training holds the whole model.

    Args:
        recipe: says how much memory there is.
        model: that is trained, or of which that is a `share`.
        share: about.
    """
    from sentei.families import family_of
    from sentei.memory import check_memory
    from sentei.recover.tune.memory import tune_bytes

    assert recipe.recover is not None
    shape, itemsize = family_of(model.model.config).shape(model.model.config), model.model.dtype.itemsize
    needed = tune_bytes(shape, recipe.recover.batch_tokens, itemsize, share)
    mend = "it holds the whole cut model; allow more, remove more, or leave the section `recover` out"
    check_memory(recipe.limit, needed, "tune", mend)


def prove_suits(recipe: Recipe, dense: Loaded) -> None:
    """Every text fills one window, and there is memory to read it with the dense model."""
    from sentei.data.text import token_windows
    from sentei.inference.walk import check_walk
    from sentei.prove.evaluate import read_texts_named

    for source in recipe.prove.texts:
        name, texts = read_texts_named(source)
        try:
            token_windows(texts, _tokenizer(dense), window=recipe.prove.window, windows=1)
        except InputError as error:
            raise InputError(f"prove.texts, {name}: {error}") from error
    check_walk(dense.model, "prove")


def ship_suits(recipe: Recipe, dense: Loaded) -> None:
    """What a route does not hold of the dense model, it does not hold of a smaller one."""
    from sentei.families import family_of
    from sentei.memory import check_memory
    from sentei.ship import ROUTES
    from sentei.ship.export import whole_bytes

    assert recipe.ship is not None
    shape, size = family_of(dense.model.config).shape(dense.model.config), dense.model.dtype.itemsize
    params = int(shape.params() * recipe.budget.target(shape) / recipe.budget.cost(shape))
    for name in recipe.ship.to:
        if ROUTES[name].holds:
            needed = whole_bytes(ROUTES[name], params, size)
            check_memory(recipe.limit, needed, f"ship to {name}", "it holds the whole model; allow more, or ship to hf")
        if reason := ROUTES[name].refuse(dense):
            raise InputError(f"ship.to: {dense.name} cannot be exported to {name}: {reason}")


def _tokenizer(dense: Loaded) -> object:
    if dense.tokenizer is None:
        raise InputError(f"{dense.name} has no tokenizer, which every stage needs; put its files into the directory")
    return dense.tokenizer
