"""Converts a gallery to another model: embeds the gallery's kept crops again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from margrave.data import decode_image
from margrave.gallery import PersonRecord, create_gallery, fuse_embeddings, open_gallery
from margrave.inference import Embedder
from margrave.matching.gallery_card import new_gallery_card, uses_flips
from margrave.models import open_model
from margrave.progress import Progress


def re_embed(
    gallery: str | Path,
    target: str | Path,
    model: str | Path,
    *,
    key: str | None = None,
    device: str | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> tuple[int, list[str]]:
    """Create a new gallery by embedding a gallery's kept crops with another model.

    Args:
        gallery: the source gallery, which is not changed.
        target: the new gallery, which must not exist.
        model: the model for the new gallery.
        key: the key of both galleries; None if they are not encrypted.
        device: the network's device; None uses a CUDA device if there is one.
        trust_code: import the custom network code that the model names.
        progress: called with (people done, total).

    Returns:
        The number of people in the new gallery, and the names of the people who were left out
        because the source gallery has no crops of them.

    Raises:
        ValueError: the gallery keeps no crops, the model needs crops with another alignment, or
            the target exists.
    """
    new_model = open_model(model, device=device, trust_code=trust_code)
    embedder = Embedder(new_model.backbone, new_model.card, new_model.card.fit)
    flips = uses_flips(new_model.card)
    converted_count, left_out = 0, []
    with open_gallery(str(gallery), key=key) as source:
        if not source.card.keep_images:
            raise ValueError(
                f"{gallery} keeps no crops to embed again; enroll all people again in a new "
                "gallery, created with --keep-images, or keep_images=True in Python"
            )
        # Crops are aligned to ArcFace's template if the card states no alignment.
        crop_alignment = source.card.preparation.get("alignment", "arcface")
        if crop_alignment != new_model.card.alignment:
            raise ValueError(
                f"{gallery} keeps crops with {crop_alignment!r} alignment, but {model} needs "
                f"{new_model.card.alignment!r} alignment; enroll all people again from their photos"
            )
        people = list(source.people())
        card = new_gallery_card(new_model, keep_images=True)
        card = replace(card, fusion=source.card.fusion, half=source.card.half)
        with create_gallery(str(target), card, key=key) as new_gallery:
            for people_done, person in enumerate(people, 1):
                crops = source.crops(person.name)
                if crops:
                    images = [decode_image(crop, f"a crop of {person.name}") for crop in crops]
                    plain, flipped = embedder.embed_images(images, flips=flips)
                    embeddings = np.asarray(plain + flipped if flips else plain)
                    vector = fuse_embeddings(embeddings, new_gallery.card)
                    updated_person = replace(person, images=len(crops))
                    new_gallery.restore(
                        [PersonRecord(person=updated_person, vector=vector, crops=crops)]
                    )
                    converted_count += 1
                else:
                    left_out.append(person.name)
                if progress is not None:
                    progress(people_done, len(people))
    return converted_count, left_out
