"""``import margrave``: what it offers, at no cost until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import margrave
from margrave import backbones
from margrave.inference import Embedder
from margrave.models import ModelCard, save_model
from margrave.synthetic import SyntheticFaces

BACKBONE = {"kind": "mbf", "image_size": 32, "embedding_size": 8}


@pytest.fixture
def model(tmp_path: Path) -> Embedder:
    card = ModelCard(backbone=BACKBONE, image_size=32)
    network = backbones.create(BACKBONE)
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    return margrave.load_model(tmp_path / "model.safetensors")


def test_every_name_is_there() -> None:
    for name in margrave.__all__:
        assert getattr(margrave, name) is not None
    assert sorted(margrave.__all__) == dir(margrave)
    with pytest.raises(AttributeError, match="'margrave' has no attribute 'load_modle'"):
        margrave.load_modle  # noqa: B018


def test_importing_takes_nothing_along() -> None:
    code = "import margrave, sys; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_of_every_kind(model: Embedder, tmp_path: Path) -> None:
    faces = SyntheticFaces(num_identities=3, images_per_identity=1, image_size=32)
    arrays = [faces.read(index) for index in range(3)]
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        cv2.imwrite(str(path), array[:, :, ::-1])
    expected = model.embed(arrays)
    assert expected.shape == (3, 8) and expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-6)
    for images in (np.stack(arrays), paths, [str(path) for path in paths], faces):
        np.testing.assert_array_equal(model.embed(images), expected)
    for single in (arrays[0], paths[0], str(paths[0])):
        np.testing.assert_allclose(model.embed(single), expected[:1], atol=1e-5)
    with pytest.raises(ValueError, match=r"gone\.png"):
        model.embed([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match="the list of images is empty"):
        model.embed([])


def test_similarity(model: Embedder) -> None:
    faces = SyntheticFaces(num_identities=3, images_per_identity=1, image_size=32)
    first, second, third = rows = model.embed(faces)
    cosine = margrave.similarity(first, second)
    assert isinstance(cosine, float) and cosine == pytest.approx(float(first @ second), abs=1e-6)
    assert margrave.similarity(first, rows).shape == margrave.similarity(rows, third).shape == (3,)
    assert margrave.similarity(rows, rows[:2]).shape == (3, 2)
    with pytest.raises(ValueError, match="both must come from one model"):
        margrave.similarity(first, first[:4])
