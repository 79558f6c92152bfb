"""Creates the card of a new gallery from the card of a model."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from margrave.gallery import GalleryCard
from margrave.inference import Embedder
from margrave.models import Model, ModelCard


def uses_flips(card: ModelCard) -> bool:
    """Whether the model's thresholds were measured with flip fusion.

    If the model has no thresholds, its reference scores decide. If it has neither, the result is
    True.

    Raises:
        ValueError: some thresholds were measured with flip fusion and others without.
    """
    points = card.operating_points
    if not points:
        return card.reference is None or card.reference.flips
    if len({point.flips for point in points}) > 1:
        raise ValueError(
            f"{card.source or 'the model'} has some thresholds measured with flipped images and "
            "others without; measure all of them again: margrave threshold MODEL IMAGES"
        )
    return points[0].flips


def new_gallery_card(model: Model, keep_images: bool = False) -> GalleryCard:
    """Create the card of a new gallery for a model's embeddings."""
    card = model.card
    fields = ("image_size", "mean", "std", "color_order", "fit", "alignment")
    preparation = {name: getattr(card, name) for name in fields} | {"flips": uses_flips(card)}
    # `json` turns tuples into lists, so the card equals the one read from the new gallery.
    return GalleryCard(
        weights=model.digest,
        model=card.source or model.path.name,
        preparation=json.loads(json.dumps(preparation)),
        dimension=dimension_of(model),
        keep_images=keep_images,
        thresholds=tuple(json.loads(json.dumps(asdict(point))) for point in card.operating_points),
    )


def dimension_of(model: Model) -> int:
    """D, the number of components of an embedding, determined by one forward pass."""
    blank = np.zeros((model.card.image_size, model.card.image_size, 3), np.uint8)
    embeddings, _ = Embedder(model.backbone, model.card, model.card.fit).embed_images(
        [blank], flips=False
    )
    return embeddings.shape[1]
