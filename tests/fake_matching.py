"""A model, a finder and people that need no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from margrave.faces import AlignedFace, Detection
from margrave.gallery import MemoryGallery
from margrave.matching import Matcher
from margrave.matching.gallery_card import new_gallery_card
from margrave.models import Calibration, Model, ModelCard, OperatingPoint, ScoreReference

SIZE = 16
REFERENCE = ScoreReference(
    measured_on="test",
    calibration=Calibration(slope=10.0, offset=-5.0, cllr=0.1, cllr_min=0.1, people=10),
    far_thresholds=((0.1, 0.3), (0.01, 0.5), (0.001, 0.8)),
    norm_percentiles=tuple(np.linspace(100.0, 2000.0, 101)),
)
POINTS = tuple(
    OperatingPoint(far=far, threshold=threshold) for far, threshold in ((0.01, 0.5), (0.001, 0.8))
)


class Coarse(nn.Module):
    """Embeds an image as its 4 × 4 average pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) * 100 + self.anchor


class Halves:
    """Takes the left part of a photo for a face, and the right part too where it is not black."""

    def find(self, photo: np.ndarray, size: int) -> list[AlignedFace]:
        found = []
        for left in range(0, photo.shape[1] - SIZE + 1, SIZE):
            part = photo[:SIZE, left : left + SIZE]
            if part.any():
                box = np.array([0.0, 0.0, 2 * SIZE, 2 * SIZE]) * (1 if left == 0 else 0.8)
                found.append(AlignedFace(part.copy(), Detection(box, np.zeros((5, 2)), 1.0)))
        return found


def make_model(**changes: Any) -> Model:
    card = ModelCard(
        **{
            "backbone": {"kind": "mbf"},
            "image_size": SIZE,
            "operating_points": POINTS,
            "reference": REFERENCE,
            **changes,
        }
    )
    model = Model(path=Path("model"), card=card, state={})
    model.__dict__.update(backbone=Coarse().eval(), digest="d" * 64)
    return model


def matcher(gallery: bool = False, keep_images: bool = False, **options: Any) -> Matcher:
    model = options.pop("model", None) or make_model()
    store = MemoryGallery(new_gallery_card(model, keep_images)) if gallery else None
    return Matcher(model, store, finder=Halves(), **options)


def person(seed: int, variation: int = 0) -> np.ndarray:
    """A photo of somebody."""
    rough = np.random.default_rng(seed).integers(0, 2, (4, 4, 3)).astype(np.uint8) * 200
    photo = cv2.resize(rough, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    noise = np.random.default_rng((seed, variation)).integers(0, 30, photo.shape)
    return (photo + noise).astype(np.uint8)
