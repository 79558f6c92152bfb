"""Margrave's own model files: safetensors with a card that says how to use the weights."""

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

from margrave.files import read_json
from margrave.files.atomic import atomic_write
from margrave.registry import suggest

FORMAT_VERSION = 1
CARD_KEY = "margrave"
LARGEST_IMAGE = 4096
"""Pixels of a side."""
LARGEST_PIXEL = 1e9
"""Beyond any mean or deviation of pixels."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold that was chosen for a model, and what it is worth.

    Attributes:
        far: the false accept rate that was asked for.
        threshold: two faces are taken for one person where their cosine is strictly above.
        threshold_interval: 95 %, None if unknown.
        true_accept_rate: measured there.
        true_accept_interval: 95 %, None if unknown.
        impostors: how many impostor pairs the false accept rate rests on.
        measured_on: the images, in words.
        flips: whether embeddings were fused with their mirror images'.

    Raises:
        ValueError: a rate or a cosine that cannot be.
    """

    far: float
    threshold: float
    threshold_interval: tuple[float, float] | None = None
    true_accept_rate: float | None = None
    true_accept_interval: tuple[float, float] | None = None
    impostors: int = 0
    measured_on: str = ""
    flips: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.far, int | float) and 0 < self.far < 1):
            raise ValueError(f"operating point: far = {self.far!r}, must be between 0 and 1")
        if not (isinstance(self.threshold, int | float) and -1.001 <= self.threshold <= 1.001):
            raise ValueError(f"operating point: threshold = {self.threshold!r}, must be a cosine")
        for name in ("threshold_interval", "true_accept_interval"):
            if (interval := getattr(self, name)) is not None:
                if len(interval) != 2 or not all(isinstance(end, int | float) for end in interval):
                    raise ValueError(
                        f"operating point: {name} = {interval!r:.60}, must be two ends"
                    )
                object.__setattr__(self, name, tuple(interval))
        for name, kind in (("impostors", int), ("measured_on", str), ("flips", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"operating point: {name} = {getattr(self, name)!r:.60} cannot be")
        rate = self.true_accept_rate
        if rate is not None and not (isinstance(rate, int | float) and 0 <= rate <= 1):
            raise ValueError(f"operating point: true_accept_rate = {rate!r:.60} is no share")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that a model file says besides its weights.

    Attributes:
        backbone: the specification to build it from, ``{"kind": name, **settings}``, plain JSON.
        image_size: height and width of the aligned faces, pixels.
        mean, deviation: of pixels scaled to [0, 1], one number or one per channel; the network
            sees (pixel - mean) / deviation, by default [-1, 1].
        fit: how an image that is not square becomes so: ``crop``, ``stretch`` or ``pad``.
        colour_order: always RGB for our own networks, where importers fold other orders into the
            first convolution; an ONNX model (``{"kind": "onnx"}``) may want ``bgr``.
        source: where the weights come from, in words.
        operating_points: thresholds chosen for this model, see ``OperatingPoint``.
        format_version: of this format.

    Raises:
        ValueError: a field that no model can have.

    >>> ModelCard(backbone={"kind": "mbf"}).mean
    0.5
    """

    backbone: Mapping[str, Any]
    image_size: int = 112
    mean: float | tuple[float, float, float] = 0.5
    deviation: float | tuple[float, float, float] = 0.5
    fit: Literal["crop", "stretch", "pad"] = "crop"
    colour_order: Literal["rgb", "bgr"] = "rgb"
    source: str = ""
    operating_points: tuple[OperatingPoint, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, Mapping) or not isinstance(self.backbone.get("kind"), str):
            raise ValueError(f"backbone = {self.backbone!r}, must be a mapping with a 'kind'")
        if type(self.image_size) is not int or not 0 < self.image_size <= LARGEST_IMAGE:
            raise ValueError(
                f"image_size = {self.image_size!r:.30}, must be a whole number from 1 to "
                f"{LARGEST_IMAGE}"
            )
        if self.backbone.get("image_size", self.image_size) != self.image_size:
            raise ValueError(
                f"image_size = {self.image_size}, "
                f"but the backbone's is {self.backbone['image_size']}"
            )
        for name in ("mean", "deviation"):
            self._check_pixels(name)
        object.__setattr__(
            self,
            "operating_points",
            tuple(
                point if isinstance(point, OperatingPoint) else OperatingPoint(**point)
                for point in self.operating_points
            ),
        )
        if self.fit not in ("crop", "stretch", "pad"):
            raise ValueError(f"fit = {self.fit!r}, must be 'crop', 'stretch' or 'pad'")
        if self.colour_order != "rgb" and not (
            self.backbone["kind"] == "onnx" and self.colour_order == "bgr"
        ):
            raise ValueError(f"colour_order = {self.colour_order!r}, must be 'rgb'")
        if not isinstance(self.source, str):
            raise ValueError(f"source = {self.source!r}, must be text")
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version = {self.format_version!r}, this Margrave reads {FORMAT_VERSION}; "
                "use the version of Margrave that wrote it"
            )

    def _check_pixels(self, name: str) -> None:
        given = getattr(self, name)
        values = tuple(given) if isinstance(given, list | tuple) else (given,)
        # Of whole numbers beyond any float it cannot be asked whether they are finite.
        if len(values) not in (1, 3) or not all(
            isinstance(value, int | float) and abs(value) < LARGEST_PIXEL for value in values
        ):
            raise ValueError(f"{name} = {given!r:.60}, must be a finite number, or three")
        if name == "deviation" and min(values) <= 0:
            raise ValueError(f"deviation = {given}, must be above 0")
        # Lists come from JSON; equal cards should be equal.
        object.__setattr__(self, name, values if len(values) == 3 else values[0])

    def to_json(self) -> str:
        """The card as a model file holds it.

        Raises:
            ValueError: the backbone's specification is not plain JSON.
        """
        try:
            return json.dumps({**asdict(self), "backbone": dict(self.backbone)})
        except TypeError as error:
            raise ValueError(f"backbone = {self.backbone!r} cannot be written: {error}") from error


def save_model(path: str | os.PathLike[str], state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to one file, which replaces an older one only when complete.

    Raises:
        ValueError: the backbone's specification is not plain JSON.
    """
    text = card.to_json()
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
    # Sizes that torch cannot hold fail in other ways.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: damaged or no model file ({reason}); give a run's folder or its "
            "model.safetensors, or import other projects' checkpoints first"
        ) from error
    if CARD_KEY not in metadata:
        raise ValueError(f"{path}: safetensors without Margrave's card; import it first")
    return state, read_card(metadata[CARD_KEY], path)


def read_card(text: str, path: str | os.PathLike[str]) -> ModelCard:
    """The card in a text of ``ModelCard.to_json``.

    Raises:
        ValueError: no such text, unknown or wrong fields, naming the file.
    """
    try:
        fields = read_json(text, "the card")
    except ValueError as error:
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
