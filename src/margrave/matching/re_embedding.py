"""Converts a gallery to another model, by embedding its kept crops again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from margrave.data import decode_image
from margrave.gallery import PersonRecord, create_gallery, fuse_embeddings, open_gallery
from margrave.inference import Embedder
from margrave.matching.gallery_card import card_of_gallery, uses_flips
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
    """Embed the kept crops of a gallery with another model, into a new gallery.

    Args:
        gallery: the source gallery, which is not changed.
        target: the new gallery, which must not exist.
        model: the model for the new gallery.
        key: the key of both galleries, if they are encrypted.
        device: the network's device; None uses a CUDA device if there is one.
        trust_code: import the custom network code that the model names.
        progress: called with (people done, people).

    Returns:
        the number of people in the new gallery, and the names of people without crops, who are left
        out.

    Raises:
        ValueError: the gallery keeps no crops, its crops have another alignment than the model's,
            or the target exists.
    """
    opened = open_model(model, device=device, trust_code=trust_code)
    embedder = Embedder(opened.backbone, opened.card, opened.card.fit)
    flips = uses_flips(opened.card)
    done, missing = 0, []
    with open_gallery(str(gallery), key=key) as source:
        if not source.card.keep_images:
            raise ValueError(
                f"{gallery} keeps no crops to embed again; enroll all people again (margrave "
                "enroll --keep-images keeps crops)"
            )
        # A card that states no alignment means ArcFace's template.
        kept_alignment = source.card.preparation.get("alignment", "arcface")
        if kept_alignment != opened.card.alignment:
            raise ValueError(
                f"{gallery} keeps crops aligned for {kept_alignment!r}, but {model} needs "
                f"{opened.card.alignment!r}; enroll all people again from their photos"
            )
        people = list(source.people())
        card = card_of_gallery(opened, keep_images=True)
        card = replace(card, fusion=source.card.fusion, half=source.card.half)
        with create_gallery(str(target), card, key=key) as new_gallery:
            for number, person in enumerate(people, 1):
                crops = source.crops(person.name)
                if crops:
                    images = [decode_image(crop, f"a crop of {person.name}") for crop in crops]
                    plain, flipped = embedder.embed_images(images, flips=flips)
                    embeddings = np.asarray(plain + flipped if flips else plain)
                    total = fuse_embeddings(embeddings, new_gallery.card)
                    kept = replace(person, images=len(crops))
                    new_gallery.restore([PersonRecord(person=kept, vector=total, crops=crops)])
                    done += 1
                else:
                    missing.append(person.name)
                if progress is not None:
                    progress(number, len(people))
    return done, missing
