"""Parts of one source's identities."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.data.identity_part import PARTS, IdentityPart

FACES = {"kind": "synthetic", "num_identities": 20, "images_per_identity": 3, "image_size": 32}


def test_parts_are_disjoint_and_complete() -> None:
    parts = [IdentityPart(images=FACES, part=part) for part in PARTS]
    names = [set(part.class_names) for part in parts]
    assert [len(each) for each in names] == [14, 2, 4]
    assert len(set().union(*names)) == 20
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(60))


def test_another_seed_is_another_split() -> None:
    first, second = (
        IdentityPart(images=FACES, part="test", seed=seed).class_names for seed in (0, 1)
    )
    assert first != second


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leave a part empty \(of 20 identities\)"):
        IdentityPart(images=FACES, part="test", shares=(0.99, 0.0, 0.01))
