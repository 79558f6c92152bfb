"""Finds mislabeled training images of a run whose head has several centers per class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from margrave.data import FaceImages
from margrave.distributed import World
from margrave.distributed.tensor_store import load_tensors, stored_tensors
from margrave.doctor.data import sample_identities
from margrave.doctor.findings import Finding
from margrave.doctor.image_checks import MAX_EXAMPLES
from margrave.inference import Embedder

MAX_ANGLE = 75
"""Angle in degrees to the dominant center (see `mislabeled`) above which an image that is nearer to
another center of its class is probably mislabeled."""
MAX_CENTERS = 64
"""Maximum plausible number of centers per class; a checkpoint with more is not evaluated."""
CENTERS = "head.weight"
"""Name of the tensor of class centers in a checkpoint."""


def check_label_noise(
    checkpoint: Path, embedder: Embedder, images: FaceImages, max_images: int
) -> Iterator[Finding]:
    """Find the training images that are probably mislabeled (see `mislabeled`).

    Args:
        checkpoint: the run's latest checkpoint. With one center per class, nothing is checked.
        embedder: the run's model.
        images: the run's training images.
        max_images: maximum number of images to embed. In a larger set, randomly chosen identities
            are examined, with all their images.

    Source: Sub-center ArcFace, ECCV 2020, section 3.4, including the threshold of 75°.
    """
    shape, dtype = stored_tensors(checkpoint).get(CENTERS, (torch.Size(), torch.float32))
    # The shape is (C, M, D) with M > 1 centers per class, and (C, D) with one.
    if len(shape) != 3:
        return
    labels = np.asarray(images.labels)
    indices = np.array(sample_identities(labels, max_images))
    unreadable: dict[int, str] = {}
    embeddings, _ = embedder.embed_images(images, indices, flips=False, unreadable=unreadable)
    readable = ~np.isin(indices, list(unreadable))
    indices, embeddings = indices[readable], embeddings[readable]
    num_classes, embedding_size = len(images.class_names), embeddings.shape[1]
    if (shape[0], shape[2]) != (num_classes, embedding_size) or shape[1] > MAX_CENTERS:
        yield Finding(
            fault="label_noise_not_checked",
            severity="unchecked",
            message=f"the checkpoint's class centers have the shape {tuple(shape)}, but these "
            f"images and this model need ({num_classes}, at most {MAX_CENTERS} centers per "
            f"class, {embedding_size})",
            remedy="restore the images that the run was trained on",
            share=0.0,
        )
        return
    tensors = {CENTERS: torch.empty(shape, dtype=dtype)}
    load_tensors(checkpoint, tensors, rows={}, world=World())
    is_mislabeled = mislabeled(embeddings, labels[indices], tensors[CENTERS].float().numpy())
    if not is_mislabeled.any():
        return
    suspects = indices[is_mislabeled]
    yield Finding(
        fault="label_noise",
        severity="warning",
        message=f"{len(suspects)} of {len(indices)} training images are more than {MAX_ANGLE}° "
        f"from the dominant one of their class's {shape[1]} centers (the one with the most "
        "images), and nearer to another of them: they probably show other people",
        remedy="look at them; train again without them, with one center per class",
        share=len(suspects) / len(indices),
        examples=tuple(
            f"{images.name(int(index))} (labeled {images.class_names[int(labels[index])]})"
            for index in suspects[:MAX_EXAMPLES]
        ),
        figures={"images": [images.name(int(index)) for index in suspects]},
    )


def mislabeled(embeddings: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(N,) bool, True for images that probably do not belong to their class.

    Each image is assigned to the nearest center of its class. The dominant center of a class is the
    center with the most images. An image is probably mislabeled if it is assigned to another center
    and is more than 75° from the dominant center.

    Args:
        embeddings: (N, D) embeddings of the images.
        labels: (N,) class indices.
        centers: (C, M, D), M centers for each of C classes.

    >>> centers = np.array([[[1.0, 0], [0, 1.0]]])
    >>> mislabeled(np.array([[1, 0.1], [1, 0.2], [0.1, 1]]), np.array([0, 0, 0]), centers)
    array([False, False,  True])
    """
    cosines = np.einsum("nd,nmd->nm", _unit(embeddings), _unit(centers)[labels])
    nearest = cosines.argmax(axis=1)
    counts = np.zeros(centers.shape[:2], int)
    np.add.at(counts, (labels, nearest), 1)
    dominant = counts.argmax(axis=1)[labels]
    dominant_cosines = np.take_along_axis(cosines, dominant[:, None], axis=1)[:, 0]
    return (nearest != dominant) & (dominant_cosines < math.cos(math.radians(MAX_ANGLE)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors along the last axis, scaled to unit length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)
