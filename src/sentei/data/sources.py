"""Rows of files, directories and data sets, each with its place, so that an error can name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentei.data.rows import Bad, decode, read_bytes, read_jsonl, refuse
from sentei.errors import InputError, one_line
from sentei.files import JSONError, loads

ROW_FILES = (".jsonl", ".jsonl.gz", ".parquet")

Placed = Iterator[tuple[str, dict[str, Any]]]


def find_files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The file itself, or the files below a directory whose names end so, in order of their paths.

    A .json array is read where it is named; in a directory, .json is more often a description of the data.

    Raises:
        InputError: there is nothing at `path`, no such file in it, or a file of an unknown format.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file, a directory, or hf:name[:config[:split]]")
    if not path.is_dir():
        if not path.name.endswith((*endings, ".json")):
            raise InputError(
                f"{path} has an unknown format; expected a name that ends in {', '.join(endings)} or .json"
            )
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(endings))
    if not files:
        raise InputError(f"{path} has no text in it; expected files that end in {', '.join(endings)}")
    return files


def file_rows(path: Path, bad: Bad = refuse) -> Placed:
    """Place and object of each row: `file:line` for JSONL, `file: row n` (from 0) for parquet and .json arrays.

    Args:
        path: of the file.
        bad: told of each row that cannot be read, with its place.

    Raises:
        InputError: a broken file; what `bad` raises, by default for the first bad row.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        yield from _array(path, bad)
    else:
        for number, row in read_jsonl(path, bad):
            yield f"{path}:{number}", row


def _parquet(path: Path) -> Placed:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


def _array(path: Path, bad: Bad) -> Placed:
    try:
        rows = loads(decode(read_bytes(path), path))
    except JSONError as error:
        if not error.line:
            raise InputError(
                f"{path} cannot be used: {error}; as .jsonl, one object per line, it can be without"
            ) from None
        raise InputError(
            f"{path}:{error.line} is not JSON: {error} at column {error.column}; "
            "a file with one object per line must be named .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} is {type(rows).__name__}, expected an array of objects; or name it .jsonl")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            bad(f"{path}: row {number}", f"is {type(row).__name__}, expected an object")
            continue
        yield f"{path}: row {number}", row


def hf_rows(source: str) -> Placed:
    """Rows of `hf:name[:config[:split]]`: a data set of the hub, cached, or saved to a directory; split `train`.

    Raises:
        InputError: not understood, or cannot be loaded.
    """
    import datasets

    name, config, split, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    if not name or any(rest):
        raise InputError(
            f"{source} is not understood; expected hf:name[:config[:split]], such as hf:wikitext:wikitext-2-raw-v1:test"
        )
    try:
        if Path(name, "state.json").exists():  # written by Dataset.save_to_disk
            data = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # datasets raises errors of many libraries; all mean that it cannot be read
        raise InputError(f"{source} cannot be loaded: {one_line(error)}") from error
    for number, row in enumerate(data):
        yield f"{source}: row {number}", row
