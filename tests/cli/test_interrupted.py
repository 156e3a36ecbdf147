"""A verb that works block by block and is stopped at any of them leaves nothing half-written, and works afterwards."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from sentei import cli
from sentei.families.streamed import StreamedBlocks
from sentei.models.save import save
from tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
COMMON = ("--memory", "64GB", "--dtype", "float32")


def run(*args: object, stop: tuple[int, signal.Signals] | None = None) -> tuple[int, int]:
    """A verb in a process of its own, which sends itself a signal when it comes to its n-th block.

    Returns:
        The exit code, negative for the signal that killed it, and the blocks that it came to.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _here(list(map(str, args)), write, stop)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        count = len(pipe.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def _here(args: list[str], counted: int, stop: tuple[int, signal.Signals] | None) -> int:
    seen, enter = [0], StreamedBlocks.enter

    def counting(self: StreamedBlocks, index: int) -> None:
        if index != self.current:
            os.write(counted, b".")
            if stop is not None and seen[0] == stop[0]:
                os.kill(os.getpid(), stop[1])
            seen[0] += 1
        enter(self, index)

    StreamedBlocks.enter = counting  # type: ignore[method-assign]  # of this process, which ends with the verb
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["sentei", *args]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def visible(path: Path) -> list[str]:
    """What is there beside work that can be gone on with, or is swept by the next verb."""
    return [entry.name for entry in path.iterdir() if not entry.name.startswith(".out.")] if path.exists() else []


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a text; with them a profile and a plan."""
    place = tmp_path_factory.mktemp("given")
    save(tiny_model(), place / "model", tokenizer=tiny_tokenizer())
    texts = [f"w{3 + i % 120} w{5 + i % 77} w{9 + i % 50}" for i in range(200)]
    (place / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert run(*measure(place), "--out", place / "profile")[0] == 0
    planned = ("plan", place / "profile", "--sparsity", 0.3, "--method", "flap", "--out", place / "plan.json")
    assert run(*planned)[0] == 0
    return place


def measure(place: Path) -> tuple[object, ...]:
    sizes = ("--tokens", 256, "--window", 32, "--gradient-tokens", 64)
    return ("measure", place / "model", "--data", place / "text.jsonl", *sizes, *COMMON)


def cut(place: Path) -> tuple[object, ...]:
    sizes = ("--plan", place / "plan.json", "--tokens", 256, "--window", 32)
    return ("cut", place / "model", "--data", place / "text.jsonl", *sizes, *COMMON)


@pytest.mark.parametrize("verb", [measure, cut])
def test_stopped_at_any_block(given: Path, tmp_path: Path, verb: object) -> None:
    assert callable(verb)
    command = verb(given)
    code, blocks = run(*command, "--out", tmp_path / "whole")
    assert code == 0 and blocks >= 8, "it comes to every block, of the model and of what is made, once at least"
    whole = contents(tmp_path / "whole")
    for at in range(blocks):
        kill, ended = ((signal.SIGTERM, 143), (signal.SIGKILL, -9))[at % 2]
        place = tmp_path / str(at)
        assert run(*command, "--out", place / "out", stop=(at, kill)) == (ended, at + 1) and not visible(place)
        assert run(*command, "--out", place / "out")[0] == 0
        assert sorted(entry.name for entry in place.iterdir()) == ["out"] and contents(place / "out") == whole
