"""What `auto` means is decided by what is known of a device, or by a timed product."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from sentei import machine
from sentei.errors import InputError
from sentei.machine import bf16_unit, describe, fast_dtype, resolve_device, resolve_dtype

CPU = torch.device("cpu")


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """An uncapped x86 machine with these flags; no product may be timed."""
    flags = {"_is_amx_tile_supported": False, "_is_avx512_bf16_supported": False}
    for name in flags:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: flags[name])
    for name in machine.CAPS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_timed_gain", lambda device: pytest.fail("timed"))
    return flags


def test_an_x86_processor_is_known_by_its_flags(x86: dict[str, bool]) -> None:
    assert (bf16_unit(CPU), fast_dtype(CPU)) == ("", "float32")  # AVX2, or AVX-512 without bf16
    x86["_is_avx512_bf16_supported"] = True
    assert (bf16_unit(CPU), fast_dtype(CPU)) == ("AVX512-BF16", "bfloat16")
    x86["_is_amx_tile_supported"] = True
    assert (bf16_unit(CPU), resolve_dtype("auto", CPU)) == ("AMX", "bfloat16")
    assert [resolve_dtype(name, CPU) for name in ("float32", "stored")] == ["float32", "stored"]


@pytest.mark.parametrize(("gain", "dtype"), [(0.14, "float32"), (1.1, "float32"), (1.5, "bfloat16")])
def test_a_product_decides_where_nothing_is_known(
    x86: dict[str, bool], monkeypatch: pytest.MonkeyPatch, gain: float, dtype: str
) -> None:
    monkeypatch.setattr(machine, "_timed_gain", lambda device: gain)
    x86["_is_amx_tile_supported"] = True
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert fast_dtype(CPU) == dtype and describe(device="cpu")["capped"] == {"DNNL_MAX_CPU_ISA": "AVX2"}
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "ALL")
    assert fast_dtype(CPU) == "bfloat16"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert fast_dtype(CPU) == dtype and describe(device="cpu")["bf16"] == "timed"


def test_the_timed_product_is_the_products_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 takes a third of the time on this machine, whatever it is."""
    clock, cost = [0.0], {torch.float32: 3.0, torch.bfloat16: 1.0}

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        clock[0] += cost[x.dtype]
        return x

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])
    assert machine._timed_gain.__wrapped__(CPU) == pytest.approx(3.0)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_a_gpu_is_known_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_device() == resolve_device("auto") == torch.device("cuda")
    assert resolve_dtype("auto", "cuda:1") == dtype
    with pytest.raises(InputError, match=r"device cuda:2: torch .* sees 2 CUDA devices here; use --device cpu"):
        resolve_device("cuda:2")


def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"unknown device 'cud' \(did you mean 'cuda'\?\)"):
        resolve_device("cud")
    with pytest.raises(InputError, match=r"device cuda: .* sees 0 CUDA devices"):
        resolve_device("cuda")
    with pytest.raises(InputError, match=r"unknown dtype 'bfloat' \(did you mean 'bfloat16'\?\); known: auto, stored"):
        resolve_dtype("bfloat")


def fresh(code: str, **environment: str) -> str:
    """What a new process prints."""
    clean = {name: value for name, value in os.environ.items() if name not in (*machine.CAPS, "OMP_WAIT_POLICY")}
    command: list[Any] = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_processor_held_to_avx2_computes_in_fp32() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("ONEDNN_MAX_CPU_ISA=AVX2 holds x86 processors")
    code = "from sentei.machine import resolve_dtype; print(resolve_dtype('auto', 'cpu'))"
    assert fresh(code, ONEDNN_MAX_CPU_ISA="AVX2") == "float32"


def test_threads_of_the_command_wait_without_spinning_unless_told() -> None:
    code = "import os, sys; sys.argv = ['sentei', '--version']\nimport atexit; from sentei.cli import main\n"
    code += "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)); main()"
    assert fresh(code).split()[1:] == ["PASSIVE", "False"]
    assert fresh(code, OMP_WAIT_POLICY="ACTIVE").split()[1:] == ["ACTIVE", "False"]
