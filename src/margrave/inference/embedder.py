"""A backbone with its preprocessing: images in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from margrave import backbones
from margrave.backbones.memory_layout import memory_format
from margrave.checkpoints import ModelCard, load_model, load_strictly
from margrave.data import Fit, ReadableImages, fit_image, normalise
from margrave.files import is_onnx
from margrave.inference.onnx_model import load_onnx
from margrave.registry import names_from_file

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Embedder:
    """A backbone in evaluation mode and the card that says how its images are prepared.

    Attributes:
        backbone: (B, 3, S, S) normalised RGB -> (B, D) unnormalised.
        card: image size, mean and deviation.
        fit: how an image of another shape becomes square.
        batch_size: images at a time.
        precision: of the backbone's arithmetic; bfloat16 is faster on machines made for it.
    """

    backbone: nn.Module
    card: ModelCard
    fit: Fit = "crop"
    batch_size: int = 64
    precision: torch.dtype = torch.float32

    def prepare(self, image: np.ndarray, name: str = "the image") -> Tensor:
        """A (height, width, 3) RGB image as (3, S, S) uint8.

        Raises:
            ValueError: another shape, or pixels that are not 8-bit, naming what came.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            detail = " with NaN or infinite pixels" if not np.isfinite(image).all() else ""
            raise ValueError(
                f"{name} has shape {image.shape} and dtype {image.dtype}{detail}; "
                "give (height, width, 3) RGB of dtype uint8"
            )
        fitted = fit_image(image, self.card.image_size, self.fit)
        return torch.from_numpy(np.ascontiguousarray(fitted.transpose(2, 0, 1)))

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D) float32 unnormalised embeddings.

        Raises:
            ValueError: the backbone does not give one row per image.
        """
        return self._embed(pixels)[0].cpu()

    @torch.inference_mode()
    def _embed(self, pixels: Tensor, flips: bool = False) -> Tensor:
        """(1, B, D) embeddings, or (2, B, D) with flips; the device may still be computing them."""
        parameter = next(self.backbone.parameters())
        device, dtype = parameter.device, parameter.dtype
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            pixels = pixels.to(device, non_blocking=True)
            # An ONNX model may want BGR; its mean and deviation are then in that order too.
            pixels = pixels.flip(1) if self.card.colour_order == "bgr" else pixels
            images = normalise(pixels, self.card.mean, self.card.deviation)
            low = self.precision in (torch.bfloat16, torch.float16)
            with torch.autocast(device.type, self.precision if low else None, enabled=low):
                layout = memory_format(self.backbone)
                sides = [images, images.flip(3)] if flips else [images]
                sides = [side.to(dtype, memory_format=layout) for side in sides]
                return torch.stack([self._rows(side) for side in sides])
        finally:
            self.backbone.train(was_training)

    def _rows(self, images: Tensor) -> Tensor:
        """One row per image, whatever network it is; one row for many would be broadcast."""
        answer = self.backbone(images)
        if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(images):
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"{type(self.backbone).__name__} gives {shape} for {len(images)} images, expected "
                f"shape ({len(images)}, D): one embedding per image"
            )
        return answer.float()

    def embed_images(
        self,
        images: ReadableImages | Sequence[np.ndarray],
        indices: np.ndarray | None = None,
        flips: bool = True,
        progress: Progress | None = None,
        unreadable: dict[int, str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the images and, if asked for, of their mirror images.

        Args:
            images: a labelled set, or images as arrays.
            indices: which ones; all by default.
            flips: embed mirror images too, for flip fusion.
            progress: called with (images done, images in all).
            unreadable: where given, images that cannot be read leave rows of zeros and their
                reason here, by index.

        Returns:
            (N, D) and (N, D) float32, the second empty without flips.

        Raises:
            ValueError: an image that cannot be read, naming it, unless `unreadable` is given.
        """
        wanted = np.arange(len(images)) if indices is None else np.asarray(indices)
        faults = {} if unreadable is None else unreadable
        size = self.card.image_size
        done: list[Tensor] = []
        computing: tuple[Tensor, Tensor, Tensor] | None = None

        def collect() -> None:
            if computing is not None:
                embeddings, read, _ = computing
                done.append(embeddings.cpu() * read)

        for start in range(0, len(wanted), self.batch_size):
            part = wanted[start : start + self.batch_size]
            pixels = torch.zeros(len(part), 3, size, size, dtype=torch.uint8)
            for row, index in enumerate(part.tolist()):
                try:
                    pixels[row] = self._read(images, index)
                except ValueError as error:
                    if unreadable is None:
                        raise
                    faults[index] = str(error)
            read = torch.tensor([index not in faults for index in part.tolist()])[:, None]
            # Only now: while these images were read the device computed the embeddings of the last.
            collect()
            computing = self._embed(pixels, flips), read, pixels
            if progress is not None:
                progress(start + len(part), len(wanted))
        collect()
        if not done:
            raise ValueError("there are no images to embed; check the folder or the list")
        embeddings = torch.cat(done, dim=1).numpy()
        empty = np.empty((0, embeddings.shape[2]), np.float32)
        return embeddings[0], embeddings[1] if flips else empty

    def _read(self, images: ReadableImages | Sequence[np.ndarray], index: int) -> Tensor:
        if isinstance(images, Sequence):
            return self.prepare(images[index], f"image {index}")
        return self.prepare(images.read(index), images.name(index))


def load_embedder(
    path: str | Path,
    *,
    fit: Fit | None = None,
    device: str | None = None,
    trust_code: bool = False,
) -> Embedder:
    """The embedder in a model file, in a run's folder, or in an ONNX file.

    Args:
        path: the file or folder; or an .onnx file, see ``margrave.inference.onnx_model``.
        fit: how images of another shape become square; by default as in training.
        device: by default a CUDA device if there is one.
        trust_code: allow a network of somebody's own, whose module is imported.

    Raises:
        ValueError: no such file, one that does not fit its own card, or one that names code of
            its own without `trust_code`.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if is_onnx(path):
        network, card = load_onnx(path, device)
        return Embedder(network.eval(), card, fit or card.fit)
    state, card = load_model(path)
    with names_from_file(path, trust_code):
        backbone = backbones.create_for(state, card.backbone, str(path))
    load_strictly(backbone, state, str(path))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        backbone = backbone.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device = {device!r} cannot be used here: {reason}") from error
    return Embedder(backbone, card, fit or card.fit)
