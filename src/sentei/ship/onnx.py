"""`onnx`: one graph with its cache as inputs and outputs, by transformers' own exporter; anything fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.ship.base import Options, Route
from sentei.ship.graph import export_graph, float_dtype, hushed, needs, refuse, write_beside

if TYPE_CHECKING:
    from sentei.models.load import Loaded

DTYPE_KEY = "sentei_dtype"  # of the graph's metadata
_CACHE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Writes model.onnx and model.onnx.data, tokenizer and configs beside them.

    Inputs and outputs have the names that ONNX Runtime GenAI, Optimum and Transformers.js use: `input_ids`,
    `attention_mask` (cache and new tokens), `position_ids`, `past_key_values.N.key` → `logits`, `present.N.key`. A
    removed attention part N has none.
    """
    dtype, notes = options.dtype_of(loaded.model), []
    if dtype == "BF16":  # by "auto" only
        dtype = "F32"
        notes.append("written as F32: ONNX Runtime has no bfloat16 on CPUs")
    with hushed():
        from transformers.exporters import OnnxExporter

        # ONNX Runtime optimises what it loads; onnxscript's rewriting, half of the time of an export, is for the
        # quantiser alone, which wants the weights as constants.
        program = export_graph("Onnx", loaded, float_dtype(dtype), optimize=dtype == "INT8")
        if dtype == "INT8":
            program = _int8(program)
        _tidy(program, dtype)
        OnnxExporter.save_program(program, path / "model.onnx")
    write_beside(loaded, path)
    return {"dtype": dtype, "padding_bytes": 0, "notes": notes}


def _int8(program: Any) -> Any:
    """Weights of the linear maps as 8 bit in blocks of 32 (`MatMulNBits` of ONNX Runtime), activations as they are.

    Embedding and tied head stay in fp32. Activations in int8 too (`quantize_dynamic`) would lose far more: on
    SmolLM2-135M log-probabilities move by up to 9.7 instead of 0.54.
    """
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx_ir.to_proto(program), bits=8, block_size=32, is_symmetric=True)
    quantizer.process()
    return onnx_ir.from_proto(quantizer.model.model)


def _tidy(program: Any, dtype: str) -> None:
    """Usual names for the cache and the axes; drops the trace's remarks, which tell paths of this machine."""
    import onnx_ir

    graph = program.graph
    axes = {}
    for value in (*graph.inputs, *graph.outputs):
        found = _CACHE.fullmatch(value.name)
        if found:
            value.name = f"{'past_key_values' if found[1] == 'input' else 'present'}.{found[2]}.{found[3]}"
    ids, mask = graph.inputs[0].shape, graph.inputs[1].shape
    past = next(value.shape for value in graph.inputs if value.name.startswith("past_key_values"))
    axes = {str(ids[0]): "batch_size", str(ids[1]): "sequence_length", str(past[2]): "past_sequence_length"}
    axes |= {str(mask[0]): "batch_size", str(mask[1]): "total_sequence_length"}
    axes[f"{past[2]} + {ids[1]}"] = axes[f"{ids[1]} + {past[2]}"] = "total_sequence_length"
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape(
            [axes.get(str(axis), axis) if not isinstance(axis, int) else axis for axis in value.shape]
        )
    for part in (program, graph, *graph.all_nodes()):
        part.metadata_props.clear()
        part.doc_string = None
    for node in graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
    program.metadata_props[DTYPE_KEY] = dtype


ROUTE = Route(
    name="onnx",
    line="a directory with model.onnx: one graph for prefill and decode, the cache as inputs and outputs",
    engines=("onnxruntime",),
    refuse=refuse,
    ready=lambda options: needs("onnx", "onnxscript", *(["onnxruntime"] if options.dtype == "INT8" else [])),
    write=write,
    dtypes=("F32", "F16", "INT8"),
    holds=9.5,  # measured: INT8
)
