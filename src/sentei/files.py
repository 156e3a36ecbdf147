"""Writing so that nothing is ever half-written, and hashing what was read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentei.errors import InputError

DEPTH = 100  # lists and objects inside each other that are still data
_HALF = re.compile(r"[\ud800-\udfff]")
_MAY_BE_HALF = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")


class JSONError(ValueError):
    """What is wrong with a JSON text.

    Attributes:
        line, column: where, from 1; 0 where it is the value and not the text that is wrong.
    """

    def __init__(self, why: str, line: int = 0, column: int = 0) -> None:
        super().__init__(why)
        self.line, self.column = line, column


def loads(text: str) -> Any:
    """A JSON value that everything downstream can use: can be written again, hashed and tokenised.

    Every file and stream from outside is read with it, so that what Python's reader lets through or ends in errors of
    other kinds is one error here.

    Raises:
        JSONError: not JSON; a number of thousands of digits; more than `DEPTH` lists and objects inside each other;
            half a surrogate pair in a string, which no UTF-8 file can hold.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JSONError(error.msg, error.lineno, error.colno) from error
    except RecursionError:
        raise JSONError(_too_deep()) from None
    except ValueError as error:  # the limit of `sys.get_int_max_str_digits`
        raise JSONError("a number has thousands of digits, expected one that fits in 64 bits or a string") from error
    if text.count("[") + text.count("{") > DEPTH or _MAY_BE_HALF.search(text):
        check_value(value)
    return value


def check_value(value: Any, most: float = math.inf) -> None:
    """Refuses what `loads` refuses in a value of strings, numbers, lists and dicts that comes from elsewhere.

    Args:
        value: as read.
        most: values in it, where one may stand in many places (YAML's aliases).

    Raises:
        JSONError: nested too deeply, too many values, or half a surrogate pair in a string.
    """
    left, seen = [(value, 1)], 0
    while left:
        item, depth = left.pop()
        seen += 1
        if seen > most:
            raise JSONError(f"there are more than {most:,} values, aliases counted where they stand")
        if isinstance(item, str):
            if half := _HALF.search(item):
                raise JSONError(
                    f"half a surrogate pair ({ascii(half[0])[1:-1]}) stands in a string; write the whole character"
                )
        elif isinstance(item, dict | list | tuple):
            if depth > DEPTH:
                raise JSONError(_too_deep())
            inside = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            left += [(inner, depth + 1) for inner in inside]


def _too_deep() -> str:
    return f"lists and objects are nested too deeply, expected at most {DEPTH} levels"


class WriteError(InputError):
    """A place that cannot be written.

    Attributes:
        path: the place.
        reason: why not, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot write {path}: {reason}; free space or choose another --out")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def mended(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong in a block that only writes `path` into one line.

    Raises:
        WriteError: the disk is full, a permission is missing, a name too long, ….
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise WriteError(path, str(error.strerror or error)) from error
    except SafetensorError as error:  # its own name for a full disk
        raise WriteError(path, str(error)) from error


@contextlib.contextmanager
def told_as(path: Path) -> Iterator[None]:
    """A block of other work too, which writes the output `path`: a full disk is told by that name.

    Raises:
        WriteError: the disk is full, or a file of the output, or of the scratch beside it, cannot be written.
    """
    try:
        yield
    except WriteError as error:
        inner, own = Path(os.path.abspath(error.path)), Path(os.path.abspath(path))
        hidden = inner.relative_to(own.parent).parts[:1] if inner.is_relative_to(own.parent) else ()
        if inner == path or not (inner.is_relative_to(own) or (hidden[:1] and hidden[0].startswith(f".{own.name}."))):
            raise  # of another place, such as the cache
        raise WriteError(path, error.reason) from error
    except Exception as error:
        if not is_full(error):
            raise
        raise WriteError(path, "No space left on device") from error


def is_full(error: BaseException) -> bool:
    """Whether an error of any library says that the disk is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def check_space(path: Path, needed: int, what: str) -> None:
    """Refuses an output that the disk does not hold, before any work.

    Args:
        path: where it will be.
        needed: bytes of its files and of what lies beside it meanwhile.
        what: makes it.

    Raises:
        InputError: less is free.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{what} writes about {needed / 1e9:.2f} GB, the disk of {place} has {free / 1e9:.2f} GB free; "
            "free space or choose another --out"
        )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file that appears at `path` only when the block, which writes to the path it gets, ends without an error.

    For files inside a directory that this process owns; see `sentei.outputs` for what the user names.
    """
    scratch = path.with_name(f".{path.name}.new")
    with mended(path):
        try:
            scratch.unlink(missing_ok=True)  # may be a link, where `run` was killed in publishing
            yield scratch
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file through a temporary one and a rename."""
    path = Path(path)
    with mended(path):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch:
            scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, through a temporary file and a rename."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: see `read_utf8`; or not JSON (with line and column).
    """
    path = Path(path)
    try:
        return loads(read_utf8(path))
    except JSONError as error:
        place = f"{path}:{error.line}:{error.column} is not JSON" if error.line else f"{path} cannot be used"
        raise InputError(f"{place}: {error}") from error


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: missing, a directory, not readable, a name that the file system does not know, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, expected a file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from error
    except ValueError as error:  # a zero byte or half a surrogate pair in the name
        raise InputError(f"{str(path)!a:.200} is no name of a file: {error}") from error


def finite(value: float) -> float | None:
    """A figure for JSON, which has no infinity: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def finite_pair(pair: tuple[float, float]) -> list[float] | None:
    """An interval for JSON: None where an end of it is not finite."""
    return list(pair) if all(map(math.isfinite, pair)) else None


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a value's canonical JSON, in hex; what JSON does not know (dates of a parquet file) counts as text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
