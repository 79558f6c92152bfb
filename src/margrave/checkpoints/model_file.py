"""Margrave's own model files: safetensors with a card that says how to use the weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from margrave.checkpoints.atomic import atomic_write
from margrave.registry import suggest

FORMAT_VERSION = 1
CARD_KEY = "margrave"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that a model file says besides its weights.

    Attributes:
        backbone: the specification to build it from, ``{"kind": name, **settings}``, plain JSON.
        image_size: height and width of the aligned faces, pixels.
        mean, deviation: of pixels scaled to [0, 1]; the network sees (pixel - mean) / deviation,
            by default [-1, 1].
        fit: how an image that is not square becomes so: ``crop``, ``stretch`` or ``pad``.
        colour_order: always RGB; importers fold other orders into the first convolution.
        source: where the weights come from, in words.
        format_version: of this format.

    Raises:
        ValueError: a field that no model can have.

    >>> ModelCard(backbone={"kind": "mbf"}).mean
    0.5
    """

    backbone: Mapping[str, Any]
    image_size: int = 112
    mean: float = 0.5
    deviation: float = 0.5
    fit: Literal["crop", "stretch", "pad"] = "crop"
    colour_order: Literal["rgb"] = "rgb"
    source: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, Mapping) or not isinstance(self.backbone.get("kind"), str):
            raise ValueError(f"backbone = {self.backbone!r}, must be a mapping with a 'kind'")
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size = {self.image_size!r}, must be a whole number above 0")
        if self.backbone.get("image_size", self.image_size) != self.image_size:
            raise ValueError(
                f"image_size = {self.image_size}, "
                f"but the backbone's is {self.backbone['image_size']}"
            )
        for name in ("mean", "deviation"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} = {value!r}, must be a finite number")
        if self.deviation <= 0:
            raise ValueError(f"deviation = {self.deviation}, must be above 0")
        if self.fit not in ("crop", "stretch", "pad"):
            raise ValueError(f"fit = {self.fit!r}, must be 'crop', 'stretch' or 'pad'")
        if self.colour_order != "rgb":
            raise ValueError(f"colour_order = {self.colour_order!r}, must be 'rgb'")
        if not isinstance(self.source, str):
            raise ValueError(f"source = {self.source!r}, must be text")
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version = {self.format_version!r}, this Margrave reads {FORMAT_VERSION}; "
                "use the version of Margrave that wrote it"
            )


def save_model(path: str | os.PathLike[str], state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to one file, which replaces an older one only when complete.

    Raises:
        ValueError: the backbone's specification is not plain JSON.
    """
    try:
        text = json.dumps({**asdict(card), "backbone": dict(card.backbone)})
    except TypeError as error:
        raise ValueError(f"backbone = {card.backbone!r} cannot be written: {error}") from error
    tensors = {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    with atomic_write(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors, metadata={CARD_KEY: text}))


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], ModelCard]:
    """Weights and card from a file of :func:`save_model`.

    Raises:
        ValueError: no such file, a damaged one, one that Margrave did not write, or one of another
            format version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged or no model file ({error}); give a run's folder or its "
            "model.safetensors, or import other projects' checkpoints first"
        ) from error
    if CARD_KEY not in metadata:
        raise ValueError(f"{path}: safetensors without Margrave's card; import it first")
    return state, _read_card(metadata[CARD_KEY], path)


def _read_card(text: str, path: Path) -> ModelCard:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its card is damaged ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: its card is damaged (no mapping)")
    # A newer format may have new fields: say so before naming them as unknown.
    version = fields.get("format_version")
    known = ModelCard.__dataclass_fields__
    unknown = [key for key in fields if key not in known]
    if unknown and version == FORMAT_VERSION:
        raise ValueError(
            f"{path}: its card has no field {unknown[0]!r}; {suggest(unknown[0], known)}"
        )
    try:
        return ModelCard(**{key: value for key, value in fields.items() if key in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its card is wrong: {error}") from error
