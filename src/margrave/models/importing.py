"""Builds the network and the card for another project's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from margrave import backbones
from margrave.models.contract import Imported, State
from margrave.models.importers import convert, import_for_network
from margrave.models.model_file import ModelCard
from margrave.models.pixel_statistics import ColorOrder, PixelStatistic


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Properties of a weight file that the user states because the file does not contain them.

    None means that the user does not state the property.

    Attributes:
        key: the weights' key in a checkpoint that contains several networks.
        layout: the naming scheme of the tensors, such as ``adaface_ir``; None detects it. See
            :mod:`margrave.models.importers`.
        backbone: the network's specification, for weights of an unknown layout.
        mean, std: normalization of pixels in [0, 1], (pixel - mean) / std, as in training.
        color_order: the order of the color channels used in training, ``rgb`` or ``bgr``.
        image_size: image side length in pixels, if an ONNX model or `backbone` takes any size.
        output: the name of the output that is the embedding, if an ONNX model has several.
    """

    key: str | None = None
    layout: str | None = None
    backbone: Mapping[str, Any] | None = None
    mean: PixelStatistic | None = None
    std: PixelStatistic | None = None
    color_order: ColorOrder | None = None
    image_size: int | None = None
    output: str | None = None


def network_for(
    state: State, options: ImportOptions | None = None, source: str = "the checkpoint"
) -> tuple[nn.Module, Imported]:
    """Build the network of a checkpoint, without loading the weights.

    Args:
        state: the tensors from :func:`margrave.models.read_checkpoint`.
        options: what the user states about the file.
        source: the file's name in messages.

    Returns:
        the network, and the converted weights. Pass their ``state`` and ``names`` to
        :func:`margrave.models.load_strictly` to load them.

    Raises:
        ValueError: the layout is unknown, the network cannot be inferred from the weights, or
            both a layout and a backbone are given.
    """
    options = options or ImportOptions()
    stated = (options.color_order, options.mean, options.std)
    if options.backbone is None:
        imported = convert(state, *stated, layout=options.layout)
        return backbones.create_for(imported.state, imported.backbone, source), imported
    if options.layout is not None:
        raise ValueError(
            f"layout = {options.layout!r} and a backbone are both given, but a layout determines "
            "the backbone; leave out one of them"
        )
    network = backbones.create(options.backbone)
    return network, import_for_network(state, network, options.backbone, *stated)


def card_for(imported: Imported, image_size: int | None = None, source: str = "") -> ModelCard:
    """Create the card of imported weights.

    Args:
        imported: the converted weights from `network_for`.
        image_size: image side length in pixels, if the backbone takes any size; None means 112.
        source: where the weights come from, for the user; it becomes the card's ``source``.
    """
    return ModelCard(
        backbone=imported.backbone,
        image_size=imported.backbone.get("image_size", image_size or 112),
        mean=imported.mean,
        std=imported.std,
        source=source,
    )
