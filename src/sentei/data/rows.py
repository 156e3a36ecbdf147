"""Reading lines and rows so that an error names the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentei.errors import InputError


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
        raise InputError(
            f"{path}:{line} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; convert it to UTF-8"
        ) from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises:
        InputError: see `read_bytes` and `decode`; a line that is no JSON object, with file and line.
    """
    # Split at "\n" only: str.splitlines also splits at U+2028, which JSON strings may hold.
    for number, line in enumerate(decode(read_bytes(path), path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number} is not JSON: {error.msg} at column {error.colno}; mend that line"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f'{path}:{number} is {type(row).__name__}, expected an object such as {{"text": "…"}}')
        yield number, row


def stem(path: str | Path) -> str:
    """The name of a data file without .gz and its format: `wikitext2_tok.test` for wikitext2_tok.test.jsonl.gz."""
    name = Path(path).name.removesuffix(".gz")
    for suffix in (".jsonl", ".txt", ".parquet"):
        name = name.removesuffix(suffix)
    return name
