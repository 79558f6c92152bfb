"""Mislabeled images are named by the centers of a head with several per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from margrave.distributed import World
from margrave.distributed.tensor_store import save_tensors
from margrave.doctor.label_noise import check_label_noise, mislabeled

CLASSES, CENTERS, FEATURES = 4, 3, 16


class Faces:
    """As many images of each class, of which a few are another person's."""

    class_names = tuple(f"person {n}" for n in range(CLASSES))
    labels = np.repeat(np.arange(CLASSES), 10)
    wrong = (3, 17, 18)
    path = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"


class PlantedEmbedder:
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def embed_images(self, images, indices, flips, unreadable):
        del images, flips
        unreadable[5] = "image 5 is damaged"
        return self.rows[indices], self.rows[:0]


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and centers of which each class's last is the dominant one."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(FEATURES, FEATURES)))[0]
    centers = axes[: CLASSES * CENTERS].reshape(CLASSES, CENTERS, FEATURES)
    rows = centers[Faces.labels, 2]
    rows[list(Faces.wrong)] = centers[Faces.labels[list(Faces.wrong)], 0]
    return rows.astype(np.float32), centers.astype(np.float32)


def test_images_of_other_centers_are_named(tmp_path: Path) -> None:
    rows, centers = planted()
    save_tensors(tmp_path / "tensors", {"head.weight": torch.from_numpy(centers)}, {}, World())
    (finding,) = check_label_noise(tmp_path / "tensors", PlantedEmbedder(rows), Faces(), 100)
    assert finding.fault == "label_noise" and finding.message.startswith("3 of 39 training images")
    assert finding.examples[0] == "image 3 (labeled person 0)"
    assert finding.figures["images"] == [f"image {n}" for n in Faces.wrong]


def test_one_center_per_class_tells_nothing(tmp_path: Path) -> None:
    rows, centers = planted()
    save_tensors(
        tmp_path / "tensors", {"head.weight": torch.from_numpy(centers[:, 0])}, {}, World()
    )
    assert not list(check_label_noise(tmp_path / "tensors", PlantedEmbedder(rows), Faces(), 100))


@pytest.mark.parametrize("shape", [(CLASSES + 1, 3, FEATURES), (CLASSES, 3, 8), (CLASSES, 65, 16)])
def test_centers_of_something_else_are_not_used(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows, _ = planted()
    save_tensors(tmp_path / "tensors", {"head.weight": torch.zeros(shape)}, {}, World())
    (finding,) = check_label_noise(tmp_path / "tensors", PlantedEmbedder(rows), Faces(), 100)
    assert finding.fault == "label_noise_not_checked" and str(shape) in finding.message


def test_a_second_center_nearby_is_no_other_person() -> None:
    centers = np.array([[[1.0, 0.0], [0.6, 0.8]]])
    rows = np.array([[1.0, 0.1], [1.0, 0.0], [0.6, 0.7]])
    assert not mislabeled(rows, np.zeros(3, int), centers).any()
