from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from cli.calling import Result
from sentei import cli


@pytest.fixture
def sentei(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*args: object) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["sentei", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return call
