"""Reads and writes the cards of ONNX models.

The card is in a file next to the model or, if there is no such file, in the model's metadata. Only
the file can be written here.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from margrave.files import atomic_write
from margrave.models.model_file import CARD_KEY, ModelCard, read_card
from margrave.models.onnx_file import OnnxBackbone
from margrave.models.onnx_network import OnnxNetwork
from margrave.models.openvino_file import OpenVinoBackbone
from margrave.models.pixel_statistics import PixelStatistic, check_pixel_statistics
from margrave.registry import suggest

IMPORT_OPTIONS = {
    "mean": "--mean MEAN",
    "std": "--std STD",
    "color_order": "--color-order rgb|bgr",
    "image_size": "--image-size PIXELS",
}
"""Card field -> the option of ``margrave import`` that sets it, with a placeholder as value."""

RUNTIMES: dict[str, type[OnnxNetwork]] = {
    network.runtime: network for network in (OnnxBackbone, OpenVinoBackbone)
}
"""Runtime name -> the class that runs ONNX models with it."""


def runtime_class(name: str | None) -> type[OnnxNetwork]:
    """The class of the runtime of this name; None means onnxruntime.

    Raises:
        ValueError: the name is unknown; the message lists the choices.

    >>> runtime_class("openvinno")
    Traceback (most recent call last):
        ...
    ValueError: runtime = 'openvinno'; did you mean 'openvino'? choices: onnxruntime, openvino
    """
    if name is None:
        return OnnxBackbone
    if name not in RUNTIMES:
        raise ValueError(f"runtime = {name!r}; {suggest(name, RUNTIMES)}")
    return RUNTIMES[name]


def card_path(path: str | Path) -> Path:
    """The path of the card next to an ONNX model."""
    return Path(f"{path}.card.json")


def adjacent_card(path: str | Path) -> ModelCard | None:
    """Read the card next to an ONNX model; None if there is none."""
    adjacent = card_path(path)
    if not adjacent.is_file():
        return None
    return read_card(adjacent.read_text(encoding="utf-8"), adjacent)


def import_command(path: str | Path) -> str:
    """The command that creates a card for an ONNX model, and a note on its values, for messages.

    >>> import_command("net.onnx")[:57]
    'margrave import net.onnx COPY.onnx --mean MEAN --std STD '
    """
    options = " ".join(IMPORT_OPTIONS[name] for name in ("mean", "std", "color_order"))
    return (
        f"margrave import {path} COPY.onnx {options}, with the values that the model's authors "
        "state, for pixels in [0, 1]"
    )


def load_onnx(
    path: str | Path, device: str | None = None, runtime: str | None = None
) -> tuple[OnnxNetwork, ModelCard]:
    """Load an ONNX model and its card, which is next to the file or in its metadata.

    The model is tested on two images (``OnnxNetwork.check_batching``).

    Args:
        path: the .onnx file.
        device: the runtime's device; None takes the runtime's default.
        runtime: a name in `RUNTIMES`; None means onnxruntime.

    Raises:
        ValueError: the runtime is unknown, there is no card, the card does not fit the model, or
            the model does not compute one embedding per image.
    """
    card = adjacent_card(path)
    output = None if card is None else card.backbone.get("output")
    backbone = runtime_class(runtime)(path, device=device, output=output)
    if card is None and CARD_KEY in backbone.metadata:
        card = read_card(backbone.metadata[CARD_KEY], path)
    if card is None:
        raise ValueError(
            f"{path} has no card, and how to prepare its images cannot be guessed; "
            f"create one: {import_command(path)}"
        )
    if backbone.image_size not in (None, card.image_size):
        raise ValueError(
            f"{path} needs images of {backbone.image_size} pixels, but its card says "
            f"{card.image_size}; correct image_size in the card"
        )
    check_uint8_statistics(backbone, card.mean, card.std)
    backbone.check_batching(card)
    return backbone, card


def check_uint8_statistics(
    backbone: OnnxNetwork, mean: PixelStatistic | None, std: PixelStatistic | None
) -> None:
    """Refuse a mean other than 0 or a std other than 1 for a model that takes uint8 pixels.

    None means that no value is given, which is allowed.
    """
    is_identity = np.all(np.equal(0 if mean is None else mean, 0)) and np.all(
        np.equal(1 if std is None else std, 1)
    )
    if backbone.takes_uint8 and not is_identity:
        raise ValueError(
            f"{backbone.path} takes uint8 pixels and normalizes them itself, so mean must be 0 and "
            f"std 1, but mean = {mean} and std = {std} are given"
        )


def import_onnx(
    source: str | Path,
    target: str | Path,
    *,
    mean: PixelStatistic | None,
    std: PixelStatistic | None,
    color_order: str | None,
    image_size: int | None = None,
    output: str | None = None,
) -> tuple[OnnxBackbone, ModelCard]:
    """Copy an ONNX model and write its card next to it.

    Args:
        source: the ONNX model.
        target: the copy to write; its card is written to ``<target>.card.json``. Thresholds in the
            model's metadata are kept only if nothing else in its card changes.
        mean: mean for pixels in [0, 1], one number or one per channel in the model's color order;
            None takes it from the card in the model's metadata.
        std: standard deviation, like `mean`.
        color_order: ``rgb`` or ``bgr``; None takes it from the card in the model's metadata.
        image_size: image side length in pixels, if the model takes any size.
        output: the name of the output that is the embedding, if the model has several.

    Returns:
        the network, already tested (see ``OnnxBackbone.check_batching``), and its card.

    Raises:
        ValueError: a value is invalid, or missing both here and in the model's card; the model does
            not compute one embedding per image; or its external weight files are not in the
            target's folder.
    """
    backbone = OnnxBackbone(source, output=output)
    check_pixel_statistics(mean=mean, std=std)
    check_uint8_statistics(backbone, mean, std)
    if backbone.takes_uint8:
        mean, std = 0.0, 1.0
    stated = {"mean": mean, "std": std, "color_order": color_order}
    if image_size and backbone.image_size not in (None, image_size):
        raise ValueError(
            f"image_size = {image_size}, but {source} takes only images of {backbone.image_size} "
            "pixels; leave out image_size"
        )
    fields: dict[str, Any] = {}
    metadata_card = None
    if CARD_KEY in backbone.metadata:
        metadata_card = read_card(backbone.metadata[CARD_KEY], source)
        fields = asdict(metadata_card)
    fields |= {name: value for name, value in stated.items() if value is not None}
    fields["image_size"] = image_size or fields.get("image_size") or backbone.image_size
    missing = [name for name in stated if name not in fields]
    if missing or fields["image_size"] is None:
        missing += ["image_size"] * (fields["image_size"] is None)
        raise ValueError(
            f"{source} does not contain its {', '.join(missing)}; state them: "
            f"{' '.join(IMPORT_OPTIONS[name] for name in missing)}"
        )
    output = output or fields.get("backbone", {}).get("output")
    fields["backbone"] = {"kind": "onnx", **({"output": output} if output else {})}
    fields["source"] = fields.get("source") or f"imported from {Path(source).name}"
    card = ModelCard(**fields)
    if metadata_card is not None and replace(card, source=metadata_card.source) != metadata_card:
        # The thresholds in the metadata were measured with the metadata's preprocessing and output.
        if card.operating_points:
            warnings.warn(
                f"{source}: its thresholds were measured with other preprocessing and left out; "
                "choose new ones: margrave threshold",
                stacklevel=2,
            )
        card = replace(card, operating_points=(), reference=None)
    backbone.check_batching(card)
    if backbone.external_weights and Path(source).parent.resolve() != Path(target).parent.resolve():
        names = ", ".join(file.name for file in backbone.external_weights[:3])
        raise ValueError(
            f"{source} needs its external files ({names}), which are not copied; export it as one "
            "file (external_data=False), or choose a target in the same folder"
        )
    with atomic_write(target) as temporary:
        temporary.write_bytes(Path(source).read_bytes())
    write_card(target, card)
    return backbone, card


def write_card(path: str | Path, card: ModelCard) -> None:
    """Write a card next to an ONNX model, replacing an existing one."""
    with atomic_write(card_path(path)) as temporary:
        temporary.write_text(json.dumps(json.loads(card.to_json()), indent=1) + "\n")
