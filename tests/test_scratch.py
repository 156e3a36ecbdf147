"""Temporary directories: gone with the block, or with the next one where the process was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sentei.scratch import temporary_dir

KILLED = """
import os, signal
from sentei.scratch import temporary_dir
with temporary_dir("x") as path:
    (path / "big").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_those_of_dead_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # it is looked up once
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "big").exists()
    with temporary_dir("x") as one, temporary_dir("x") as other:
        assert sorted(tmp_path.iterdir()) == sorted([one, other]), "that of the living stays"
    assert not list(tmp_path.iterdir())
