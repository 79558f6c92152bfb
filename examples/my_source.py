"""A data source of your own: ``data.train: {kind: my_source:NpzImages, file: faces.npz}``."""

from pathlib import Path

import numpy as np

from margrave.data import FaceImages


class NpzImages(FaceImages):
    """Images and names in one NumPy file: ``images`` (N, H, W, 3) uint8 RGB, ``names`` (N,).

    Inside ``margrave.data``, ``@SOURCES.register("npz", detect=…)`` gives it a name of its own.
    """

    def __init__(self, file: str | Path, minimum_images: int = 1) -> None:
        with np.load(file, allow_pickle=False) as content:
            images, names = content["images"], content["names"]
        identities, labels, counts = np.unique(names, return_inverse=True, return_counts=True)
        few = counts < minimum_images
        kept = ~few[labels]
        self.left_out = {str(identities[n]): int(counts[n]) for n in few.nonzero()[0]}
        self.class_names = [str(name) for name in identities[~few]]
        self.labels = (np.cumsum(~few) - 1)[labels[kept]]
        self._images, self._rows, self._file = images[kept], kept.nonzero()[0], file

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self._file}, image {self._rows[index]}"

    def read(self, index: int) -> np.ndarray:
        return self._images[index]
