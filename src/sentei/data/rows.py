"""Reading lines and rows so that an error names the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import JSONError, loads

Bad = Callable[[str, str], None]  # (place, what is wrong with the row there, as the rest of a sentence)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, uncompressed where the name ends in .gz.

    Raises:
        InputError: missing, a directory, unreadable, or broken gzip.
    """
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of an existing file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a complete gzip file: {error}; write it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def decode(data: bytes, path: Path) -> str:
    """UTF-8 text (a byte order mark is dropped).

    Raises:
        InputError: not UTF-8, with the line and the byte offset.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line} {_not_utf8(error, 0)}") from error


def refuse(place: str, why: str) -> None:
    """What becomes of a bad row where nobody says otherwise.

    Raises:
        InputError: always.
    """
    raise InputError(f"{place} {why}")


def read_jsonl(path: Path, bad: Bad = refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Args:
        path: of the file. A byte order mark at the start of any line is dropped: files are joined with `cat`.
        bad: told the place and what is wrong of each line that is no UTF-8, no JSON or no object.

    Raises:
        InputError: see `read_bytes`; what `bad` raises, by default for the first bad line.
    """
    offset = 0
    # Split at "\n" only: str.splitlines also splits at U+2028, which JSON strings may hold.
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        start, offset = offset, offset + len(line) + 1
        if not line.strip():
            continue
        try:
            row = loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            bad(f"{path}:{number}", _not_utf8(error, start))
            continue
        except JSONError as error:
            column = f" at column {error.column}" if error.column else ""
            bad(f"{path}:{number}", f"is not JSON: {error}{column}; mend that line")
            continue
        if not isinstance(row, dict):
            bad(f"{path}:{number}", f'is {type(row).__name__}, expected an object such as {{"text": "…"}}')
            continue
        yield number, row


def _not_utf8(error: UnicodeDecodeError, offset: int) -> str:
    """What is wrong with bytes, `offset` of which came before those that were decoded."""
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start}; convert it to UTF-8"


def stem(path: str | Path) -> str:
    """The name of a data file without .gz and its format: `wikitext2_tok.test` for wikitext2_tok.test.jsonl.gz."""
    name = Path(path).name.removesuffix(".gz")
    for suffix in (".jsonl", ".txt", ".parquet"):
        name = name.removesuffix(suffix)
    return name
