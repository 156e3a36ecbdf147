"""Outputs: nothing of the user's is replaced, nothing is half there, and nothing of a dead process stays."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sentei.errors import InputError
from sentei.files import told_as, write_json, write_text
from sentei.marks import MARK, replaceable
from sentei.outputs import atomic_dir, atomic_output, claimed, locked, replaced_dir, work_dir
from sentei.places import check_output


def made(path: Path, text: str = "one") -> Path:
    with atomic_dir(path, overwrite=True) as scratch:
        write_text(scratch / "a.txt", text)
        write_text(scratch / "deep" / "b[1].txt", text)
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_what_sentei_wrote_is_replaced(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(InputError, match="exists and is not empty"), atomic_dir(out):
        pass
    made(out, "two")
    assert (out / "a.txt").read_text() == "two" and names(tmp_path) == ["out"]
    assert json.loads((out / MARK).read_text())["files"] == ["a.txt", "deep/b[[]1].txt"]


@pytest.mark.parametrize("place", ["thesis.txt", "deep/thesis.txt"])
def test_a_file_of_the_users_in_a_result_is_not_removed(tmp_path: Path, place: str) -> None:
    out = made(tmp_path / "out")
    (out / place).write_text("mine")
    with pytest.raises(InputError, match=f"holds {place}, which sentei did not write"):
        made(out, "two")
    assert (out / place).read_text() == "mine" and (out / "a.txt").read_text() == "one"


def test_what_sentei_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match="was not written by sentei"):
            made(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine" and names(tmp_path) == ["file", "mine"]


def test_results_of_earlier_versions_are_known(tmp_path: Path) -> None:
    for name, sign in (("profile", "profile.json"), ("model", "plan.json"), ("selection", "selection.json")):
        out = tmp_path / name
        write_json(out / sign, {"schema_version": 1})
        if name == "model":
            with pytest.raises(InputError, match="was not written by sentei"):
                replaceable(out)  # a plan may lie beside the model that it is for
            write_json(out / "config.json", {"prune_provenance": {}})
        replaceable(out)
        (out / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match=r"holds thesis\.txt"):
            replaceable(out)


def test_places_that_are_never_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(tmp_path / "models" / "dense")  # marked: only where it is stands against it
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path / "work" / "deep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for out in (".", "..", "../..", tmp_path / "work", "/", "~"):
        with pytest.raises(InputError, match=r"(is|holds) the (working|home) directory"):
            check_output(Path(out).expanduser(), overwrite=True)
    for out in (
        model,
        tmp_path / "models",
        tmp_path / "link",
        tmp_path / "link" / "dense",
        tmp_path / "models/../models",
    ):
        with pytest.raises(InputError, match=r"(is|holds) the input"):
            check_output(out, inputs=["demo", None, str(model)], overwrite=True)
        with pytest.raises(InputError, match=r"(is|holds) the input"):
            check_output(out, inputs=["../../link/dense"], overwrite=True)
    assert check_output(model / "inside", inputs=[model]) == model / "inside"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 300), Path("/proc/out"), tmp_path / ("x" * 250)):
        with pytest.raises(InputError, match=r"cannot (be made|write).*choose another --out"):
            check_output(out)
            with claimed(out):
                pass
    assert names(tmp_path) == ["file"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(RuntimeError), atomic_dir(out, overwrite=True) as scratch:
        write_text(scratch / "a.txt", "two")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_output(tmp_path / "new" / "deep" / "f.gguf") as file:
        file.write_text("half")
        raise RuntimeError
    assert (out / "a.txt").read_text() == "one" and names(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sentei import outputs
at, out = sys.argv[1], Path(sys.argv[2])
def dead(*_):
    os.kill(os.getpid(), signal.SIGKILL)
real = os.rename
def rename(a, b):
    if at == "aside": dead()
    real(a, b)
    if at == "between": dead()
    if at == "after" and Path(b) == out: dead()
os.rename = rename
with outputs.atomic_dir(out, overwrite=True) as scratch:
    (scratch / "a.txt").write_text("two")
    if at == "work": dead()
"""


@pytest.mark.parametrize(("at", "kept"), [("work", "one"), ("aside", "one"), ("between", "one"), ("after", "two")])
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, at: str, kept: str) -> None:
    out = made(tmp_path / "out")
    assert subprocess.run([sys.executable, "-c", KILLED, at, str(out)]).returncode == -9
    assert names(tmp_path) != ["out"], "there is something to sweep"
    made(tmp_path / "other")  # another output in the same directory
    assert (out / "a.txt").read_text() == kept and names(tmp_path) == ["other", "out"]


def test_a_living_process_keeps_its_scratch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sentei.outputs import *\nwith work_dir(Path(sys.argv[1]), 1):\n print(flush=True)\n input()"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None and living.stdin is not None
        living.stdout.readline()
        before = names(tmp_path)
        with pytest.raises(InputError, match=r"another sentei is running in .*out"):
            made(out)
        made(tmp_path / "other")
        assert names(tmp_path) == sorted([*before, "other"])
        living.communicate("\n")
    assert names(tmp_path) == ["other"]


def test_a_directory_that_grows_is_locked(tmp_path: Path) -> None:
    code = "import sys\nfrom sentei.outputs import *\nwith locked(Path(sys.argv[1])): pass"
    with locked(tmp_path / "run"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
        assert "another sentei is running in" in done.stderr
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")]).returncode == 0


def test_work_stays_until_it_is_done_or_abandoned(tmp_path: Path) -> None:
    out, stop = tmp_path / "out", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), work_dir(out, 1):
        raise stop
    assert names(tmp_path) == [], "nothing was done"
    for key in (1, 2):
        with pytest.raises(KeyboardInterrupt), work_dir(out, key) as work:
            (work / "state").write_text("half")
            raise stop
    assert len(names(tmp_path)) == 2 and work.name in names(tmp_path)
    with work_dir(out, 2) as again:
        assert (again / "state").read_text() == "half"
        made(out)
    assert names(tmp_path) == ["out"], "that of other settings is swept too"
    (tmp_path / ".out.partial-0123456789ab").mkdir()
    made(out)
    old = tmp_path / ".other.partial-0123456789ab"
    for path in (old, tmp_path / ".young.partial-0123456789ab"):
        path.mkdir()
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    made(out, "two")
    assert names(tmp_path) == [".young.partial-0123456789ab", "out"]


def test_inside_a_block_of_the_same_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out):
        made(out)
        assert names(tmp_path) == [".out.sentei", "out"]
    assert names(tmp_path) == ["out"]
    (tmp_path / "link").symlink_to(out)
    made(tmp_path / "link", "two")
    assert (out / "a.txt").read_text() == "two" and (tmp_path / "link").is_symlink()


def test_a_full_disk_is_told_by_the_name_of_the_output(tmp_path: Path) -> None:
    out, full = tmp_path / "out", OSError(errno.ENOSPC, "No space left on device")
    for error in (full, RuntimeError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(InputError, match=rf"^cannot write {out}: No space left on device"), replaced_dir(out):
            raise error
    with pytest.raises(FileNotFoundError), replaced_dir(out):
        (tmp_path / "none").read_text()
    with pytest.raises(InputError, match="cannot write /proc/cache"), told_as(out):
        write_text(Path("/proc/cache"), "x")  # of another place
    assert names(tmp_path) == []


def test_a_file_is_replaced_by_one_of_its_kind(tmp_path: Path) -> None:
    from sentei.plan import Plan

    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(InputError, match="no earlier result of this kind"):
        check_output(tmp_path / "profile.json", overwrite=True, ours=Plan.load)
