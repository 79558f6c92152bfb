"""Training images by import path, drawn once however often they are asked for."""

from __future__ import annotations

from functools import cache

import numpy as np

from margrave.synthetic import SyntheticFaces


@cache
def drawn(num_identities: int, first_identity: int) -> tuple[np.ndarray, ...]:
    """The pictures themselves."""
    faces = Faces(num_identities=num_identities, first_identity=first_identity)
    return tuple(SyntheticFaces.read(faces, index) for index in range(len(faces)))


class Faces(SyntheticFaces):
    """Small ones."""

    def __init__(self, *, num_identities: int = 30, first_identity: int = 0) -> None:
        self.place = num_identities, first_identity
        super().__init__(
            num_identities=num_identities,
            first_identity=first_identity,
            images_per_identity=10,
            image_size=32,
            degraded=0,
        )

    def read(self, index: int) -> np.ndarray:
        return drawn(*self.place)[index]


class Reversed(Faces):
    """Red and blue exchanged."""

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(super().read(index)[..., ::-1])
