"""OpenVINO, on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sentei.errors import InputError, one_line
from sentei.ship.engines import LogProbs, Timing
from sentei.ship.engines.arrays import greedy, log_softmax, threads
from sentei.ship.openvino import DTYPE_KEY
from sentei.ship.telemetry import without_telemetry

# By itself OpenVINO computes in bf16 where the processor has instructions for it and keeps the cache in 8 bit.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


class OpenVINOSession:
    """A graph that keeps its cache. Parity is asked in fp32 throughout; timing is as served."""

    def __init__(self, path: Path) -> None:
        with without_telemetry():
            import openvino

        self._core: Any = openvino.Core()
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"OpenVINO does not load {path}: {one_line(error)[:300]}; export it again") from error
        self.dtype = self._model.get_rt_info(DTYPE_KEY).astype(str) if self._model.has_rt_info(DTYPE_KEY) else "F32"
        self._asked: Any = None
        self._timed: Any = None
        self._request: Any = None
        self._seen = 0

    def log_probs(self, ids: list[int]) -> LogProbs:
        """See `Session`."""
        self._begin(exact=True)
        return log_softmax(self._step(ids))

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """See `Session`."""
        self._begin(exact=True)
        self._step(ids[:start])
        return log_softmax(np.concatenate([self._step([token]) for token in ids[start:]]))

    def generate(self, ids: list[int], n: int) -> Timing:
        """See `Session`."""
        self._begin(exact=False)
        return greedy(self._step, ids, n)

    def close(self) -> None:
        """See `Session`."""
        self._request = self._asked = self._timed = self._model = self._core = None

    def _begin(self, *, exact: bool) -> None:
        """An empty cache."""
        if exact:
            self._asked = self._request = self._asked or self._compile(_EXACT)
        else:
            self._timed = self._request = self._timed or self._compile({"PERFORMANCE_HINT": "LATENCY"})
        self._request.reset_state()
        self._seen = 0

    def _compile(self, settings: dict[str, str]) -> Any:
        return self._core.compile_model(
            self._model, "CPU", settings | {"INFERENCE_NUM_THREADS": str(threads())}
        ).create_infer_request()

    def _step(self, ids: list[int]) -> Any:
        """Logits [T, V] after new tokens; the cache grows by them."""
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, self._seen + len(ids)), dtype=np.int64),
            "position_ids": np.arange(self._seen, self._seen + len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._seen += len(ids)
        return self._request.infer(inputs)["logits"][0]


class OpenVINO:
    """See `Engine`."""

    name = "openvino"
    package = "openvino"

    def installed(self) -> bool:
        """See `Engine`."""
        return importlib.util.find_spec("openvino") is not None

    def version(self) -> str:
        """See `Engine`."""
        return importlib.metadata.version("openvino")

    def open(self, export: Path) -> OpenVINOSession:
        """See `Engine`."""
        path = export / "openvino_model.xml" if export.is_dir() else export
        if not path.is_file():
            raise InputError(f"{export} holds no openvino_model.xml; make one with: sentei export MODEL --to openvino")
        return OpenVINOSession(path)


ENGINE = OpenVINO()
