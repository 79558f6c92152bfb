"""Photos aligned as they are read."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.faces import AlignedFace, AlignedImages, Detection
from margrave.synthetic import SyntheticFaces


class Corner:
    """Takes the bright corner of a photo for a face."""

    def find(self, photo: np.ndarray, size: int) -> list[AlignedFace]:
        if photo.max() < 128:
            return []
        detection = Detection(np.array([0.0, 0.0, size, size]), np.zeros((5, 2)), 1.0)
        return [AlignedFace(photo[:size, :size], detection)]


class Photos(SyntheticFaces):
    def read(self, index: int) -> np.ndarray:
        return np.zeros((40, 40, 3), np.uint8) if index == 1 else super().read(index)


def test_faces_are_cut_out_and_all_else_stays() -> None:
    photos = Photos(num_identities=3, images_per_identity=2, image_size=40)
    photos.window = 4
    faces = AlignedImages(photos, Corner(), 16, "corner")
    assert len(faces) == 6 and faces.read(0).shape == (16, 16, 3)
    np.testing.assert_array_equal(faces.labels, photos.labels)
    assert [faces.path(index) for index in range(6)] == [photos.path(index) for index in range(6)]
    assert faces.window == 4
    assert faces.class_names == photos.class_names and faces.quality is not None
    with pytest.raises(ValueError, match=rf"{photos.name(1)}: no face found"):
        faces.read(1)
    assert faces.alignment == "corner" and photos.alignment == ""
