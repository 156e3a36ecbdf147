"""Formats as types: what is read from a file is checked against one before anything is done with it.

A format is a pydantic model, or a `TypedDict` where the value stays a dict. Sizes have bounds: a plan or a seed that no
machine can hold is a typing error, and is refused as one.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from sentei.errors import InputError, nearest, one_line
from sentei.files import JSONError, check_value, read_json, read_utf8

T = TypeVar("T")
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)

LARGEST = 2**63 - 1  # what every library below us holds; a seed, for one
WIDEST = 2**24  # of a matrix, in either direction: the largest vocabularies have 2^20 rows
DEEPEST = 2**14  # blocks of a model
VALUES = 100_000  # in a YAML file

Seed = Annotated[int, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Size = Annotated[int, Field(ge=0, le=WIDEST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]

# Of a TypedDict: types as they are written, no conversion; later versions may have more keys.
EXACT = ConfigDict(strict=True, extra="allow")


def parse(kind: type[T], value: Any, where: str, mend: str = "") -> T:
    """Validates `value` as `kind`; an error names the place, the key, what was got, and the nearest known key.

    What is a dict or a list stays the very value that was read, with what else is in it and in its order.

    Args:
        kind: a pydantic model or a type that pydantic knows.
        value: as read.
        where: the file, for messages.
        mend: what to do about it.

    Raises:
        InputError: the value is not of that type.
    """
    _refuse_infinite(value, where)
    try:
        checked: T = _adapter(kind).validate_python(value)
        return value if is_typeddict(kind) or get_origin(kind) is not None else checked
    except ValidationError as error:
        found = error.errors()
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a typo explains what is missing
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise InputError(f"{where}: {key}: {_message(kind, first)}{f'; {mend}' if mend else ''}") from error


def read(path: Path, kind: type[T], mend: str = "") -> T:
    """Reads a JSON file of a format.

    Raises:
        InputError: missing, not JSON, or not of that format, with the key.
    """
    return parse(kind, read_json(path), str(path), mend)


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """Reads a YAML file that holds keys.

    Args:
        path: of the file.
        what: to say of one that is missing: "a task is a YAML file with …".
        keys: that are expected, as an example.

    Raises:
        InputError: missing, not YAML (line and column), or no keys in it.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path} does not exist; {what}")
    try:
        value = load_yaml(read_utf8(path))
    except JSONError as error:
        place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
        raise InputError(f"{place}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected keys like {keys}, got {type(value).__name__}")
    return value


def load_yaml(text: str) -> Any:
    """A YAML value, under the same conditions as `sentei.files.loads`.

    Raises:
        JSONError: not YAML, a value that is not of the type that it is written as, nested too deeply, or grown out of
            proportion by aliases.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """With a bound on merged keys, of which ten lines can make billions."""

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > VALUES:
                raise yaml.constructor.ConstructorError(None, None, f"more than {VALUES:,} keys", node.start_mark)

    try:
        value = yaml.load(text, Loader)
        check_value(value, VALUES)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise JSONError(getattr(error, "problem", None) or one_line(error), line, column) from error
    except RecursionError:
        raise JSONError("lists and keys are nested too deeply") from None
    except JSONError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML's own: 2024-13-45 as a date, numbers of thousands of digits, `!!bool maybe`
        raise JSONError(f"a value is not what it looks like ({one_line(error)}); quote it if it is text") from error
    return value


def _refuse_infinite(value: Any, where: str) -> None:
    """NaN and infinities, which Python reads from JSON and YAML, and which no file of ours holds."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        key, item = left.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise InputError(f"{where}: {key.lstrip('.') or '(top level)'}: expected a finite number, got {item}")
        if isinstance(item, dict | list | tuple):
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            left += [(f"{key}.{name}", inner) for name, inner in pairs]


def _message(kind: Any, error: Mapping[str, Any]) -> str:
    message, got = error["msg"].removeprefix("Value error, "), error["input"]
    if error["type"] == "extra_forbidden":
        known = _keys(kind, error["loc"][:-1])
        return f"unknown key{nearest(str(error['loc'][-1]), known)}; known here: {', '.join(sorted(known))}"
    if error["type"] == "missing":
        keys = ", ".join(map(str, got)) if isinstance(got, dict) else ""
        return f"{message}; found: {keys[:200] or 'nothing'}"
    return message if error["type"] == "value_error" else f"{message}; got {_short(got)}"


def _short(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _keys(model: Any, path: tuple[Any, ...]) -> set[str]:
    """Names of the fields at `path` inside a pydantic model."""
    fields = getattr(model, "model_fields", {})
    for part in path:
        if part not in fields:
            continue
        annotation = fields[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        fields = next((a.model_fields for a in inner if hasattr(a, "model_fields")), fields)
    return set(fields)
