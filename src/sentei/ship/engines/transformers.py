"""Plain transformers, with the code that lies beside an export where its class is not stock."""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

from sentei.errors import InputError, one_line
from sentei.ship.engines import LogProbs, Timing


class TransformersSession:
    """A model directory in fp32, whatever it is stored in, on the CPU."""

    dtype = "F32"

    def __init__(self, model: Any) -> None:
        self._model = model

    def log_probs(self, ids: list[int]) -> LogProbs:
        """See `Session`."""
        return self._rows(ids)[0]

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """See `Session`."""
        import numpy as np

        _, cache = self._rows(ids[:start])
        rows = []
        for token in ids[start:]:
            row, cache = self._rows([token], cache)
            rows.append(row)
        return np.concatenate(rows)

    def generate(self, ids: list[int], n: int) -> Timing:
        """See `Session`."""
        begun = time.perf_counter()
        rows, cache = self._rows(ids, last=True)
        first = time.perf_counter() - begun
        for _ in range(n - 1):
            rows, cache = self._rows([int(rows[-1].argmax())], cache)
        return Timing(first, time.perf_counter() - begun)

    def close(self) -> None:
        """See `Session`."""
        self._model = None

    def _rows(self, ids: list[int], cache: Any = None, *, last: bool = False) -> tuple[LogProbs, Any]:
        import torch

        with torch.inference_mode():
            keep = {"logits_to_keep": 1} if last else {}
            out = self._model(torch.tensor([ids]), past_key_values=cache, use_cache=True, **keep)
            rows: LogProbs = out.logits[0].float().log_softmax(-1).numpy()
        return rows, out.past_key_values


class TransformersEngine:
    """Reads model directories: exports hf, uniform, dense-fold, nemotron-nas."""

    name = "transformers"
    package = "transformers"

    def installed(self) -> bool:
        """Always: sentei stands on it."""
        return True

    def version(self) -> str:
        """See `Engine`."""
        return importlib.metadata.version("transformers")

    def open(self, export: Path) -> TransformersSession:
        """See `Engine`. Of the code that lies beside an export, only sentei's own is run.

        Raises:
            InputError: no model directory, or one with other code than sentei's.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from sentei.models.save import quiet

        bundled = own_code(export)
        try:
            with quiet():
                model = AutoModelForCausalLM.from_pretrained(
                    export, dtype=torch.float32, trust_remote_code=bundled, use_safetensors=True, local_files_only=True
                )
        except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError, AttributeError) as error:
            raise InputError(f"transformers cannot load {export}: {one_line(error)}") from error
        return TransformersSession(model.eval())


def own_code(directory: Path) -> bool:
    """Whether Python files lie in a model directory, which must be those that sentei puts there.

    Raises:
        InputError: a file that sentei did not write, or that was changed.
    """
    from sentei.families import modeling_sentei
    from sentei.ship.decilm import configuration_decilm, modeling_decilm

    ours = {Path(str(m.__file__)).name: m for m in (modeling_sentei, configuration_decilm, modeling_decilm)}
    files = sorted(directory.glob("*.py"))
    for file in files:
        module = ours.get(file.name)
        if module is None or file.read_bytes() != Path(str(module.__file__)).read_bytes():
            raise InputError(f"{file} is not what this version of sentei bundles, so it is not run; export again")
    return bool(files)


ENGINE = TransformersEngine()
