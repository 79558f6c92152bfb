"""IJB-B and IJB-C: 1:1 verification of templates, and open-set 1:N over both galleries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from margrave.data import ReadableImages, open_source
from margrave.evaluation import Result
from margrave.faces import open_landmarked_images, read_landmarks
from margrave.inference import Features
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol, required_source
from margrave.protocols.ijb_files import (
    IjbFiles,
    find_ijb_files,
    read_template_images,
    read_template_pairs,
    read_template_subjects,
)
from margrave.protocols.pooled_templates import identify_open_set, pool, verify_templates


@PROTOCOLS.register("ijb")
class Ijb(Protocol):
    """IJB-B and IJB-C: 1:1 verification of templates, and open-set 1:N over both galleries.

    Features are looked up by the image names in the official files (``1.jpg``).

    Source: Whitelam et al. (2017), Maze et al. (2018); InsightFace's eval_ijbc.py.
    """

    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: Path
    """The folder IJBB or IJBC, or its subfolder meta with the lists."""
    norm: bool = True
    """Keep the embeddings' norms (N1), or normalize the embeddings (N0)."""
    detector: bool = False
    """Weight each image by its detector score (D1)."""
    flip: bool | None = None
    """Fuse flipped images (F2) or not (F1); by default F2 if the features contain them."""

    def open_images(self, source: str | None, image_size: int) -> ReadableImages:
        """Open the images; align them by the official landmarks if ``files`` contains them."""
        landmarks = find_ijb_files(self.files).landmarks
        if landmarks is None:
            return open_source(required_source(source))
        return open_landmarked_images(required_source(source), landmarks, image_size)

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Return a result for 1:1 and one for 1:N, each only if ``files`` contains its lists."""
        files = find_ijb_files(self.files)
        images = read_template_images(files.images)
        pooled = pool(
            features,
            images.names,
            images.templates,
            images.media,
            files.images,
            norm=self.norm,
            flip=self.flip,
            detector_scores=self._detector_scores(files, images.names) if self.detector else None,
        )
        results = []
        if files.pairs is not None:
            pairs = read_template_pairs(files.pairs)
            results.append(
                verify_templates(pooled, pairs, subjects=None, resamples=options.resamples)
            )
        if files.gallery_1 is not None and files.gallery_2 is not None and files.probe is not None:
            galleries = [read_template_subjects(files.gallery_1)]
            galleries.append(read_template_subjects(files.gallery_2))
            probe = read_template_subjects(files.probe)
            results.append(identify_open_set(pooled, galleries, probe, options))
        if not results:
            raise ValueError(
                f"{self.files} contains neither pairs of templates nor the 1:N lists; give the "
                "folder IJBB or IJBC that InsightFace distributes"
            )
        return results

    def _detector_scores(self, files: IjbFiles, names: Sequence[str]) -> np.ndarray:
        """(N,) detector scores of the named images."""
        if files.landmarks is None:
            raise ValueError(
                f"{self.files} has no file *_name_5pts_score.txt with the detector's scores; add "
                "it, or leave out --detector"
            )
        landmarks = read_landmarks(files.landmarks)
        score_of = dict(zip(landmarks.names, landmarks.scores.tolist(), strict=True))
        if missing := [name for name in names if name not in score_of]:
            raise ValueError(
                f"{files.landmarks} has no line for {missing[0]}; add it, or leave out --detector"
            )
        return np.array([score_of[name] for name in names])
