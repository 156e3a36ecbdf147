"""The machine: which device a model is computed on, and in which dtype that is fast.

What is known decides: AMX or AVX512-BF16 on x86, compute capability 8.0 on CUDA, macOS 14 on MPS. Where a CPU is of
another kind, or oneDNN is kept from using it (`ONEDNN_MAX_CPU_ISA` and the like), a product is timed.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from typing import TYPE_CHECKING, Any

from sentei.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")
ASKED = ("auto", "stored", *DTYPES)  # what may stand for a dtype
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
CAPABILITY = (8, 0)  # of CUDA devices that multiply bf16 in hardware
FASTER = 1.2  # bf16 has to be faster than fp32 by this, to be worth its rounding
_PRODUCT = (1024, 576, 1536)  # rows, in, out: a small model's FFN
_REPEATS = 5


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device that `device` means here: "auto" or None are a CUDA device if there is one, else the CPU.

    Raises:
        InputError: no device of that name, or this machine has none of it.
    """
    import torch

    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise unknown("device", str(device), ("auto", "cpu", "cuda", "cuda:N", "mps")) from None
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"device {found}: torch {torch.__version__} sees {count} CUDA devices here; use --device cpu")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device mps: torch {torch.__version__} sees no Apple GPU here; use --device cpu")
    return found


def resolve_dtype(dtype: str, device: str | torch.device | None = None) -> str:
    """The name of the dtype that `dtype` means on a device; "stored" is the model's own, and stays.

    Raises:
        InputError: no such dtype, or no such device.
    """
    if dtype not in ASKED:
        raise unknown("dtype", dtype, ASKED)
    return fast_dtype(resolve_device(device)) if dtype == "auto" else dtype


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    import torch

    from sentei.memory import available

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available() if device.type == "cpu" else None


def fast_dtype(device: torch.device) -> str:
    """The faster one of "bfloat16" and "float32" on a device."""
    known = bf16_unit(device)
    if known is None:
        return "bfloat16" if _timed_gain(device) >= FASTER else "float32"
    return "bfloat16" if known else "float32"


def bf16_unit(device: torch.device) -> str | None:
    """What multiplies bf16 on a device, "" where nothing does, None where only a timed product can tell."""
    import torch

    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return f"capability {capability[0]}.{capability[1]}" if capability >= CAPABILITY else ""
    if device.type == "mps":
        return "MPS" if torch.backends.mps.is_macos_or_newer(14, 0) else ""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64", "x64")
    if device.type != "cpu" or not on_x86 or capped() or not torch.backends.mkldnn.is_available():
        return None
    flags = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    if not all(hasattr(torch.cpu, flag) for flag in flags.values()):
        return None
    return next((unit for unit, flag in flags.items() if getattr(torch.cpu, flag)()), "")


def capped() -> dict[str, str]:
    """The variables that keep torch from using all that the CPU has."""
    return {name: os.environ[name] for name in CAPS if os.environ.get(name, "").lower() not in ("", "default", "all")}


@functools.cache
def _timed_gain(device: torch.device) -> float:
    """How many times faster a product is in bf16 than in fp32: the best of some, in turns, once per process."""
    import torch

    rows, inner, outer = _PRODUCT
    # of ones: a generator's draw would shift what comes after it
    pairs = [
        (torch.ones(rows, inner, dtype=kind, device=device), torch.ones(outer, inner, dtype=kind, device=device))
        for kind in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf"), float("inf")]
    for repeat in range(1 + _REPEATS):  # the first warms up
        for at, (x, weight) in enumerate(pairs):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight).flatten()[0].item()  # waits for the device
            if repeat:
                best[at] = min(best[at], time.perf_counter() - started)
    return best[0] / best[1]


def describe(dtype: str = "auto", device: str | torch.device | None = None) -> dict[str, Any]:
    """What figures of a run depend on: device, its name, its unit for bf16, threads, resolved dtype, any caps."""
    import torch

    where = resolve_device(device)
    unit = bf16_unit(where)
    facts: dict[str, Any] = {
        "device": str(where),
        "name": torch.cuda.get_device_name(where) if where.type == "cuda" else processor(),
        "bf16": "timed" if unit is None else unit or "none",
        "threads": torch.get_num_threads(),
        "dtype": resolve_dtype(dtype, where),
    }
    return facts | ({"capped": capped()} if where.type == "cpu" and capped() else {})


@functools.cache
def processor() -> str:
    """The name of the processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    except OSError:  # not Linux
        names = []
    return next(filter(None, names), platform.processor() or platform.machine())
