"""Embed images with a backbone and its preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from margrave.backbones.memory_layout import memory_format
from margrave.data import Fit, ReadableImages, fit_image, normalize, open_source
from margrave.evaluation import fuse_flips, unit_rows
from margrave.models import ModelCard, open_model
from margrave.progress import Progress


@dataclass(frozen=True, eq=False, repr=False)
class Embedder:
    """A backbone and the card that describes its preprocessing.

    Attributes:
        backbone: maps (B, 3, S, S) normalized images to (B, D) unnormalized embeddings.
        card: the model card with image size, mean and std.
        fit: how an image that is not square is made square: "crop", "pad" or "stretch".
        batch_size: number of images per forward pass.
        precision: the dtype in which the backbone computes; bfloat16 is faster than float32 on
            hardware that supports it.
    """

    backbone: nn.Module
    card: ModelCard
    fit: Fit = "crop"
    batch_size: int = 64
    precision: torch.dtype = torch.float32

    def __repr__(self) -> str:
        card, backbone_name = self.card, type(self.backbone).__name__
        fars = ", ".join(f"{point.far:g}" for point in card.operating_points)
        return (
            f"Embedder({backbone_name}, image_size={card.image_size}, mean={card.mean}, "
            f"std={card.std}, alignment={card.alignment!r}, thresholds at FAR: {fars or 'none'})"
        )

    def prepare(self, image: np.ndarray, name: str = "the image") -> Tensor:
        """Make an image square and resize it: (height, width, 3) RGB uint8 to (3, S, S) uint8.

        Raises:
            ValueError: the image has another shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            detail = " with NaN or infinite pixels" if not np.isfinite(image).all() else ""
            raise ValueError(
                f"{name} has shape {image.shape} and dtype {image.dtype}{detail}; "
                "give (height, width, 3) RGB of dtype uint8"
            )
        fitted = fit_image(image, self.card.image_size, self.fit)
        return torch.from_numpy(np.ascontiguousarray(fitted.transpose(2, 0, 1)))

    def embed(
        self, images: Any, *, flips: bool = True, progress: Progress | None = None
    ) -> np.ndarray:
        """Compute (N, D) float32 unit embeddings of aligned faces; warn if images look like photos.

        Args:
            images: an (H, W, 3) uint8 RGB array, a list of such arrays or of paths, an
                (N, H, W, 3) array, or any other source that `open_source` accepts. A single image
                gives one row.
            flips: fuse the embedding of each image with that of its flipped copy.
            progress: called with (images done, total images).

        Raises:
            ValueError: an image cannot be read, or an array is not an RGB uint8 image.
        """
        opened = _as_images(images)
        if self.card.alignment == "arcface" and look_like_photos(opened, self.card.image_size):
            warnings.warn(
                "these look like photos, not aligned face crops, so their embeddings are poor; "
                "align them (margrave align), or use margrave.Matcher, which aligns them",
                stacklevel=2,
            )
        plain, flipped = self.embed_images(opened, flips=flips, progress=progress)
        units = fuse_flips(plain, flipped) if flips else unit_rows(plain)
        return units.astype(np.float32)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Compute (B, D) float32 unnormalized embeddings of (B, 3, S, S) uint8 RGB images.

        Raises:
            ValueError: the backbone's output is not one row per image.
        """
        return self._start_embedding(pixels)[0].cpu()

    @torch.inference_mode()
    def _start_embedding(self, pixels: Tensor, flips: bool = False) -> Tensor:
        """Start computing embeddings, without waiting for the device.

        Returns:
            (1, B, D) embeddings, or (2, B, D) if `flips` adds those of the flipped images.
        """
        parameter = next(self.backbone.parameters())
        device, dtype = parameter.device, parameter.dtype
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            pixels = pixels.to(device, non_blocking=True)
            # An ONNX model may expect BGR; its mean and std are then in BGR order too.
            pixels = pixels.flip(1) if self.card.color_order == "bgr" else pixels
            images = normalize(pixels, self.card.mean, self.card.std)
            use_autocast = self.precision in (torch.bfloat16, torch.float16)
            autocast_dtype = self.precision if use_autocast else None
            with torch.autocast(device.type, autocast_dtype, enabled=use_autocast):
                layout = memory_format(self.backbone)
                views = [images, images.flip(3)] if flips else [images]
                views = [view.to(dtype, memory_format=layout) for view in views]
                return torch.stack([self._forward(view) for view in views])
        finally:
            self.backbone.train(was_training)

    def _forward(self, images: Tensor) -> Tensor:
        """Run the backbone, and check that it returns one embedding per image.

        Without the check, broadcasting would silently copy a single row to all images of the batch.
        """
        output = self.backbone(images)
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{type(self.backbone).__name__} returned {shape} for {len(images)} images, "
                f"expected shape ({len(images)}, D): one embedding per image"
            )
        return output.float()

    def embed_images(
        self,
        images: ReadableImages | Sequence[np.ndarray],
        indices: np.ndarray | None = None,
        flips: bool = True,
        progress: Progress | None = None,
        unreadable: dict[int, str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed images and, if `flips` is set, their horizontally flipped copies.

        Args:
            images: a `ReadableImages` object, or a list of arrays.
            indices: indices of the N images to embed; by default all images.
            flips: embed flipped images too, for flip fusion.
            progress: called with (images done, total images).
            unreadable: a dict to fill with the index in `images` and the reason for each image that
                cannot be read; the image's row is zero. If None, such an image raises an error.

        Returns:
            (N, D) float32 raw embeddings of the images, and (N, D) of the flipped images. Without
            flips, the second array is empty.

        Raises:
            ValueError: there are no images, or an image cannot be read and `unreadable` is None.
        """
        selected = np.arange(len(images)) if indices is None else np.asarray(indices)
        reasons = {} if unreadable is None else unreadable
        size = self.card.image_size
        finished: list[Tensor] = []
        # Of the previous batch: the embeddings, a (B, 1) mask of readable images, and the pixels.
        pending: tuple[Tensor, Tensor, Tensor] | None = None

        def collect_pending() -> None:
            if pending is not None:
                embeddings, readable, _ = pending
                # Not a product: a network may return NaN for the black image of an unreadable one.
                finished.append(torch.where(readable, embeddings.cpu(), 0))

        for start in range(0, len(selected), self.batch_size):
            batch = selected[start : start + self.batch_size]
            pixels = torch.zeros(len(batch), 3, size, size, dtype=torch.uint8)
            for row, index in enumerate(batch.tolist()):
                try:
                    pixels[row] = self._read(images, index)
                except ValueError as error:
                    if unreadable is None:
                        raise
                    reasons[index] = str(error)
            readable = torch.tensor([index not in reasons for index in batch.tolist()])[:, None]
            # The device computed the previous batch while this batch was read, so collect it now.
            collect_pending()
            # Keep a reference to the pixels, because the device may still be copying them.
            pending = self._start_embedding(pixels, flips), readable, pixels
            if progress is not None:
                progress(start + len(batch), len(selected))
        collect_pending()
        if not finished:
            raise ValueError("there are no images to embed; check the folder or the list")
        embeddings = torch.cat(finished, dim=1).numpy()
        empty = np.empty((0, embeddings.shape[2]), np.float32)
        return embeddings[0], embeddings[1] if flips else empty

    def _read(self, images: ReadableImages | Sequence[np.ndarray], index: int) -> Tensor:
        if isinstance(images, Sequence):
            return self.prepare(images[index], f"image {index}")
        return self.prepare(images.read(index), images.name(index))


