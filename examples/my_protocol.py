"""A protocol of your own: ``margrave evaluate my_protocol:LeaveOneOut features/``."""

from collections.abc import Sequence

import numpy as np

from margrave.evaluation import Figure, Result, unit_rows
from margrave.inference import Features
from margrave.protocols import EvaluationOptions, Protocol


class LeaveOneOut(Protocol):
    """Rank 1 without a gallery: is an image's nearest other image of the same identity?"""

    minimum_images: int = 2
    """Leave out identities with fewer images."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """One result."""
        labels = features.labels
        kept = np.bincount(labels)[labels] >= self.minimum_images
        rows, labels = unit_rows(features.rows[0 : len(features)])[kept], labels[kept]
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -1)
        hits = labels[cosines.argmax(1)] == labels
        figure = Figure(metric="rank-1 rate", value=float(hits.mean()))
        return [Result(protocol="", figures=(figure,), counts={"images": len(rows)})]
