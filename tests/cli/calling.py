"""What a call of the command line gave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def refused(result: Result, *words: str, code: int = 2) -> None:
    lines = result.err.strip().splitlines()
    assert result.code == code, result
    assert lines and lines[-1].startswith("error: ") and "Traceback" not in result.err, result
    for word in words:
        assert word in lines[-1], (word, lines[-1])
