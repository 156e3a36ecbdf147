"""`sentei plan`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sentei.cli.app import Format, FormatOption, Out, Overwrite, hold, print_json, print_table
from sentei.errors import for_shell

if TYPE_CHECKING:
    from sentei.plan import Plan


def plan_command(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="What `sentei measure` wrote.")],
    out: Out,
    method: Annotated[str, typer.Option(help="See `sentei methods`.")] = "auto",
    sparsity: Annotated[str | None, typer.Option(help="Share of block params to remove: 0.2 or 20%.")] = None,
    params: Annotated[str | None, typer.Option(help="Block params to keep at most: 80000000 or 80M.")] = None,
    flops: Annotated[
        str | None, typer.Option(help="FLOPs per token to keep at most: a share (0.5 or 50%), or a number (100M).")
    ] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Bytes of weights and KV cache to keep at most: 200MB.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences in the KV cache.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens per sequence in the KV cache.")] = 1024,
    target_engine: Annotated[
        str, typer.Option(help="Whose legal sizes hold: transformers, llama.cpp, vllm, …")
    ] = "transformers",
    ffn_multiple: Annotated[int | None, typer.Option(help="FFN widths are multiples of this.")] = None,
    score: Annotated[str | None, typer.Option(help="Override the method's score.")] = None,
    allocation: Annotated[str | None, typer.Option(help="Override the method's allocation.")] = None,
    compensation: Annotated[str | None, typer.Option(help="Override the method's compensation.")] = None,
    protect: Annotated[
        str | None, typer.Option(help="What is not thinned: first:N, last:N, attention:N (or all), with commas; none.")
    ] = None,
    weigh: Annotated[
        str | None,
        typer.Option(help="How parts are compared: none, gradient, energy, share, standardise; default: the method's."),
    ] = None,
    storage: Annotated[str, typer.Option(help="Of low-rank matrices: factors, or pivoted (smaller).")] = "factors",
    refine: Annotated[str, typer.Option(help="none, or block: the cut ends with steps on each block.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Of the random score.")] = 0,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Decide what each block keeps: seconds, no model needed. Prints what and why."""
    from sentei.places import check_output
    from sentei.plan import Budget, Plan
    from sentei.schema import parse

    hold(out, profile, overwrite=overwrite, check=partial(check_output, ours=Plan.load))
    asked = {"sparsity": sparsity, "params": params, "flops": flops, "bytes": bytes_, "ffn_multiple": ffn_multiple}
    shared = {"batch": batch, "context": context, "target_engine": target_engine}
    budget: Budget = parse(Budget, {k: v for k, v in asked.items() if v is not None} | shared, "budget")
    from sentei.measure.profile import Profile
    from sentei.prune.planning import plan, warning

    names: dict[str, Any] = {"allocation": allocation, "compensation": compensation}
    names |= {"protect": protect, "weigh": weigh, "storage": storage, "refine": refine}
    made = plan(Profile.load(profile), budget, method, score=score, seed=seed, **names)
    made.save(out)
    if said := warning(made):
        typer.echo(said, err=True)
    if format is Format.json:
        print_json(made.model_dump(mode="json"))
    else:
        _show(made, out)


def _show(plan: Plan, out: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    dense, small = plan.dense, plan.shape()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    ranked = any(kept.ranks for kept in plan.blocks)
    for name in ("block", "KV groups", "query heads", "FFN channels", *(["ranks"] if ranked else [])):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for i, (kept, full) in enumerate(zip(plan.blocks, dense.blocks, strict=True)):
        heads = len(kept.kv_groups) * kept.heads_per_group
        pairs = (
            (len(kept.kv_groups), full.kv_groups),
            (heads, full.kv_groups * full.heads_per_group),
            (len(kept.ffn), full.ffn),
        )
        ranks = (
            [" ".join(f"{name.removesuffix('_proj')} {rank}" for name, rank in kept.ranks.items())] if ranked else []
        )
        table.add_row(str(i), *(f"{a}/{b}" for a, b in pairs), *ranks, kept.reason)
    print_table(table)
    removed = 1 - small.block_params() / dense.block_params()
    typer.echo(
        f"{plan.method}: {plan.score}, {plan.allocation}, {plan.compensation}; protected: {plan.protect}; "
        f"parts compared by: {plan.weigh}; {plan.budget.describe()}\n"
        f"block params {dense.block_params():,} → {small.block_params():,} ({removed:.2%} removed), "
        f"all params {dense.params():,} → {small.params():,}\n"
        f"{out}: apply it with sentei cut MODEL --plan {for_shell(out)} --data … --out …"
    )
