from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import pytest

from sentei import progress as progress_module
from sentei.progress import Bar, Progress, TerminalProgress, duration, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_default_counts_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().stage("measure", total=3, unit="blocks") as bar:
        bar.advance()
        bar.advance(2)
    assert bar.done == 3
    assert capsys.readouterr() == ("", "")


def test_events_tell_start_advance_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "EVENT_SECONDS", 0)
    progress = TerminalProgress(tmp_path / "events.jsonl", io.StringIO())
    with progress.stage("cut", total=2, unit="blocks") as bar:
        bar.advance()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "advance", "end"]
    assert events[0]["unit"] == "blocks" and events[1]["done"] == 1 and events[2]["seconds"] >= 0


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PLAIN_SECONDS", 0)
    stream = io.StringIO()
    with TerminalProgress(stream=stream).stage("tasks", total=4, unit="rows") as bar:
        bar.advance()
    assert stream.getvalue().startswith("  tasks: 1/4 rows, about ")


def test_lines_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with TerminalProgress(stream=stream).stage("tasks", total=1000) as bar:
        for _ in range(1000):
            bar.advance()
    assert stream.getvalue() == ""


def test_bars_nest_on_a_terminal() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream=stream)
    with progress.stage("outer", total=1, unit="models") as outer:
        with progress.stage("inner", total=2) as inner:
            inner.advance(2)
            progress.say("between")
        outer.advance()
    assert "outer" in stream.getvalue() and "between" in stream.getvalue()


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ValueError, match="broken"), TerminalProgress(stream=Terminal()).stage("x", total=1):
        raise ValueError("broken")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (8.14, "8.1 s"), (59, "59 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_counts_are_whole_numbers_with_commas() -> None:
    bar = Bar(total=4_000_000, unit="tokens")
    bar.advance(1_234_567)
    assert str(bar).startswith("1,234,567/4,000,000 tokens, about ")
    half = Bar()
    half.advance(0.5)
    assert str(half) == "0.5"


def test_the_api_shows_bars_on_a_terminal_and_in_a_notebook_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(shown(None)) is Progress
    given = Progress()
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(shown(None), TerminalProgress) and shown(given) is given
    monkeypatch.setattr("sys.stderr", io.StringIO())
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert isinstance(shown(None), TerminalProgress)
