from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margrave.data import FaceImages, ImageSubset, split_identities


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(10, 40))
def test_parts_share_no_identity_and_lose_no_image(seed: int, identities: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(identities), 3)) * 7
    parts = split_identities(labels, (0.6, 0.2, 0.2), seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    identities_of_parts = [set(labels[part]) for part in parts]
    assert sum(map(len, identities_of_parts)) == identities
    for inside, share in zip(identities_of_parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(inside) - share * identities) <= 1
    again = split_identities(labels, (0.6, 0.2, 0.2), seed)
    assert all((one == other).all() for one, other in zip(parts, again, strict=True))


def test_counts_are_kept_and_seeds_differ() -> None:
    labels = np.repeat(np.arange(20), 4)
    parts = split_identities(labels, (12, 5), 0)
    assert [len(np.unique(labels[part])) for part in parts] == [12, 5]
    assert not np.array_equal(parts[0], split_identities(labels, (12, 5), 1)[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((0.5, 0.6), "must sum to 1"),
        ((11, 10), "sum to 21 of 20 identities"),
        ((0.99, 0.01), "empty"),
        ((20, 0), "empty"),
        ((), "of 20"),
    ],
)
def test_mistakes_are_named(parts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_identities(np.arange(20), parts)


class _Images:
    labels = np.array([2, 0, 1, 2, 1])
    class_names = ("anna", "ben", "carl")
    content_digest = "ab12"
    alignment = "arcface"

    def __len__(self) -> int:
        return 5

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        return np.full((2, 2, 3), index, np.uint8)


def test_a_subset_numbers_identities_anew() -> None:
    subset = ImageSubset(_Images(), np.array([0, 2, 3]))
    assert isinstance(subset, FaceImages)
    assert (len(subset), subset.labels.tolist()) == (3, [1, 0, 1])
    assert subset.class_names == ("ben", "carl")
    assert subset.name(1) == "image 2" and subset.read(2)[0, 0, 0] == 3
    assert subset.content_digest == "ab12" and subset.alignment == "arcface"


class _Pieces(_Images):
    """Images in three pieces; remembers what was fetched together."""

    pieces = np.array([0, 2, 4, 5])
    window = 4

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def prefetch(self, indices: list[int]) -> None:
        self.fetched += indices


def test_a_subset_is_fetched_in_pieces() -> None:
    images = _Pieces()
    subset = ImageSubset(images, np.array([0, 1, 4]))
    assert subset.pieces is not None and subset.pieces.tolist() == [0, 2, 3]
    assert subset.window == 2
    subset.prefetch([1, 2])
    assert images.fetched == [1, 4]


def test_images_in_another_order_or_of_few_pieces_are_fetched_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = _Pieces()
    shuffled = ImageSubset(images, np.array([4, 0, 1]))
    monkeypatch.setattr("margrave.data.splits.MIN_SHARE_FOR_PIECES", 0.5)
    for subset in (shuffled, ImageSubset(images, np.array([0, 4]))):
        assert subset.pieces is None
        subset.prefetch([0, 1])
    assert not images.fetched
