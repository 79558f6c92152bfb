"""The same on real faces."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from test_zoo import Planted, changed, examine_images, serious, shifted, some

from margrave.data import ImageFolder
from margrave.doctor.data import drawn

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir() and not os.environ.get("MARGRAVE_REQUIRE_SHARED"),
    reason="needs the real faces in ../shared",
)


def some_of(name: str) -> Planted:
    folder = ImageFolder(DATA / name)
    chosen = drawn(folder.labels, 400)
    _, labels = np.unique(folder.labels[chosen], return_inverse=True)
    return Planted([folder.read(index) for index in chosen], labels)


@pytest.mark.parametrize("name", ["lfw_a", "bollywood", "orl", "gatech30"])
def test_healthy(name: str) -> None:
    assert serious(examine_images(some_of(name))) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("bollywood", "reversed_colours"),
        ("bollywood", "unaligned_faces"),
        ("bollywood", "turned_images"),
        ("lfw_a", "unaligned_faces"),
        ("lfw_a", "blank_images"),
        ("lfw_a", "duplicate_identities"),
        ("orl", "unaligned_faces"),
    ],
)
def test_planted(name: str, fault: str) -> None:
    faces = some_of(name)
    one = np.flatnonzero(faces.labels == 0)
    planted = {
        "reversed_colours": lambda: changed(faces, lambda image, draw: image[..., ::-1].copy()),
        "unaligned_faces": lambda: changed(faces, shifted),
        "turned_images": lambda: changed(faces, lambda image, draw: image[::-1, ::-1].copy()),
        "blank_images": lambda: changed(faces, some(0.05, lambda x: np.full_like(x, 120))),
        "duplicate_identities": lambda: Planted(
            faces.images + [faces.images[n] for n in one],
            np.append(faces.labels, [faces.labels.max() + 1] * len(one)),
        ),
    }
    found = examine_images(planted[fault]())
    assert found[0].fault == fault, found[:3]
