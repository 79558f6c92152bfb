"""Exports a model to ONNX with its card, checks the export, and quantizes it if requested."""

from margrave.export.exporting import Exported, export_model
from margrave.export.graph import write_graph
from margrave.export.parity import (
    MAX_NORM_ERROR,
    MIN_COSINE,
    DecisionParity,
    Parity,
    check_parity,
    compare_embedders,
)
from margrave.export.quantization import Quantized, quantize_graph

__all__ = [
    "MAX_NORM_ERROR",
    "MIN_COSINE",
    "DecisionParity",
    "Exported",
    "Parity",
    "Quantized",
    "check_parity",
    "compare_embedders",
    "export_model",
    "quantize_graph",
    "write_graph",
]
