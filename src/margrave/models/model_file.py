"""Margrave's model files: safetensors with a card, which says how to use the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from margrave.files import atomic_write, first_line, read_json
from margrave.former_names import current_card
from margrave.models.operating_points import OperatingPoint, ScoreReference
from margrave.models.pixel_statistics import ColorOrder, PixelStatistic
from margrave.registry import suggest

FORMAT_VERSION = 2
"""Version of the card's format. Version 2 added `alignment` and `reference`."""
CARD_KEY = "margrave"
"""The card's key in a file's metadata."""
MAX_IMAGE_SIZE = 4096
"""Maximum image side length, in pixels."""
MAX_STATISTIC = 1e9
"""Absolute values of mean and std must be below this limit, far beyond any pixel value."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """How to build a model, prepare its images and interpret its scores.

    Attributes:
        backbone: the network's specification ``{"kind": name, **settings}``, plain JSON.
        image_size: height and width of the aligned faces, in pixels.
        mean, std: one number, or one per channel in `color_order`. The network's input is
            (pixel - mean) / std for pixels in [0, 1], so it is in [-1, 1] by default.
        fit: how an image that is not square is made square: ``crop``, ``stretch`` or ``pad``.
        color_order: color order of the network's input. Only an ONNX model (``{"kind": "onnx"}``)
            may have ``bgr``. All others have ``rgb``, because importers adapt the first convolution
            of BGR networks to RGB.
        source: where the weights come from, for the user.
        operating_points: thresholds chosen for this model, see ``OperatingPoint``.
        reference: scores and norms measured together with the thresholds, or None.
        alignment: how faces are aligned: ``arcface`` (five landmarks to ArcFace's template) or
            ``dlib`` (as dlib aligns them).
        format_version: version of the card's format; cards of version 1 are converted to 2.

    Raises:
        ValueError: a field has an invalid value.

    >>> ModelCard(backbone={"kind": "mbf"}).mean
    0.5
    """

    backbone: Mapping[str, Any]
    image_size: int = 112
    mean: PixelStatistic = 0.5
    std: PixelStatistic = 0.5
    fit: Literal["crop", "stretch", "pad"] = "crop"
    color_order: ColorOrder = "rgb"
    source: str = ""
    operating_points: tuple[OperatingPoint, ...] = ()
    reference: ScoreReference | None = None
    alignment: Literal["arcface", "dlib"] = "arcface"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, Mapping) or not isinstance(self.backbone.get("kind"), str):
            raise ValueError(f"backbone = {self.backbone!r}, must be a mapping with a 'kind'")
        if type(self.image_size) is not int or not 0 < self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"image_size = {self.image_size!r:.30}, must be an integer from 1 to "
                f"{MAX_IMAGE_SIZE}"
            )
        if self.backbone.get("image_size", self.image_size) != self.image_size:
            raise ValueError(
                f"image_size = {self.image_size}, "
                f"but the backbone's image_size is {self.backbone['image_size']}"
            )
        for name in ("mean", "std"):
            self._check_statistic(name)
        object.__setattr__(
            self,
            "operating_points",
            tuple(
                point if isinstance(point, OperatingPoint) else OperatingPoint(**point)
                for point in self.operating_points
            ),
        )
        if isinstance(self.reference, Mapping):
            object.__setattr__(self, "reference", ScoreReference(**self.reference))
        if self.alignment not in ("arcface", "dlib"):
            raise ValueError(f"alignment = {self.alignment!r}, must be 'arcface' or 'dlib'")
        if self.fit not in ("crop", "stretch", "pad"):
            raise ValueError(f"fit = {self.fit!r}, must be 'crop', 'stretch' or 'pad'")
        if self.color_order != "rgb" and not (
            self.backbone["kind"] == "onnx" and self.color_order == "bgr"
        ):
            raise ValueError(f"color_order = {self.color_order!r}, must be 'rgb'")
        if not isinstance(self.source, str):
            raise ValueError(f"source = {self.source!r}, must be text")
        if self.format_version == 1:
            object.__setattr__(self, "format_version", FORMAT_VERSION)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version = {self.format_version!r}, but this version of Margrave reads 1 "
                f"and {FORMAT_VERSION}; use the version of Margrave that wrote the card"
            )

    def _check_statistic(self, name: str) -> None:
        statistic = getattr(self, name)
        values = tuple(statistic) if isinstance(statistic, list | tuple) else (statistic,)
        # Not math.isfinite, which fails for integers too large for a float.
        if len(values) not in (1, 3) or not all(
            isinstance(value, int | float) and abs(value) < MAX_STATISTIC for value in values
        ):
            raise ValueError(
                f"{name} = {statistic!r:.60}, must be a finite number or three of them"
            )
        if name == "std" and min(values) <= 0:
            raise ValueError(f"std = {statistic}, must be above 0")
        # Lists from JSON become tuples, so that cards compare equal.
        object.__setattr__(self, name, values if len(values) == 3 else values[0])

    def to_json(self) -> str:
        """The card as JSON, the form in which model files store it.

        Raises:
            ValueError: the backbone's specification is not plain JSON.
        """
        try:
            return json.dumps({**asdict(self), "backbone": dict(self.backbone)})
        except TypeError as error:
            raise ValueError(
                f"backbone = {self.backbone!r} cannot be written as JSON: {error}"
            ) from error


def save_model(path: str | os.PathLike[str], state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to one file, which atomically replaces an existing one.

    Raises:
        ValueError: the backbone's specification is not plain JSON.
    """
    text = card.to_json()
    tensors = {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    with atomic_write(path) as temporary:
        # Not save_file, which makes the file readable only by its owner.
        temporary.write_bytes(save(tensors, metadata={CARD_KEY: text}))


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], ModelCard]:
    """Read weights and card from a file written by :func:`save_model`.

    Raises:
        ValueError: the file does not exist, is damaged, was not written by Margrave, or has an
            unsupported format version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # If torch cannot allocate a tensor, its error is not a SafetensorError.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged or not a model file ({first_line(error)}); give a run's folder or "
            "its model.safetensors, or import another project's checkpoint: margrave import"
        ) from error
    if CARD_KEY not in metadata:
        raise ValueError(
            f"{path}: this safetensors file has no Margrave card; import it with margrave import"
        )
    return state, read_card(metadata[CARD_KEY], path)


def read_card(text: str, path: str | os.PathLike[str]) -> ModelCard:
    """Read a card written by ``ModelCard.to_json``.

    Raises:
        ValueError: the text is not a card, or a field is unknown or invalid; the message starts
            with `path`.
    """
    try:
        fields = read_json(text, "the card")
    except ValueError as error:
        raise ValueError(f"{path}: its card is damaged ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: its card is damaged (not a mapping)")
    try:
        # Earlier versions of Margrave wrote some keys under other names.
        fields = current_card(fields)
    except ValueError as error:
        raise ValueError(f"{path}: its card is damaged ({error})") from error
    # A card of a newer format may have new fields. They are dropped here, so that the error below
    # is about the version.
    version = fields.get("format_version")
    known = ModelCard.__dataclass_fields__
    unknown = [key for key in fields if key not in known]
    if unknown and version in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path}: its card has an unknown field {unknown[0]!r}; {suggest(unknown[0], known)}"
        )
    try:
        return ModelCard(**{key: value for key, value in fields.items() if key in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its card is invalid: {error}") from error
