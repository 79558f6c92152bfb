"""The real faces and golden files that lie beside the project, where they do.

They may not enter the project. Absent, these tests are skipped; `.ci/run` sets a variable under
which absence is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from margrave.data import ImageFolder, balanced_pairs, fit_image

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def shared() -> None:
    if SHARED.is_dir():
        return
    if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
        pytest.fail(f"{SHARED} is required and absent")
    pytest.skip(f"{SHARED} is absent")


@pytest.mark.parametrize(
    ("name", "identities", "images"),
    [("bollywood", 95, 8045), ("lfw_a", 423, 5985), ("orl", 40, 400), ("gatech30", 30, 450)],
)
def test_real_folders_are_read(name: str, identities: int, images: int) -> None:
    faces = ImageFolder(SHARED / "data" / name)
    assert (len(faces.class_names), len(faces)) == (identities, images)
    for index in range(0, images, images // 40):
        fitted = fit_image(faces.read(index), 64)
        assert fitted.shape == (64, 64, 3)
        assert fitted.std() > 5


def test_pairs_of_real_people_are_balanced_and_disjoint() -> None:
    faces = ImageFolder(SHARED / "data" / "lfw_a")
    pairs = balanced_pairs(faces.labels, 3000)
    assert pairs.identity_disjoint
    assert ((faces.labels[pairs.first] == faces.labels[pairs.second]) == pairs.same).all()


@pytest.mark.parametrize("folder", ["losses", "backbones", "evaluation"])
def test_golden_copies_are_the_originals(folder: str) -> None:
    copies = sorted((ROOT / "tests" / "golden" / folder).glob("*.npz"))
    originals = {path.name: path for path in (SHARED / "golden" / folder).glob("*.npz")}
    pattern = "pairs_*" if folder == "evaluation" else "*"
    assert {path.name for path in copies} >= {
        path.name for path in originals.values() if path.match(pattern)
    }
    for path in copies:
        if path.name in originals:
            with np.load(path) as copy, np.load(originals[path.name]) as original:
                assert all(np.array_equal(copy[key], original[key]) for key in original.files)
