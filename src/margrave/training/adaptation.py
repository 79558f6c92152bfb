"""What a loss adapts, measured once per epoch on the last batch: margins and hard negatives."""

from __future__ import annotations

import hashlib
import json
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
"""Number of samples whose norm and margin are kept."""
MAX_NEGATIVES = 4096
"""Number of classes whose negatives are measured, so that the cost does not grow with classes."""
MAX_CLASSES = 512
"""Number of classes whose statistics are kept."""
EXTREME_CLASSES = 4
"""Number of classes with the largest, and with the smallest margin weight, that reports show."""
IMAGES_OF_CLASS = 4


@torch.no_grad()
def measure_adaptation(head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the head's loss does to a batch; every rank must call it, before the weights change.

    Nothing here waits for the device. The statistics are read, not updated.

    Args:
        head: the head, after its training call with the same batch.
        embeddings: (B, D), unnormalized.
        labels: (B,) class indices.

    Returns:
        margin: (B,) what the loss takes off the target cosine, cosθ_y − T.
        feature_norm: (B,) ‖x‖.
        target_cosine: (B,) cosθ_y.
        hard_share: () the share of hard negatives among this rank's first 4096 classes.
        hard_change: () mean of N_j − cosθ_j over the hard negatives; 0 without any.
    """
    training = head.training
    head.eval()
    try:
        batch = head.prepare(embeddings, labels)
    finally:
        head.train(training)
    loss, context = head.loss, batch.context
    count = head.centers_per_class
    weight = head.centers[: MAX_NEGATIVES * count]
    if head.bias is None:
        cosines, _ = nearest_centers(batch.unit @ unit_and_norm(weight)[0].T, count)
    else:
        cosines = batch.unit @ weight.T * batch.norm[:, None] + head.bias[:MAX_NEGATIVES]
    numbers = torch.arange(cosines.shape[1], device=cosines.device) + head.classes.start
    negative = batch.labels[:, None] != numbers
    hard = loss.hard_negatives(cosines, batch.target, context) & negative
    change = (loss.negatives(cosines, batch.target, context) - cosines) * hard
    count = hard.sum()
    return {
        "margin": batch.target - loss.modify_target(batch.target, context),
        "feature_norm": batch.norm,
        "target_cosine": batch.target,
        "hard_share": count / negative.sum().clamp_min(1),
        "hard_change": change.sum() / count.clamp_min(1),
    }


def adaptation_record(
    measured: Mapping[str, Tensor], head: Head, class_sizes: np.ndarray
) -> dict[str, Any]:
    """One epoch's line of the metrics file, from `measure_adaptation`'s tensors.

    Args:
        measured: the tensors.
        head: the head, after `Head.end_epoch`.
        class_sizes: (C,) number of training images of each class.
    """
    values = {name: tensor.cpu().double().numpy() for name, tensor in measured.items()}
    record: dict[str, Any] = {"quantiles": QUANTILES}
    # A loss of inner products has neither cosines nor a margin on them.
    names = ("feature_norm", "target_cosine", "margin")[: 3 if head.loss.normalized else 1]
    for name in names:
        finite = values[name][np.isfinite(values[name])]
        if len(finite):
            record[name] = _short(np.quantile(finite, QUANTILES))
    for name in ("hard_share", "hard_change"):
        record[name] = float(f"{values[name]:.5g}")
    record["samples"] = {name: _short(values[name][:MAX_SAMPLES]) for name in names}
    classes = head.class_values()
    if classes:
        count = len(head.classes)
        rows = np.linspace(0, count - 1, min(count, MAX_CLASSES)).astype(int)
        numbers = rows + head.classes.start
        record["classes"] = {
            "class": numbers.tolist(),
            "images": class_sizes[numbers].tolist(),
            **{name: _short(v.cpu().double().numpy()[rows]) for name, v in classes.items()},
        }
    return record


def _short(values: np.ndarray) -> list[float | None]:
    """Numbers with five digits; None for those that are not finite, which JSON does not have."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


Number = Annotated[FiniteFloat, Field(ge=-1e12, le=1e12)] | None
Quantiles = Annotated[list[Annotated[FiniteFloat, Field(ge=-1e12, le=1e12)]],
                      Field(min_length=5, max_length=5)]  # fmt: skip
Columns = dict[str, Annotated[list[Number], Field(max_length=4096)]]


class AdaptationRecord(BaseModel):
    """One epoch's line of the metrics file, as it is read back; see `adaptation_record`."""

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
            raise ValueError("classes without their numbers and sizes")
        return self


def read_adaptation(line: Mapping[str, Any]) -> AdaptationRecord | None:
    """A line of kind ``adaptation``, or None if it is damaged."""
    try:
        return AdaptationRecord.model_validate(dict(line))
    except ValidationError:
        return None


def extreme_classes(record: AdaptationRecord) -> tuple[list[int], list[int]]:
    """Rows of a record's classes: those with the largest and those with the smallest margin weight.

    Both are empty if the loss gives every class the same weight, or none.
    """
    weights = np.array(record.classes.get("margin_weight", []), float)
    order = [int(row) for row in np.argsort(weights) if np.isfinite(weights[row])]
    if not order or np.ptp(weights[order]) < 1e-6:
        return [], []
    return order[::-1][:EXTREME_CLASSES], order[:EXTREME_CLASSES]


def images_of_class(record: AdaptationRecord, row: int, images: FaceImages) -> list[int]:
    """The first training images of the class in a record's row."""
    own = np.flatnonzero(images.labels == record.classes["class"][row])
    return own[:IMAGES_OF_CLASS].tolist()


def digest_of_examples(record: AdaptationRecord, images: FaceImages) -> str:
    """A digest of the names of the images that show the extreme classes.

    A report shows these images only if the digest is that of the training, so that a run's
    configuration cannot bring other pictures into it.
    """
    rows = [row for rows in extreme_classes(record) for row in rows]
    names = [images.path(i) for row in rows for i in images_of_class(record, row, images)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest() if names else ""
