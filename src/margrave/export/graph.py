"""Writes a network as an ONNX graph with the model card in the file's metadata."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from margrave.files import first_line
from margrave.models import CARD_KEY, ModelCard

INPUT, OUTPUT = "images", "embeddings"
MAX_FILE_BYTES = 2**31 - 1
"""Maximum size of a protobuf message in bytes, and therefore of an ONNX model in one file."""


def write_graph(backbone: nn.Module, card: ModelCard, path: str | Path) -> None:
    """Write a network as an ONNX graph that accepts any batch size B.

    The graph maps (B, 3, S, S) normalized images to (B, D) embeddings.

    Args:
        backbone: the network, in evaluation mode on the CPU.
        card: the card to write into the file's metadata.
        path: the ONNX file to write; it also contains the weights.

    Raises:
        ValueError: onnxscript is not installed, or the network cannot be exported or is too large
            for one file.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "exporting needs onnx and onnxscript, which are not installed: "
            "pip install 'margrave[export]'"
        ) from error
    weights = backbone.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"the model's weights take {size / 1e9:.1f} GB; an ONNX file holds at most 2.1 GB"
        )
    # Two images, because from a single image the exporter would infer a fixed batch size of 1.
    example = torch.zeros(2, 3, card.image_size, card.image_size)
    try:
        with _suppress_warnings(), torch.no_grad():
            program: Any = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's exceptions have no common base class
        raise ValueError(
            f"{type(backbone).__name__} cannot be exported to ONNX ({first_line(error)}); the "
            "network's control flow must not depend on the images or on the batch size"
        ) from error
    _remove_metadata(program.model)
    program.model.metadata_props[CARD_KEY] = card.to_json()
    program.save(str(path), external_data=False)


def _remove_metadata(model: Any) -> None:
    """Remove the exporter's metadata: its stack traces contain file paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppress the exporter's warnings: they concern its internals, not the exported network."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
