"""Reading text from files, directories and data sets, and cutting it into windows of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.data.rows import decode, read_bytes
from sentei.data.sources import ROW_FILES, file_rows, find_files, hf_rows
from sentei.data.tokens import check_ids
from sentei.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

FORMATS = (".txt", *ROW_FILES)


def read_texts(source: str | Path, *, field: str | None = None) -> list[str]:
    """Texts of a file, a directory of files, a `datasets` data set, or the embedded demo data.

    Args:
        source: a .txt (one text), .jsonl, .jsonl.gz or .parquet file; a directory of them (in order of their paths);
            `hf:name[:config[:split]]` (split `train` by default; a local or an offline-cached one works too);
            or `demo`, the calibration half of the demo text.
        field: the key that holds the text; by default `text`, or the only key with a string.

    Raises:
        InputError: missing, empty, not UTF-8 (line and byte offset), a broken line or a missing field (file and line).
    """
    if str(source) == "demo":
        from sentei.data.demo import demo_texts

        return demo_texts("calibrate")
    if str(source).startswith("hf:"):
        texts = _column(hf_rows(str(source)), field)
    else:
        texts = [text for file in find_files(Path(source), FORMATS) for text in _read_file(file, field)]
    if not any(text.strip() for text in texts):
        raise InputError(f"{source} is empty: there is no text in it; give a file with some")
    return texts


def _read_file(path: Path, field: str | None) -> list[str]:
    if path.suffix == ".txt":
        return [decode(read_bytes(path), path)]
    return _column(file_rows(path), field)


def _column(rows: Iterable[tuple[str, dict[str, Any]]], field: str | None) -> list[str]:
    """The strings under `field` of rows that come with their place; the first row decides an unnamed field."""
    texts = []
    for place, row in rows:
        if field is None:
            strings = [key for key, value in row.items() if isinstance(value, str)]
            if "text" not in row and len(strings) != 1:
                raise InputError(
                    f'{place} has no field "text" (found: {", ".join(row) or "none"}); rename the right one, or '
                    "name it (--field where there is one)"
                )
            field = "text" if "text" in row else strings[0]
        if not isinstance(text := row.get(field), str):
            got = (
                f"{field!r} is {type(text).__name__}, expected a string"
                if field in row
                else f"there is no field {field!r}"
            )
            raise InputError(
                f"{place}: {got}{nearest(field, row) if field not in row else ''}; found: {', '.join(row) or 'none'}"
            )
        texts.append(text)
    return texts


def token_windows(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    window: int,
    windows: int | None = None,
    tokens: int | None = None,
    join: str = "\n\n",
    tail: bool = False,
) -> torch.Tensor:
    """Non-overlapping windows of the joined texts, without special tokens. Only as much is tokenised as is needed.

    Args:
        texts: the rest of them that fills no window is dropped.
        tokenizer: of transformers.
        window: tokens in a window.
        windows: take at most so many.
        tokens: take at most so many tokens, rounded down to whole windows, but at least one window.
        join: stands between two texts.
        tail: take the limited windows from the end of the text, not from its start.

    Returns:
        Token ids, int64 [n, window].

    Raises:
        InputError: there are fewer tokens than one window needs; a limit below one.
    """
    import torch

    for name, value in (("window", window), ("windows", windows), ("tokens", tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    limits = [windows] if windows is not None else []
    limits += [max(1, tokens // window)] if tokens is not None else []
    wanted = min(limits) if limits else None
    ids = _tokenise(texts, tokenizer, join, None if wanted is None or tail else wanted * window)
    count = len(ids) // window
    if count == 0:
        raise InputError(
            f"the text has {len(ids)} tokens, one window needs {window}; give more text or a smaller window"
        )
    count = count if wanted is None else min(count, wanted)
    start = len(ids) - count * window if tail else 0
    return torch.tensor(ids[start : start + count * window], dtype=torch.long).view(count, window)


def _tokenise(texts: Sequence[str], tokenizer: Any, join: str, wanted: int | None) -> list[int]:
    """Token ids of the joined texts, at least `wanted` of them where there are so many.

    A beginning of the text is tokenised, twice as long each time until it is enough. A merge can reach over the end of
    it, so a few tokens more than wanted are asked for: the result is that of tokenising everything.
    """
    spare, used, size = 32, 0, len(texts)
    characters = 6 * wanted if wanted is not None else 0
    while True:
        if wanted is None:
            used = size
        else:
            length = sum(len(text) + len(join) for text in texts[:used])
            while used < size and length < characters:
                length += len(texts[used]) + len(join)
                used += 1
        text = join.join(texts[:used])
        # One huge text (a .txt file) is cut too, or a small limit would tokenise all of it.
        cut = wanted is not None and len(text) > 2 * characters
        read = tokenizer(text[:characters] if cut else text, add_special_tokens=False, verbose=False)
        ids: list[int] = read["input_ids"]
        check_ids(tokenizer, [ids])
        if wanted is None or len(ids) >= wanted + spare or (used == size and not cut):
            return ids
        characters *= 2
