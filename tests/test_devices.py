"""Nothing mixes devices: whole flows on a device whose tensors do not meet those of the CPU, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_device

HERE = Path(__file__).parent
DEVICES = [
    pytest.param(fake_device.NAME, marks=pytest.mark.skipif(not fake_device.POSSIBLE, reason="torch is too old")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flow", ["prune", "prove", "recover"])
def test_flows_stay_on_their_device(flow: str, device: str) -> None:
    # in a process of its own: torch knows one such device, from then on
    path = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
    command = [sys.executable, str(HERE / "device_flows.py"), flow, device]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


REFUSED = """
import fake_device, torch
with fake_device.known():
    a = torch.ones(2, 3, device="fake")
    for refused in (
        lambda: a + torch.ones(2, 3),
        lambda: torch.nn.functional.linear(a, torch.ones(4, 3)),
        lambda: torch.ones(3)[a[0].long()],
    ):
        try:
            refused()
        except RuntimeError as error:
            assert "on the same device" in str(error), error
        else:
            raise AssertionError("not refused")
    print((a.cpu() + 1).sum().item(), (a + 1).device, a[torch.tensor([0])].sum().item())
"""


@pytest.mark.skipif(not fake_device.POSSIBLE, reason="torch is too old")
def test_the_fake_device_refuses_what_cuda_refuses() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "12.0 fake:0 3.0\n", done.stderr
