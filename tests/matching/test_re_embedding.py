"""A gallery's kept crops under another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave import backbones
from margrave.gallery import Person, PersonRecord, create_gallery, open_gallery
from margrave.matching import Matcher, re_embed
from margrave.matching.gallery_card import new_gallery_card
from margrave.models import ModelCard, open_model, save_model

BACKBONE = {
    "kind": "mobilefacenet",
    "block_counts": [1, 1, 1, 1],
    "width_multiplier": 1,
    "embedding_size": 16,
    "image_size": 32,
}


def model(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    state = backbones.create(BACKBONE).state_dict()
    save_model(path, state, ModelCard(backbone=BACKBONE, image_size=32))
    return path


@pytest.fixture
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2)]


def test_crops_are_embedded_again(tmp_path: Path, images: list[np.ndarray]) -> None:
    former, latter = model(tmp_path / "a.safetensors", 0), model(tmp_path / "b.safetensors", 1)
    card = new_gallery_card(open_model(former), keep_images=True)
    old, new = str(tmp_path / "old.gallery"), str(tmp_path / "new.gallery")
    with create_gallery(old, replace(card, fusion="mean", half=True)) as gallery:
        matcher = Matcher.load(former, gallery, aligned=True, check_alignment=False)
        matcher.enroll("Ann", images, allow_similar=True)
        # Two more images of which no crops were kept are in Bo's and Cy's vectors.
        kept = gallery.crops("Ann")
        vector = np.ones(16, np.float32)
        for name, crops in (("Bo", kept[:1]), ("Cy", ())):
            person = Person(name=name, images=2, enrolled="2026-01-01T00:00:00Z")
            gallery.restore([PersonRecord(person=person, vector=vector, crops=crops)])
    assert re_embed(old, new, latter) == (2, ["Cy"])
    with open_gallery(new) as gallery:
        assert (gallery.card.fusion, gallery.card.half) == ("mean", True)
        assert gallery.card.weights == open_model(latter).digest and gallery.card.keep_images
        assert {person.name: person.images for person in gallery.people()} == {"Ann": 2, "Bo": 1}
        matcher = Matcher.load(latter, gallery, aligned=True, check_alignment=False)
        found = gallery.search(matcher.faces(images[0])[0].embedding[None], 2)[0]
        assert found[0].name == "Bo" and found[0].similarity > 0.999


def test_a_gallery_without_crops_is_refused(tmp_path: Path) -> None:
    former = model(tmp_path / "a.safetensors", 0)
    old = str(tmp_path / "old.gallery")
    create_gallery(old, new_gallery_card(open_model(former))).close()
    with pytest.raises(ValueError, match="keeps no crops to embed again"):
        re_embed(old, str(tmp_path / "new.gallery"), former)
