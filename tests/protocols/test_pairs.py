"""Pairs of images: from a model, and from features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from margrave import backbones
from margrave.data import balanced_pairs
from margrave.evaluation import Figure, Result
from margrave.inference import Embedder, embed_features
from margrave.models import ModelCard
from margrave.protocols import Pairs, evaluate, evaluate_embedder, points_of_result
from margrave.synthetic import SyntheticFaces

BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "embedding_size": 8,
    "image_size": 32,
}


@pytest.fixture
def embedder() -> Embedder:
    torch.manual_seed(0)
    card = ModelCard(backbone=BACKBONE, image_size=32)
    return Embedder(backbones.create(BACKBONE).eval(), card, batch_size=5)


def test_strata_by_ground_truth_quality(embedder: Embedder) -> None:
    faces = SyntheticFaces(num_identities=20, images_per_identity=4, image_size=40)
    pairs = balanced_pairs(faces.labels, 100)
    result = evaluate_embedder(embedder, faces, pairs, "faces", resamples=50)
    strata = [figure for figure in result.figures if figure.stratum and not figure.at]
    assert sum(figure.details["pairs"] or 0 for figure in strata) == result.counts["pairs"] == 100
    assert result.scores and result.scores.identities and result.figure("accuracy").interval


def test_a_model_and_its_features_have_the_same_figures(embedder: Embedder) -> None:
    faces = SyntheticFaces(num_identities=20, images_per_identity=4, image_size=40)
    features = embed_features(embedder, faces)
    drawn = balanced_pairs(faces.labels, 100, 0)
    (result,) = evaluate(Pairs(number=100), features)
    assert result.figures == evaluate_embedder(embedder, faces, drawn).figures
    assert result.protocol == "pairs" and result.settings["number"] == 100


class Torn(SyntheticFaces):
    """Faces some of which cannot be read."""

    def read(self, index: int) -> np.ndarray:
        if index in (1, 2):
            raise ValueError(f"{self.name(index)} is torn")
        return super().read(index)


def test_unreadable_images_are_named_and_their_pairs_left_out(embedder: Embedder) -> None:
    faces = Torn(num_identities=20, images_per_identity=4, image_size=40)
    pairs = balanced_pairs(faces.labels, 100)
    touched = np.isin(pairs.first, (1, 2)) | np.isin(pairs.second, (1, 2))
    result = evaluate_embedder(embedder, faces, pairs, resamples=0, maximum_unreadable=2)
    assert result.counts["pairs"] == 100 - touched.sum() < 100
    assert set(result.unreadable) == {faces.name(1), faces.name(2)}
    with pytest.raises(ValueError, match=r"more than maximum_unreadable = 0(.|\n)*is torn"):
        evaluate_embedder(embedder, faces, pairs, resamples=0)


def test_results_of_too_few_pairs_have_no_operating_points() -> None:
    rate = Figure(metric="TAR", value=1.0, at={"FAR": 0.1}, threshold=0.3, too_few=True)
    with pytest.raises(ValueError, match="few has too few impostor pairs"):
        points_of_result(Result(protocol="pairs", name="few", figures=(rate,)))
