"""MLX-LM: Apple's engine, which runs on Linux CPUs too (`mlx-cpu`)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from sentei.errors import InputError, one_line
from sentei.ship.engines import LogProbs, Timing


class MlxSession:
    """A model directory in fp32, whatever it is stored in."""

    dtype = "F32"

    def __init__(self, model: Any) -> None:
        self._model = model

    def log_probs(self, ids: list[int]) -> LogProbs:
        """See `Session`."""
        return self._rows(ids, self._cache())

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """See `Session`."""
        import numpy as np

        cache = self._cache()
        self._rows(ids[:start], cache)
        return np.concatenate([self._rows([token], cache) for token in ids[start:]])

    def generate(self, ids: list[int], n: int) -> Timing:
        """See `Session`."""
        cache = self._cache()
        begun = time.perf_counter()
        token = self._next(ids, cache)
        first = time.perf_counter() - begun
        for _ in range(n - 1):
            token = self._next([token], cache)
        return Timing(first, time.perf_counter() - begun)

    def close(self) -> None:
        """See `Session`."""
        import mlx.core as mx

        self._model = None
        mx.clear_cache()

    def _cache(self) -> Any:
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self._model)

    def _rows(self, ids: list[int], cache: Any) -> LogProbs:
        import mlx.core as mx
        import numpy as np

        logits = self._model(mx.array([ids]), cache=cache)[0].astype(mx.float32)
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def _next(self, ids: list[int], cache: Any) -> int:
        import mlx.core as mx
        import numpy as np

        logits: Any = self._model(mx.array([ids]), cache=cache)
        return int(np.argmax(np.array(logits[0, -1].astype(mx.float32))))


class MlxEngine:
    """Reads model directories of stock classes and of nemotron-nas; runs no code from them."""

    name = "mlx"
    package = "mlx mlx-lm" if sys.platform == "darwin" else "mlx mlx-cpu mlx-lm"

    def installed(self) -> bool:
        """See `Engine`."""
        needed = ("mlx_lm", "mlx") if sys.platform == "darwin" else ("mlx_lm", "mlx", "mlx.core")
        return all(importlib.util.find_spec(name) for name in needed)

    def version(self) -> str:
        """See `Engine`."""
        return importlib.metadata.version("mlx-lm")

    def open(self, export: Path) -> MlxSession:
        """See `Engine`."""
        import mlx.core as mx
        from mlx_lm.utils import load_model

        try:
            model, _ = load_model(export, lazy=True)
        except (ValueError, TypeError, KeyError, OSError, RuntimeError, AttributeError) as error:
            raise InputError(f"mlx-lm cannot load {export}: {one_line(error)}") from error
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        return MlxSession(model)


ENGINE = MlxEngine()
