"""The base class of all ONNX runtimes, with their checks, batching and error messages."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from margrave.files import external_weights, onnx_metadata, open_regular
from margrave.models.model_file import CARD_KEY, ModelCard, read_card
from margrave.registry import suggest

REPEATED_IMAGES = (0, 0, 0)
"""Indices of the test images that `check_batching` computes again to detect randomness: the first
image three times, because at a low dropout rate one repetition may by chance be unchanged."""


@dataclass(frozen=True)
class Port:
    """An input or output that a model declares.

    Attributes:
        name: the name in the file.
        shape: the length of each dimension. A dynamic dimension has any value that is not a
            positive integer. Empty if the number of dimensions is unknown.
        element_type: the runtime's name of the element type, such as ``tensor(float)``.
    """

    name: str
    shape: Sequence[Any]
    element_type: str


class OnnxNetwork(nn.Module):
    """A network in an ONNX file as a module, for inference only.

    A model with a fixed batch size gets batches of that size, padded if necessary. A model that
    takes (B, S, S, 3) gets channels last, and a model that takes uint8 gets pixels in [0, 255].

    A runtime is a subclass that implements `_open` and `_compute`.

    Args:
        path: the .onnx file, with one input (B, 3, S, S) or (B, S, S, 3) and an output (B, D).
        threads: CPU threads; None takes as many as torch uses.
        device: the runtime's device, such as ``cpu``; None takes the runtime's default.
        output: the name of the output that is the embedding, if the model has several.

    Attributes:
        runtime: the runtime's name.
        element_types: the supported element types of the input, as the runtime's name (such as
            ``tensor(float)``) -> NumPy type.
        content_digest: SHA-256 of the file, of its external files, and of the output's name if the
            model has several outputs.
        external_weights: external files that contain the model's weights.
        image_size: S, or None if the model takes any size.
        metadata: the file's metadata, by key.
        takes_uint8: True if the input is uint8; the model then normalizes the pixels itself.
        one_at_a_time: True if images are computed one by one, because larger batches fail or give
            different embeddings; `check_batching` sets it.

    Raises:
        ValueError: the file does not exist, is damaged, or has unsupported inputs or outputs; or
            the runtime is not installed or has no such device.
    """

    runtime: ClassVar[str]
    element_types: ClassVar[Mapping[str, type]]

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        device: str | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: no such file")
        self.external_weights = external_weights(self.path)
        self.metadata = onnx_metadata(self.path)
        inputs, outputs = self._open(threads or torch.get_num_threads(), device)
        self._read_input(inputs)
        self._output = self._choose_output(output, outputs)
        self.one_at_a_time = False
        self.content_digest = _digest(self.path, self.external_weights)
        if len(outputs) > 1:
            # Different outputs of the same file are different embeddings.
            digest_and_output = f"{self.content_digest} {self._output}"
            self.content_digest = hashlib.sha256(digest_and_output.encode()).hexdigest()
        # Callers move images to the device and dtype of a module's first parameter, so the module
        # needs one.
        self._device_parameter = nn.Parameter(torch.empty(0), requires_grad=False)

    @abstractmethod
    def _open(self, threads: int, device: str | None) -> tuple[Sequence[Port], Sequence[Port]]:
        """Open the file, and return its inputs and outputs.

        Raises:
            ValueError: the runtime is not installed or has no such device, or the file is
                damaged.
        """

    @abstractmethod
    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on `pixels`, its input `self._input`; return its output `self._output`.

        Raises:
            ValueError: the runtime fails; the message gives its reason.
        """

    def _read_input(self, inputs: Sequence[Port]) -> None:
        shapes = [list(port.shape) for port in inputs]
        expected = "expected one input of shape (B, 3, S, S) or (B, S, S, 3)"
        if len(inputs) != 1 or len(shapes[0]) != 4:
            raise ValueError(f"{self.path} takes {shapes}; {expected}")
        batch, *dimensions = shapes[0]
        # Some models declare the number of channels as the text "3".
        self._channels_last = dimensions[0] not in (3, "3") and dimensions[2] in (3, "3")
        sides = dimensions[:2] if self._channels_last else dimensions[1:]
        sizes = {side for side in sides if isinstance(side, int) and side > 0}
        if not (self._channels_last or dimensions[0] in (3, "3")) or len(sizes) > 1:
            raise ValueError(f"{self.path} takes {shapes}; {expected}")
        if inputs[0].element_type not in self.element_types:
            raise ValueError(
                f"{self.path} takes pixels of type {inputs[0].element_type}; "
                f"expected {', '.join(self.element_types)}"
            )
        self._input = inputs[0].name
        self._dtype = self.element_types[inputs[0].element_type]
        self.takes_uint8 = self._dtype == np.uint8
        self._fixed_batch_size = batch if isinstance(batch, int) and batch > 0 else None
        self.image_size = sizes.pop() if sizes else None

    def _choose_output(self, name: str | None, declared: Sequence[Port]) -> str:
        shapes = {port.name: list(port.shape) for port in declared}
        names_and_shapes = ", ".join(f"{output} {shape}" for output, shape in shapes.items())
        name = name or self._output_name_in_card()
        if name is None and len(shapes) > 1:
            raise ValueError(
                f"{self.path} has {len(shapes)} outputs: {names_and_shapes}; choose the "
                "embedding when importing the model: margrave import ... --output NAME (output=)"
            )
        name = next(iter(shapes)) if name is None else name
        if not isinstance(name, str) or name not in shapes:
            raise ValueError(f"{self.path} has no output {name!r}; {suggest(str(name), shapes)}")
        # Empty if the model does not declare it; `check_batching` checks the actual shape later.
        if len(shapes[name]) not in (0, 2):
            raise ValueError(f"{self.path} has the output {name} {shapes[name]}; expected (B, D)")
        return name

    def _output_name_in_card(self) -> str | None:
        if CARD_KEY not in self.metadata:
            return None
        return read_card(self.metadata[CARD_KEY], self.path).backbone.get("output")

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, D) embeddings of (B, 3, S, S) normalized images.

        Raises:
            ValueError: the runtime cannot run the model, or the model does not return one row per
                image.
        """
        pixels = images.float().contiguous().cpu().numpy()
        step = 1 if self.one_at_a_time else self._fixed_batch_size or max(1, len(pixels))
        parts = [
            self._embed_batch(pixels[start : start + step]) for start in range(0, len(pixels), step)
        ]
        if not parts:
            # D is known only from an output, so compute a blank image and drop its embedding.
            parts = [self._embed_batch(np.zeros((1, *pixels.shape[1:]), np.float32))[:0]]
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _embed_batch(self, pixels: np.ndarray) -> np.ndarray:
        """Compute one embedding per image, for one batch of at most the model's batch size."""
        rows = self._compute_padded(pixels)
        # If images are computed one at a time, the first row is the embedding, even if the model
        # returns several rows.
        uses_first_row = self.one_at_a_time and rows.ndim == 2 and len(rows) > 0
        expected = len(rows) if uses_first_row else self._fixed_batch_size or len(pixels)
        if rows.ndim != 2 or len(rows) != expected:
            raise ValueError(
                f"{self.path} returns shape {rows.shape} for {expected} images, expected "
                f"({expected}, D); export it with a dynamic batch size, or with batch size 1"
            )
        return rows[: len(pixels)]

    def _compute_padded(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the model's output for a batch, padded if the model's batch size is fixed."""
        padding = (self._fixed_batch_size or len(pixels)) - len(pixels)
        if padding:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], padding, axis=0)])
        if self._channels_last:
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        if self.takes_uint8:
            pixels = (pixels * 255).round().clip(0, 255)
        pixels = pixels.astype(self._dtype, copy=False)
        try:
            return np.asarray(self._compute(pixels), np.float32)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {self.runtime} cannot run it on shape {pixels.shape}: {error}"
            ) from error

    def check_batching(self, card: ModelCard) -> None:
        """Embed two test images, each alone and both together, and compare the embeddings.

        If an image's embedding is different in a batch, the graph mixes images; for example, it may
        assume a batch size that its input does not declare. `forward` then computes images one at a
        time.

        Args:
            card: the model's card; the test images have its image size and normalization.

        Raises:
            ValueError: the model does not return one finite row for one image, or returns a
                different row each time.
        """
        generator = np.random.default_rng(0)
        # Coarse patterns, because networks average fine noise away, so the embeddings of two noise
        # images would be too similar.
        coarse = generator.uniform(0, 1, (2, 3, 4, 4)).astype(np.float32)
        # For each pixel row or column, its row or column in the coarse pattern.
        cells = np.arange(card.image_size) * 4 // card.image_size
        images = coarse[:, :, cells][:, :, :, cells]
        mean, std = (
            np.broadcast_to(np.asarray(value, np.float32), 3)[:, None, None]
            for value in (card.mean, card.std)
        )
        images = np.ascontiguousarray((images - mean) / std)
        first, second, *repeated = (
            self._compute_checked_row(images[index : index + 1])
            for index in (0, 1, *REPEATED_IMAGES)
        )
        separate = np.stack([first, second])
        # Allow for rounding, which depends on the batch size, especially in quantized models.
        tolerance = 1e-3 * np.linalg.norm(separate) + 0.05 * np.linalg.norm(first - second)
        if max(np.linalg.norm(first - row) for row in repeated) > tolerance:
            raise ValueError(
                f"{self.path} returns a different embedding each time for the same image: the "
                "graph contains dropout or noise; export it in evaluation mode"
            )
        self.one_at_a_time = self._fixed_batch_size == 1
        if self.one_at_a_time:
            return
        try:
            joint = self._embed_batch(images)
        except ValueError:
            self.one_at_a_time = True
            return
        rows_agree = joint.shape == separate.shape and np.linalg.norm(joint - separate) <= tolerance
        self.one_at_a_time = not rows_agree

    def _compute_checked_row(self, image: np.ndarray) -> np.ndarray:
        """Compute the (D,) embedding of one (1, 3, S, S) image, and check its shape and values."""
        rows = self._compute_padded(image)
        if rows.ndim != 2 or len(rows) not in (1, self._fixed_batch_size):
            raise ValueError(
                f"{self.path} returns shape {rows.shape} for one image, expected (1, D)"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{self.path} returns NaN or infinite values for an ordinary image")
        return rows[0]


def _digest(path: Path, external: Sequence[Path]) -> str:
    """SHA-256 of a model's files; with external files, also of their names and all files' sizes."""
    sha256 = hashlib.sha256()
    try:
        for file_path in (path, *external):
            if external:
                name = file_path.relative_to(path.parent).as_posix() if file_path != path else ""
                sha256.update(f"{name}\0{file_path.stat().st_size}\0".encode())
            with open(file_path, "rb", opener=open_regular) as file:
                while block := file.read(2**20):
                    sha256.update(block)
    except OSError as error:
        raise ValueError(f"{path}: its weights cannot be read: {error}") from error
    return sha256.hexdigest()
