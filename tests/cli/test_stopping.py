"""A verb that is stopped says how to go on, and leaves the old result or the new one, and nothing that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sentei", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def stop(process: subprocess.Popen[str], when: str, kill: signal.Signals) -> tuple[int, str]:
    """Sends a signal as soon as `when` stands on stderr; gives the exit code and what was said."""
    assert process.stderr is not None
    said = ""
    while when not in said:
        more = os.read(process.stderr.fileno(), 1 << 12).decode()
        assert more, said
        said += more
    process.send_signal(kill)
    rest = process.stderr.read()
    process.stderr.close()
    return process.wait(), said + rest


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def measuring(stories_dir: Path, tmp_path: Path) -> list[object]:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl. " * 4000)
    (tmp_path / "out").mkdir()
    return ["measure", stories_dir, "--data", text, "--tokens", 16384, "--window", 128, "--out", tmp_path / "out" / "p"]


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_verb_says_how_to_go_on(
    measuring: list[object], tmp_path: Path, kill: signal.Signals, code: int
) -> None:
    got, said = stop(start(*measuring), "measure: ", kill)
    assert got == code and "the same command goes on where it was" in said.strip().splitlines()[-1]
    assert "Traceback" not in said and all(name.startswith(".p.partial-") for name in names(tmp_path / "out"))


def test_a_killed_verb_leaves_nothing_that_stays(measuring: list[object], tmp_path: Path) -> None:
    assert start(*measuring).wait() == 0
    before = (tmp_path / "out" / "p" / "profile.json").read_bytes()
    got, _ = stop(start(*measuring, "--overwrite"), "measure: ", signal.SIGKILL)
    assert got == -9 and (tmp_path / "out" / "p" / "profile.json").read_bytes() == before
    assert [name for name in names(tmp_path / "out") if not name.startswith(".p.partial-")] == [".p.sentei", "p"]
    assert start(*measuring, "--overwrite").wait() == 0
    assert names(tmp_path / "out") == ["p"] and (tmp_path / "out" / "p" / "profile.json").read_bytes() == before


def test_a_terminated_tune_keeps_what_it_can_go_on_with(stories_dir: Path, tmp_path: Path) -> None:
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out"
    pool.write_text("".join(f'{{"prompt": "a {i}", "completion": "b {i} c"}}\n' for i in range(64)))
    command = ["tune", stories_dir, "--data", pool, "--tokens", 20_000, "--batch-tokens", 256, "--adapter", "lora"]
    got, said = stop(start(*command, "--out", out / "m"), "tune", signal.SIGTERM)
    assert got == 143 and "the same command goes on where it was" in said
    left = names(out) if out.exists() else []
    assert all(name.startswith(".m.partial-") for name in left)
    assert start(*command, "--out", out / "m").wait() == 0
    assert names(out) == ["m"]
