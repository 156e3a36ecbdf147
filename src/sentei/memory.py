"""Memory of this process, and the promise of `--memory`."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path

from sentei.errors import InputError

_M_MMAP_THRESHOLD, _MAPPED = -3, 1 << 20  # of malloc.h; allocations from this size on are mapped on their own
# What oneDNN keeps of up to 1,024 shapes of products: every expert computes another number of tokens. 770 MB were seen.
EXPERT_KERNELS = 800_000_000
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of "4GB", "1.5 GiB", "800M" or "2000000000".

    Raises:
        InputError: no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"{text!r} is no size of memory; expected one like 4GB, 1.5GiB or 800MB")
    unit = match[2].lower()
    if match[3] and unit:
        return int(float(match[1]) * 1024 ** "kmgt".index(unit) * 1024)
    return int(float(match[1]) * _UNITS[unit])


def check_memory(limit: int | None, needed: int, what: str, mend: str) -> None:
    """Refuses work that needs more memory than it may have.

    Args:
        limit: bytes that this process may hold; None: all.
        needed: bytes that the work takes beside what the process holds now.
        what: does the work.
        mend: how it would need less.

    Raises:
        InputError: it does not fit.
    """
    if limit is not None and (total := held() + needed) > limit:
        raise InputError(
            f"{what} needs about {total / 1e9:.2f} GB of memory, --memory allows {limit / 1e9:.2f} GB; {mend}"
        )


def check_free(free: int | None, needed: int, what: str, mend: str) -> None:
    """Refuses work that needs more memory than there is.

    Args:
        free: bytes; None: not known, and nothing is refused. See `available`.
        needed: bytes that the work takes.
        what: does the work.
        mend: how it would need less.

    Raises:
        InputError: it does not fit.
    """
    if free is not None and needed > free:
        raise InputError(f"{what} needs about {needed / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free; {mend}")


def available() -> int | None:
    """Bytes that this process could still take, as Linux and its control group say; None where nobody does."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, KeyError):  # no such group, or "max": no limit
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        found.append(int((group / "memory.max").read_text()) - used)
    return min(found, default=None)


def return_freed_memory() -> None:
    """Lets freed tensors go back to the system at once, where the C library can be told so (glibc).

    It would keep blocks of up to 32 MB for later, and pieces of them in between make four times a block's weights
    stay.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library: there memory is as it is
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED)


def held() -> int:
    """The memory that this process holds now, in bytes; the most that it held, where the system does not say."""
    return _status("VmRSS") or peak()


def reset_peak() -> None:
    """Starts the count of the peak anew; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak since the start of the process is reported


def peak() -> int:
    """The most memory that this process held, in bytes."""
    if most := _status("VmHWM"):
        return most
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, others KiB


def _status(name: str) -> int:
    """Bytes that Linux tells under a name; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
