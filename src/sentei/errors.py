"""Errors that a user can mend, and the exit code that each gives on the command line.

Every message says what is wrong, where, what was got and expected, and how to mend it. The command line prints it on
one line, without a traceback (`--debug` shows it).
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable


class SenteiError(Exception):
    """Something went wrong inside sentei."""

    exit_code = 1


class InputError(SenteiError):
    """A model, data file, recipe or flag that cannot be used as it is."""

    exit_code = 2


class QualityError(SenteiError):
    """A result that misses the quality which was asked for."""

    exit_code = 3


class InfeasibleError(SenteiError):
    """A budget that no legal plan meets."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones: the nearest, and all of them."""
    names = list(known)
    return InputError(f"unknown {kind} {name!r}{nearest(name, names)}; known: {', '.join(names)}")


def for_shell(path: object) -> str:
    """A path or name as a shell reads it, for commands that are there to be copied."""
    return shlex.quote(str(path))


def one_line(error: BaseException) -> str:
    """An error of another library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
