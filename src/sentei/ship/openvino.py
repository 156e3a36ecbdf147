"""`openvino`: one graph that keeps its cache to itself, by transformers' own exporter; anything fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.ship.base import FLOATS, Options, Route
from sentei.ship.graph import export_graph, float_dtype, hushed, needs, refuse, write_beside

if TYPE_CHECKING:
    from sentei.models.load import Loaded

DTYPE_KEY = ["sentei", "dtype"]  # of the model's runtime info


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Writes openvino_model.xml and .bin, tokenizer and configs beside them.

    Inputs: `input_ids`, `attention_mask` (cache and new tokens), `position_ids`, `beam_idx` (which row of the cache
    each row of the batch goes on with); output: `logits`. The cache is the state of an infer request.
    """
    dtype = options.dtype_of(loaded.model)
    with hushed():
        from transformers.exporters import OpenVINOExporter

        quantizer = None if dtype in FLOATS else _int8()
        program = export_graph("OpenVINO", loaded, float_dtype(dtype), quantizer=quantizer)
        program.set_rt_info(dtype, DTYPE_KEY)
        OpenVINOExporter.save_program(program, path / "openvino_model.xml")
    write_beside(loaded, path)
    return {"dtype": dtype, "padding_bytes": 0}


def _int8() -> Any:
    """Weights, embedding and head too, in int8 with a scale per output channel; no data needed."""
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig

    return NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM))


ROUTE = Route(
    name="openvino",
    line="a directory with openvino_model.xml: one graph that keeps its cache to itself",
    engines=("openvino",),
    refuse=refuse,
    ready=lambda options: needs("openvino", *([] if options.dtype in ("auto", *FLOATS) else ["nncf"])),
    write=write,
    dtypes=("F32", "F16", "BF16", "INT8"),
    holds=5.5,  # measured: INT8
)
