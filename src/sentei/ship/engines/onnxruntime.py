"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sentei.errors import InputError, one_line
from sentei.ship.engines import LogProbs, Timing
from sentei.ship.engines.arrays import greedy, log_softmax, threads
from sentei.ship.onnx import DTYPE_KEY

_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntimeSession:
    """A graph with its cache as inputs and outputs."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3  # errors only
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but this
            raise InputError(f"ONNX Runtime does not load {path}: {one_line(error)[:300]}; export it again") from error
        self.dtype = self._session.get_modelmeta().custom_metadata_map.get(DTYPE_KEY, "F32")
        caches = [value for value in self._session.get_inputs() if value.name.startswith("past_key_values.")]
        self._empty = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), _KINDS[v.type]) for v in caches}
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._empty)]
        self._cache: dict[str, Any] = self._empty

    def log_probs(self, ids: list[int]) -> LogProbs:
        """See `Session`."""
        self._cache = self._empty
        return log_softmax(self._step(ids))

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """See `Session`."""
        self._cache = self._empty
        self._step(ids[:start])
        return log_softmax(np.concatenate([self._step([token]) for token in ids[start:]]))

    def generate(self, ids: list[int], n: int) -> Timing:
        """See `Session`."""
        self._cache = self._empty
        return greedy(self._step, ids, n)

    def close(self) -> None:
        """See `Session`."""
        self._session = None
        self._cache = {}

    def _step(self, ids: list[int]) -> Any:
        """Logits [T, V] after new tokens; the cache grows by them."""
        seen = next(iter(self._cache.values())).shape[2]
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, seen + len(ids)), dtype=np.int64),
            "position_ids": np.arange(seen, seen + len(ids), dtype=np.int64)[None],
        }
        logits, *caches = self._session.run(self._outputs, inputs | self._cache)
        self._cache = dict(zip(self._empty, caches, strict=True))
        return logits[0]


class OnnxRuntime:
    """See `Engine`."""

    name = "onnxruntime"
    package = "onnxruntime"

    def installed(self) -> bool:
        """See `Engine`."""
        return importlib.util.find_spec("onnxruntime") is not None

    def version(self) -> str:
        """See `Engine`."""
        return importlib.metadata.version("onnxruntime")

    def open(self, export: Path) -> OnnxRuntimeSession:
        """See `Engine`."""
        path = export / "model.onnx" if export.is_dir() else export
        if not path.is_file():
            raise InputError(f"{export} holds no model.onnx; make one with: sentei export MODEL --to onnx")
        return OnnxRuntimeSession(path)


ENGINE = OnnxRuntime()
