"""Taking a model to the engines that people serve with, and proving there that it gives the same log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentei.registry import Registry

if TYPE_CHECKING:
    from sentei.ship.base import Route

ROUTES: Registry[Route] = Registry(
    "export",
    {
        "gguf": "sentei.ship.gguf:ROUTE",
        "nemotron-nas": "sentei.ship.nemotron_nas:ROUTE",
        "uniform": "sentei.ship.uniform:ROUTE",
        "hf": "sentei.ship.hf:ROUTE",
        "dense-fold": "sentei.ship.dense_fold:ROUTE",
        "onnx": "sentei.ship.onnx:ROUTE",
        "openvino": "sentei.ship.openvino:ROUTE",
    },
)
