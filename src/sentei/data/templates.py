r"""Templates that make a text of a row: `"{text}\nIntent:"`.

{key}          the value under a key: text, a number, true or false
{a.b}          the value under `b` of the object under `a`
{a[0]}         the first item of the list under `a`
{a[*]}         all its items, one a line; `{a[*].b}`: what each has under `b`
{{ and }}      braces
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sentei.errors import InputError, nearest

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_STEP = re.compile(r"\.?([^.\[\]{}]+)|\[(\d+|\*)\]")

Step = str | int | None  # a key, an index, or None for all items of a list
Path = tuple[Step, ...]


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        pieces: what is written as it is (str), and the paths into the row (tuple).
    """

    pieces: tuple[str | Path, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Reads a template.

        Raises:
            ValueError: a single brace, or a field that is no path.
        """
        pieces: list[str | Path] = []
        end = 0
        for found in _PIECE.finditer(text):
            pieces.append(text[end : found.start()])
            end = found.end()
            if found[0] in ("{{", "}}"):
                pieces.append(found[0][0])
            elif found[1] is None:
                raise ValueError(
                    f"there is a single {found[0]!r} at character {found.start() + 1}; a field is {{key}}, "
                    f"a brace is {found[0] * 2}"
                )
            else:
                pieces.append(parse_path(found[1]))
        return cls(tuple(piece for piece in [*pieces, text[end:]] if piece))

    def fill(self, row: Mapping[str, Any], place: str) -> str:
        """The text for a row.

        Raises:
            InputError: a missing key (place, the nearest), or a value that is no text (place, what it is).
        """
        return "".join(
            piece if isinstance(piece, str) else "\n".join(look_up(row, piece, place)) for piece in self.pieces
        )


def parse_path(text: str) -> Path:
    """Steps of a path such as `docs[*].text`.

    Raises:
        ValueError: not a path.
    """
    steps: list[Step] = []
    end = 0
    for found in _STEP.finditer(text):
        # the first step is a key without a dot, a later one has it
        if found.start() != end or (found[1] is not None and (found[0][0] == ".") == (end == 0)):
            break
        steps.append(found[1] if found[1] is not None else None if found[2] == "*" else int(found[2]))
        end = found.end()
    if not text or end != len(text) or not isinstance(steps[0], str):
        raise ValueError(f"{{{text}}} is not understood; expected a key, {{a.b}}, {{a[0]}} or {{a[*]}}")
    return tuple(steps)


def look_up(row: Mapping[str, Any], path: Path, place: str) -> list[str]:
    """The texts at the end of a path: one, or one per item where a step takes all items.

    Raises:
        InputError: a missing key or index, or a value that is no text, number or truth value.
    """
    values: list[tuple[str, Any]] = [("", row)]  # with the name that each has so far
    for step in path:
        values = [found for name, value in values for found in _step(name, value, step, place)]
    return [_text(name, value, place) for name, value in values]


def _step(name: str, value: Any, step: Step, place: str) -> list[tuple[str, Any]]:
    if isinstance(step, str):
        if not isinstance(value, Mapping):
            raise InputError(f"{place}: {name!r} is {type(value).__name__}, expected an object with {step!r} in it")
        if step not in value:
            inside = f" in {name!r}" if name else ""
            found = ", ".join(map(str, value)) or "none"
            raise InputError(f"{place}: there is no {step!r}{inside}{nearest(step, value)}; found: {found}")
        return [(f"{name}.{step}" if name else step, value[step])]
    if not isinstance(value, list):
        raise InputError(f"{place}: {name!r} is {type(value).__name__}, expected a list; write {{{name}}}")
    if step is None:
        return [(f"{name}[{at}]", item) for at, item in enumerate(value)]
    if step >= len(value):
        raise InputError(f"{place}: {name!r} has {len(value)} items, there is no [{step}]; the first is [0]")
    return [(f"{name}[{step}]", value[step])]


def _text(name: str, value: Any, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON has it
    if isinstance(value, str | int | float):
        return str(value)
    hint = ""
    if isinstance(value, list):
        hint = f"; take one item with {{{name}[0]}}, or all with {{{name}[*]}}"
    elif isinstance(value, Mapping):
        hint = f"; take one of its values, such as {{{name}.{next(iter(value), 'key')}}}"
    raise InputError(f"{place}: {name!r} is {'null' if value is None else type(value).__name__}, expected text{hint}")
