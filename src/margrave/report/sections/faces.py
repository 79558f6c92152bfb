"""Thumbnails: the pairs with the worst scores, and the classes with extreme margins."""

from __future__ import annotations

import cv2
import numpy as np

from margrave.data import FaceImages, PairList, ReadableImages
from margrave.evaluation import Result
from margrave.protocols import digest_of_pairs
from margrave.report.contents import Block, Face, Faces, Section, Text
from margrave.training import (
    AdaptationRecord,
    digest_of_examples,
    extreme_classes,
    images_of_class,
)

THUMBNAIL_SIDE = 96
"""Longer side of a thumbnail, in pixels."""
NUM_HARDEST = 8
"""Largest number of impostor pairs, and of genuine pairs, that are shown."""


def hardest_section(result: Result, images: ReadableImages, pairs: PairList) -> Section:
    """The impostor pairs with the highest scores and the genuine pairs with the lowest.

    Args:
        result: the result of evaluating the pairs.
        images: the images that the pairs name.
        pairs: the pairs, in the result's order.
    """
    title = "Hardest pairs"
    scores = result.scores
    if scores is None:
        return Section(title)
    is_measured = digest_of_pairs(images.name, pairs.first, pairs.second) == scores.images_digest
    if not is_measured or len(scores.same) != len(pairs.same):
        text = (
            "Not shown: the images are not those that the result was measured on, or some of "
            "them could not be read when it was measured."
        )
        return Section(title, [Text(text, "note")])
    is_genuine = np.array(scores.same, bool)
    # The distances are squared distances of unit embeddings.
    cosine = 1 - np.array(scores.distances) / 2
    accuracies = [
        figure for figure in result.figures if (figure.metric, figure.stratum) == ("accuracy", "")
    ]
    threshold = accuracies[0].threshold if accuracies else None
    blocks: list[Block] = []
    for caption, order, is_listed in (
        ("Impostor pairs with the highest scores", np.argsort(-cosine), ~is_genuine),
        ("Genuine pairs with the lowest scores", np.argsort(cosine), is_genuine),
    ):
        groups = []
        for pair in [int(pair) for pair in order if is_listed[pair]][:NUM_HARDEST]:
            accepted = threshold is not None and cosine[pair] > threshold
            decision = "" if threshold is None else ", accepted" if accepted else ", rejected"
            sides = (("first", pairs.first), ("second", pairs.second))
            faces = [
                _read_thumbnail(images, int(side[pair]), f"{label} image") for label, side in sides
            ]
            if None not in faces:
                shown = [face for face in faces if face is not None]
                groups.append((shown, f"{cosine[pair]:.3f}{decision}"))
        if groups:
            blocks.append(Faces(f"{caption}, with the cosine and the decision.", groups))
    if not blocks:
        blocks.append(Text("Not shown: the images can no longer be read.", "note"))
    return Section(title, blocks)


def classes_section(record: AdaptationRecord, images: FaceImages) -> Section:
    """Training images of the classes with the largest and the smallest margin weight."""
    title = "Classes with extreme margins"
    largest, smallest = extreme_classes(record)
    if not largest:
        return Section(title)
    if record.examples != digest_of_examples(record, images):
        text = "Not shown: the images are not those that the run was trained on."
        return Section(title, [Text(text, "note")])
    blocks: list[Block] = []
    for extreme, rows in (("largest", largest), ("smallest", smallest)):
        groups = []
        for row in rows:
            indices = images_of_class(record, row, images)
            thumbnails = [
                _read_thumbnail(images, index, "an image of the class") for index in indices
            ]
            faces = [face for face in thumbnails if face is not None]
            weight, count = record.classes["margin_weight"][row], record.classes["images"][row]
            if faces:
                groups.append((faces, f"ψ {weight:.3f}, {count:.0f} images"))
        if groups:
            blocks.append(Faces(f"Classes with the {extreme} margin weights ψ.", groups))
    return Section(title, blocks)


def _read_thumbnail(images: ReadableImages, index: int, label: str) -> Face | None:
    """Read an image as a thumbnail; None if it cannot be read."""
    try:
        image = images.read(index)
    except (OSError, ValueError):
        return None
    height, width = image.shape[:2]
    scale = THUMBNAIL_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Face(cv2.resize(image, size, interpolation=cv2.INTER_AREA), label)
