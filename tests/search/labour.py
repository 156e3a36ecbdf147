"""Evaluators for processes: light to import, and some that break."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from sentei.errors import InputError
from sentei.prune.space import Genome


class Labour:
    """Says the sum of the genome on every row; breaks as its directory says."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        (self.directory / f"made-{os.getpid()}").touch()

    def __call__(self, genome: Genome, start: int, stop: int) -> SimpleNamespace:
        if genome[0] == 7 and not (self.directory / "died").exists():
            (self.directory / "died").touch()
            os._exit(13)
        if genome[0] == 8:
            os._exit(14)
        if genome[0] == 9:
            raise InputError("row 3: the metric returned 'x'; return a float")
        if genome[0] == 10:
            raise ZeroDivisionError("no such thing")
        time.sleep(0.05 * (genome[0] == 1))  # the first of a batch ends last
        rows = np.full(stop - start, float(sum(genome)))
        return SimpleNamespace(
            score=rows, loss=rows, weight=np.ones(stop - start), threads=os.environ["OMP_NUM_THREADS"]
        )