def look_like_photos(images: ReadableImages, size: int) -> bool:
    """Whether the images seem to be photos instead of aligned crops; checks up to eight images.

    Aligned crops all have the same size and are rarely much larger than the model's images. The
    images are therefore taken for photos in two cases: most of the checked images are larger than
    1.5 times the model's image size and their sizes differ, or most are larger than 5 times the
    model's image size.

    Args:
        images: the images.
        size: the model's image size in pixels.
    """
    # Check images from the whole set. If images are fetched in pieces, as from remote shards, check
    # the first images instead, which are in one piece.
    step = max(1, len(images) // 8) if getattr(images, "pieces", None) is None else 1
    shapes = []
    for index in range(0, len(images), step)[:8]:
        try:
            shapes.append(images.read(index).shape[:2])
        except ValueError:
            continue
    most_are_large = sum(max(shape) > 1.5 * size for shape in shapes) > len(shapes) / 2
    most_are_huge = sum(max(shape) > 5 * size for shape in shapes) > len(shapes) / 2
    return most_are_huge or (most_are_large and len(set(shapes)) > 1)


def _as_images(images: Any) -> ReadableImages:
    """Open images in any form that `Embedder.embed` accepts."""
    is_single_image = isinstance(images, np.ndarray) and images.ndim == 3
    return open_source(images[None] if is_single_image else images)


def load_embedder(
    path: str | Path,
    *,
    fit: Fit | None = None,
    device: str | None = None,
    trust_code: bool = False,
    runtime: str | None = None,
) -> Embedder:
    """Load an embedder from a model file, a run's folder or an ONNX file.

    Args:
        path: the file or folder, see ``margrave.models.open_model``.
        fit: how an image that is not square is made square: "crop", "pad" or "stretch"; by
            default as in training.
        device: the device to run on; by default a CUDA device if there is one.
        trust_code: import and run the custom network code that the model names.
        runtime: the runtime of an ONNX model, ``onnxruntime`` (default) or ``openvino``.

    Raises:
        ValueError: the file does not exist or does not match its card, the card names custom code
            and `trust_code` is False, or the runtime cannot run the model.
    """
    model = open_model(path, device=device, trust_code=trust_code, runtime=runtime)
    return Embedder(model.backbone, model.card, fit or model.card.fit)
