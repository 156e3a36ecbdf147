"""Files that are nearly right: whatever is wrong with them, the error is ours, in one line.

More of them, drawn otherwise: SENTEI_FUZZ=20000 SENTEI_FUZZ_SEED=7 pytest tests/fuzz
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fuzz.mutate import broken, mutated, text_of
from fuzz.readers import readers
from recover.recovering import by_topic
from sentei.cli import explain
from sentei.errors import SenteiError

MUTATIONS = int(os.environ.get("SENTEI_FUZZ", 2000))
SEED = int(os.environ.get("SENTEI_FUZZ_SEED", 0))


def test_whatever_a_file_holds_the_error_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.select.select._embedded", by_topic)
    formats = readers(tmp_path)
    parts = sum(reader.share for reader in formats.values())
    random, escaped = Random(SEED), Counter[str]()
    for name, reader in formats.items():
        refused, count = 0, max(20, MUTATIONS * reader.share // parts)
        valid = text_of(reader.value, reader.path.suffix)
        reader.path.write_text(valid, encoding="utf-8")
        reader.read(reader.path)  # what is valid is read
        for _ in range(count):
            if random.random() < 0.7:
                data = text_of(mutated(reader.value, random), reader.path.suffix).encode("utf-8", "surrogatepass")
            else:
                data = broken(valid, random)
            reader.path.write_bytes(data)
            try:
                reader.read(reader.path)
            except SenteiError as error:
                code, line = explain(error)
                assert code in (2, 4) and len(line) < 1100 and "\n" not in line, f"{name}: {code}: {line}"
                refused += 1
            except Exception as error:  # what must not be
                escaped[f"{name}: {type(error).__name__}: {str(error)[:100]} of {data[:400]!r}"] += 1
        assert refused > count / 20, f"{name}: {refused} of {count} were refused: nothing is looked at"
    assert not escaped, f"{sum(escaped.values())} escaped:\n" + "\n".join(escaped)
