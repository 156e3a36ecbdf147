"""The typer application: registers the verbs and holds what they share."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sentei.cli.stopping import exit_code, how_to_go_on
from sentei.errors import InputError

LARGEST = 2**63 - 1  # of a number on the command line

VERBS = (
    "measure",
    "plan",
    "cut",
    "select",
    "tune",
    "accel",
    "eval",
    "fit",
    "frontier",
    "export",
    "parity",
    "serve",
    "bench",
    "run",
    "resume",
    "report",
    "watch",
    "methods",
    "doctor",
)


class InOrder(TyperGroup):
    """Lists the verbs in the order of the work."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names as they were registered."""
        return list(self.commands)


class ManyValues(TyperCommand):
    """Options that may repeat take many values at once too: `--tasks a.jsonl b.jsonl`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats the flag for each of its values."""
        many = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        spread: list[str] = []
        flag, given = "", 0
        for arg in args:
            if arg.startswith("-"):
                flag, given = (arg, 0) if arg in many else ("", 0)
            elif flag:
                given += 1
                if given > 1:
                    spread.append(flag)
            spread.append(arg)
        rest = super().parse_args(ctx, spread)
        for name, value in ctx.params.items():
            for number in value if isinstance(value, list | tuple) else [value]:
                _refuse_number(name, number)
        return rest


def _refuse_number(name: str, value: Any) -> None:
    """Numbers that no library below us holds, whatever the option."""
    flag = "--" + name.rstrip("_").replace("_", "-")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{flag} is a number that does not fit in 64 bits; expected at most {LARGEST}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{flag} is {value}, expected a finite number")


class Verb(ManyValues):
    """A verb: lets go of the outputs that it held, and says how to go on where it is stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Runs it."""
        with ExitStack() as held:
            token = _HELD.set(held)
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stop:
                typer.echo(f"\nstopped; {how_to_go_on(self.name, ctx.params)}", err=True)
                raise typer.Exit(exit_code(stop)) from None
            finally:
                _HELD.reset(token)


class Format(str, Enum):
    """How data are printed."""

    text = "text"
    json = "json"


class Dtype(str, Enum):
    """Precision of the model."""

    auto = "auto"
    stored = "stored"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


# Options that several verbs share.
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Built-in name, Hugging Face id, directory, or .gguf file.")
]
Out = Annotated[Path, typer.Option("--out", help="Where the result goes; it must not exist yet.", metavar="PATH")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Tokens = Annotated[int, typer.Option(min=2, help="Read at most this many tokens.")]
Window = Annotated[int, typer.Option(min=2, help="Tokens per window.")]
Field = Annotated[str | None, typer.Option(help="Key of the text in JSONL or parquet rows.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a pool with a bad row; by default such rows are skipped and counted.")
]
Length = Annotated[int, typer.Option(min=2, help="Tokens at which a row is cut.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Keep within this much, like 4GB: one block is in memory at a time.", metavar="SIZE"),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How data are printed on stdout.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Computed in; auto: what is fast here, stored: as the checkpoint is.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (a CUDA GPU if there is one), cpu, cuda, cuda:N or mps.", metavar="DEVICE")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model, recipe or task file.")
]

app = typer.Typer(
    cls=InOrder,
    help="Structured pruning of language models: measure once, decide many times, cut, and prove what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 3 quality missed, 4 budget infeasible.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from sentei import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; also understood after the verb.")] = False,
) -> None:
    """What holds for every verb."""


_HELD: ContextVar[ExitStack] = ContextVar("outputs that the running verb holds")


def hold(
    out: Path,
    *inputs: str | Path | None,
    overwrite: bool,
    check: Callable[..., Any] | None = None,
) -> None:
    """Refuses a bad place for the output before any work, and holds it until the verb ends.

    Args:
        out: the output.
        inputs: what the verb reads.
        overwrite: what sentei wrote there may be replaced.
        check: refuses; default: `sentei.places.check_output`.

    Raises:
        InputError: the place is bad, or another process works on it.
    """
    from sentei.outputs import claimed
    from sentei.places import check_output

    (check or check_output)(out, inputs=inputs, overwrite=overwrite)
    _HELD.get().enter_context(claimed(out))


def refuse_code(trusted: bool, wanted: bool, what: str) -> None:
    """A file of somebody else does not decide that code of somebody else runs: the command line does.

    Args:
        trusted: whether `--trust-remote-code` was given.
        wanted: whether the file asks for code to be run.
        what: how it does.

    Raises:
        InputError: it asks, and was not trusted.
    """
    if wanted and not trusted:
        raise InputError(f"{what}, with all that you may do here; read that code, then add --trust-remote-code")


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, its `schema_version` first."""
    ordered = {"schema_version": value["schema_version"], **value}
    typer.echo(json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(table: Any) -> None:
    """A rich table on stdout, as wide as it needs where stdout is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a table takes only what it needs; a pipe has no width to fold to
    console.print(table)


for verb in VERBS:
    module = importlib.import_module(f"sentei.cli.{verb}")
    app.command(verb, cls=Verb)(getattr(module, f"{verb}_command"))
