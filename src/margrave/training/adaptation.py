"""Measure, on the last batch of each epoch, how the loss adapts margins and hard negatives."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator
from torch import Tensor

from margrave.data import FaceImages
from margrave.heads import Head
from margrave.heads.centers import nearest_centers
from margrave.heads.embeddings import unit_and_norm

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_SAMPLES = 256
"""Maximum number of samples whose norm, target cosine and margin are recorded."""
MAX_NEGATIVES = 4096
"""Maximum number of classes that are measured as negatives, to bound the cost."""
MAX_CLASSES = 512
"""Maximum number of classes whose statistics are recorded."""
EXTREME_CLASSES = 4
"""Number of classes that reports show at each end: largest and smallest margin weights."""
IMAGES_OF_CLASS = 4
"""Number of images that reports show of each extreme class."""


@torch.no_grad()
def measure_adaptation(head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Measure what the head's loss does to a batch.

    Every rank must call this function, before the weights change. The host does not wait for the
    device, and the head's statistics stay unchanged.

    Args:
        head: the head, after its training call with the same batch.
        embeddings: (B, D) this rank's embeddings, unnormalized.
        labels: (B,) their class indices.

    Returns:
        margin: (B,) cosθ_y − T, where T is the modified target cosine.
        feature_norm: (B,) ‖x‖.
        target_cosine: (B,) cosθ_y.
        hard_share: () fraction of hard negatives among the negatives of this rank's first 4096
            classes.
        hard_change: () mean of N_j − cosθ_j over these hard negatives, where N_j is the modified
            negative cosine; 0 if there are none.
    """
    was_training = head.training
    head.eval()
    try:
        batch = head.prepare(embeddings, labels)
    finally:
        head.train(was_training)
    loss, context = head.loss, batch.context
    centers_per_class = head.centers_per_class
    weight = head.centers[: MAX_NEGATIVES * centers_per_class]
    if head.bias is None:
        products = batch.unit @ unit_and_norm(weight)[0].T
        cosines, _ = nearest_centers(products, centers_per_class)
    else:
        # A loss on inner products gets them instead of cosines.
        cosines = batch.unit @ weight.T * batch.norm[:, None] + head.bias[:MAX_NEGATIVES]
    classes = torch.arange(cosines.shape[1], device=cosines.device) + head.classes.start
    is_negative = batch.labels[:, None] != classes
    is_hard = loss.hard_negatives(cosines, batch.target_cosine, context) & is_negative
    change = (loss.negatives(cosines, batch.target_cosine, context) - cosines) * is_hard
    num_hard = is_hard.sum()
    return {
        "margin": batch.target_cosine - loss.modify_target(batch.target_cosine, context),
        "feature_norm": batch.norm,
        "target_cosine": batch.target_cosine,
        "hard_share": num_hard / is_negative.sum().clamp_min(1),
        "hard_change": change.sum() / num_hard.clamp_min(1),
    }


