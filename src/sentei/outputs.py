"""Outputs: made beside their place, and swapped in when they are whole; `sentei.places` refuses bad ones before.

Beside an output `OUT` lies `.OUT.sentei/` while a process makes it: a lock, the new result, and the old one while the
two change places. Who holds the lock owns what lies there, so whoever takes it next puts back or sweeps what a dead
process left. Work that can be gone on with is in `.OUT.partial-KEY/` and stays until it is done or abandoned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sentei.errors import InputError
from sentei.files import hash_json, mended, told_as
from sentei.marks import write_mark
from sentei.places import check_output

LINK_BYTES = 1 << 20  # published files above this are hard links, not copies
WORK_DAYS = 7.0  # work that nobody went on with for so long is abandoned


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """Holds an output for this process; gives the scratch directory beside it, which is gone when the block ends.

    What a killed process left of this output, or of others in the same directory, is put back or swept first. A block
    inside a block of the same output holds it already.

    Raises:
        InputError: another process holds it, or nothing can be written there.
    """
    path = Path(path).resolve()
    with mended(path):
        made = _make_parents(path)
        shop = _shop(path)
        lock = _taken(shop, path)
    try:
        if lock.lock_counter == 1:
            with mended(path):
                _tidy(path, shop)
            _sweep_dead(path.parent)
        with told_as(path):
            yield shop
        if lock.lock_counter == 1 and path.exists():
            for work in path.parent.glob(f".{_escaped(path.name)}.partial-*"):
                shutil.rmtree(work)  # the result is there: nothing is left to go on with
    finally:
        if lock.lock_counter == 1:
            _drop(shop, lock)
            for parent in made:  # of a verb that ended without a result
                with contextlib.suppress(OSError):
                    parent.rmdir()
        else:
            lock.release()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a directory that grows in place; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    with mended(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(_busy(directory)) from None
    try:
        with told_as(directory):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def atomic_dir(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new directory that appears at `path` only when the block ends without an error; see `check_output`."""
    check_output(path, overwrite=overwrite)
    with replaced_dir(path) as scratch:
        yield scratch


@contextlib.contextmanager
def replaced_dir(path: Path) -> Iterator[Path]:
    """As `atomic_dir`, in place of whatever is there: for what lies inside a directory of ours."""
    path = Path(path).resolve()
    with claimed(path) as shop:
        scratch = shop / "new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        write_mark(scratch)
        if path.exists():
            os.rename(path, shop / "old")
        os.rename(scratch, path)
        remove(shop / "old")


def publish(source: Path, target: Path) -> None:
    """Shows a file or directory at another place; big files are hard links where the file system has them."""

    def place(from_: str, to: str) -> None:
        if os.path.getsize(from_) > LINK_BYTES:
            with contextlib.suppress(OSError):  # another file system, or one without links: copy below
                os.link(from_, to)
                return
        shutil.copy2(from_, to)

    if source.is_dir():
        with replaced_dir(target) as scratch:
            shutil.copytree(source, scratch, copy_function=place, dirs_exist_ok=True)
    else:
        scratch_file = target.with_name(f".{target.name}.new")
        scratch_file.unlink(missing_ok=True)
        place(str(source), str(scratch_file))
        os.replace(scratch_file, target)


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A file that appears at `path` only when the block, which writes to the path it gets, ends without an error."""
    path = Path(path).resolve()
    with claimed(path) as shop:
        yield shop / path.name
        os.replace(shop / path.name, path)


@contextlib.contextmanager
def work_dir(out: Path, key: Any) -> Iterator[Path]:
    """A directory beside `out` for work that can be gone on with; it is removed when the block ends without an error.

    Its name holds the hash of `key` (JSON: all that the work depends on), so other settings find another directory;
    those are swept when there is a result.

    Raises:
        InputError: another process works on `out`.
    """
    out = Path(out).resolve()
    path = out.parent / f".{out.name}.partial-{hash_json(key)[:12]}"
    with claimed(out):
        path.mkdir(exist_ok=True)
        try:
            yield path
        except BaseException:
            if not any(file.is_file() for file in path.rglob("*")):
                shutil.rmtree(path)  # nothing was done yet
            raise
        shutil.rmtree(path)


def _shop(path: Path) -> Path:
    return path.with_name(f".{path.name}.sentei")


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def _busy(path: Path) -> str:
    return f"another sentei is running in {path}; wait for it or choose another --out"


def _make_parents(path: Path) -> list[Path]:
    """Makes the directories above `path`; gives those that were missing, the innermost first."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _taken(shop: Path, path: Path) -> Any:
    """The lock in a scratch directory, acquired."""
    for _ in range(100):  # a process that ends takes the directory away between our two steps
        shop.mkdir(exist_ok=True)
        lock = FileLock(shop / "lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
            return lock
        except Timeout:
            raise InputError(_busy(path)) from None
        except FileNotFoundError:
            continue
    raise InputError(_busy(path))


def _drop(shop: Path, lock: Any) -> None:
    """Ends a claim: the directory goes while the lock is held, so that nobody finds half of it."""
    shutil.rmtree(shop, ignore_errors=os.name == "nt")
    lock.release(force=True)
    if os.name == "nt":  # there an open file cannot be removed
        shutil.rmtree(shop, ignore_errors=True)


def _tidy(path: Path, shop: Path) -> None:
    """Ends what a killed process began: the old result goes back where no new one has come."""
    if (shop / "old").exists() and not path.exists():
        os.rename(shop / "old", path)
    for left in shop.iterdir():
        if left.name != "lock":
            remove(left)
    path.with_name(f".{path.name}.new").unlink(missing_ok=True)  # of `write_text`


def _sweep_dead(parent: Path) -> None:
    """The same for all other outputs in a directory whose processes are dead, as far as we may; and abandoned work."""
    for shop in parent.glob(".*.sentei"):
        path = parent / shop.name.removeprefix(".").removesuffix(".sentei")
        with contextlib.suppress(OSError, Timeout):  # of a living process, or of another user
            if (shop / "lock").is_file():
                with FileLock(shop / "lock", timeout=0):
                    _tidy(path, shop)
                    shutil.rmtree(shop)
    for work in parent.glob(".*.partial-" + "[0-9a-f]" * 12):
        with contextlib.suppress(OSError):
            times = [file.stat().st_mtime for file in (work, *work.rglob("*"))]
            if time.time() - max(times) > WORK_DAYS * 86400:
                shutil.rmtree(work)


def remove(path: Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