def plain_measurement(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a result of `measure_adaptation` to JSON values; None replaces NaN and infinity."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if math.isfinite(value) else None

    return {name: plain(tensor.tolist()) for name, tensor in measured.items()}


def tensor_measurement(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Undo `plain_measurement`.

    >>> tensor_measurement({"margin": [0.5, None]})
    {'margin': tensor([0.5000,    nan], dtype=torch.float64)}
    """
    return {
        name: torch.from_numpy(np.array(value, dtype=np.float64)) for name, value in values.items()
    }


def adaptation_record(
    measured: Mapping[str, Tensor], head: Head, class_sizes: np.ndarray
) -> dict[str, Any]:
    """Build one epoch's line of the metrics file, as JSON values.

    Args:
        measured: the result of `measure_adaptation`.
        head: the head, after `Head.end_epoch`.
        class_sizes: (C,) number of training images of each class.
    """
    values = {name: tensor.cpu().double().numpy() for name, tensor in measured.items()}
    record: dict[str, Any] = {"quantiles": QUANTILES}
    # A loss on inner products uses no cosines, so it has no target cosine and no margin.
    names = ("feature_norm", "target_cosine", "margin")[: 3 if head.loss.normalized else 1]
    for name in names:
        finite = values[name][np.isfinite(values[name])]
        if len(finite):
            record[name] = _round(np.quantile(finite, QUANTILES))
    for name in ("hard_share", "hard_change"):
        record[name] = float(f"{values[name]:.5g}")
    record["samples"] = {name: _round(values[name][:MAX_SAMPLES]) for name in names}
    class_values = head.class_values()
    if class_values:
        num_classes = len(head.classes)
        rows = np.linspace(0, num_classes - 1, min(num_classes, MAX_CLASSES)).astype(int)
        classes = rows + head.classes.start
        record["classes"] = {
            "class": classes.tolist(),
            "images": class_sizes[classes].tolist(),
            **{name: _round(v.cpu().double().numpy()[rows]) for name, v in class_values.items()},
        }
    return record


def _round(values: np.ndarray) -> list[float | None]:
    """Round to five significant digits; None replaces NaN and infinity, which JSON lacks."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


# The bounds below reject absurd values in a damaged or edited file.
Number = Annotated[FiniteFloat, Field(ge=-1e12, le=1e12)] | None
"""None stands for NaN, infinity or a missing value."""
Quantiles = Annotated[list[Annotated[FiniteFloat, Field(ge=-1e12, le=1e12)]],
                      Field(min_length=len(QUANTILES), max_length=len(QUANTILES))]  # fmt: skip
Columns = dict[str, Annotated[list[Number], Field(max_length=4096)]]
"""Column name -> one value per sample or class."""


class AdaptationRecord(BaseModel):
    """One epoch's line of the metrics file, checked on reading; see `adaptation_record`.

    Attributes:
        examples: the `digest_of_examples` at training time.
    """

    epoch: FiniteFloat
    margin: Quantiles | None = None
    feature_norm: Quantiles | None = None
    target_cosine: Quantiles | None = None
    hard_share: Number = None
    hard_change: Number = None
    samples: Columns = {}
    classes: Columns = {}
    examples: str = ""

    @model_validator(mode="after")
    def _check(self) -> AdaptationRecord:
        for columns in (self.samples, self.classes):
            if len({len(column) for column in columns.values()}) > 1:
                raise ValueError("columns of unequal length")
        if self.classes and not {"class", "images"} <= self.classes.keys():
            raise ValueError("classes need the columns class and images")
        return self


def read_adaptation(line: Mapping[str, Any]) -> AdaptationRecord | None:
    """Validate a metrics line of kind ``adaptation``; return None if it is damaged."""
    try:
        return AdaptationRecord.model_validate(dict(line))
    except ValidationError:
        return None


def extreme_classes(record: AdaptationRecord) -> tuple[list[int], list[int]]:
    """Rows of `record.classes` with the largest margin weights, and rows with the smallest.

    Both lists are empty if all margin weights are equal, or if the record has none.
    """
    weights = np.array(record.classes.get("margin_weight", []), float)
    order = [int(row) for row in np.argsort(weights) if np.isfinite(weights[row])]
    if not order or np.ptp(weights[order]) < 1e-6:
        return [], []
    return order[::-1][:EXTREME_CLASSES], order[:EXTREME_CLASSES]


def images_of_class(record: AdaptationRecord, row: int, images: FaceImages) -> list[int]:
    """Indices of the first training images of the class in this row of `record.classes`."""
    indices = np.flatnonzero(images.labels == record.classes["class"][row])
    return indices[:IMAGES_OF_CLASS].tolist()


def digest_of_examples(record: AdaptationRecord, images: FaceImages) -> str:
    """A digest of the names of the extreme classes' example images; empty if there are none.

    A report shows example images only if their digest equals the digest recorded during training.
    Thus an edited configuration cannot bring other images into the report.
    """
    largest, smallest = extreme_classes(record)
    rows = largest + smallest
    names = [images.path(i) for row in rows for i in images_of_class(record, row, images)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest() if names else ""
