from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margrave.data import Augmentation

SIDE = 112
OFF = {"flip": 0.0}


def _photo(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def _many(augmentation: Augmentation, image: np.ndarray, times: int = 400) -> np.ndarray:
    generator = np.random.default_rng(1)
    return np.stack([augmentation(image, generator) for _ in range(times)])


EVERYTHING = Augmentation(
    motion=0.5, flip=0.5, crop=0.5, low_resolution=0.5, photometric=0.5, gray=0.5
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_shape_type_input_and_repetition(height: int, width: int, seed: int) -> None:
    image = _photo(height, width)
    before = image.copy()
    first = EVERYTHING(image, np.random.default_rng(seed))
    assert first.shape == image.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, EVERYTHING(image, np.random.default_rng(seed)))


def test_only_the_flip_is_on_by_default() -> None:
    image = _photo()
    images = _many(Augmentation(), image)
    plain = (images == image).all((1, 2, 3))
    mirrored = (images == image[:, ::-1]).all((1, 2, 3))
    assert (plain | mirrored).all()
    assert 0.4 < plain.mean() < 0.6


def test_adaface_changes_each_with_probability_one_fifth() -> None:
    preset = Augmentation.adaface(flip=0.0, crop_area=(0.5, 0.5))
    assert (preset.crop, preset.low_resolution, preset.photometric) == (0.2, 0.2, 0.2)
    images = _many(preset, _photo(), 1000)
    untouched = (images == _photo()).all((1, 2, 3)).mean()
    assert untouched == pytest.approx(0.8**3, abs=0.05)
    cropped = ((images == 0).all(3).mean((1, 2)) > 0.4).mean()
    assert cropped == pytest.approx(0.2, abs=0.04)


def test_crop_keeps_a_rectangle_in_place() -> None:
    image = np.maximum(_photo(), 1)
    images = _many(Augmentation(**OFF, crop=1.0), image)
    areas, ratios, tops = [], [], []
    for changed in images:
        kept = (changed > 0).all(2)
        rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
        assert kept.sum() == len(rows) * len(columns)
        np.testing.assert_array_equal(changed[kept], image[kept])
        areas.append(kept.mean())
        ratios.append(len(columns) / len(rows))
        tops.append(rows[0] / max(1, SIDE - len(rows)))
    expected_areas, expected_ratios = _reference_rectangles()
    assert min(areas) > 0.19 and max(areas) <= 1
    assert min(ratios) > 0.73 and max(ratios) < 1.37
    assert np.mean(areas) == pytest.approx(np.mean(expected_areas), abs=0.04)
    assert np.std(areas) == pytest.approx(np.std(expected_areas), rel=0.15)
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.04)
    assert np.std(np.log(ratios)) == pytest.approx(np.std(np.log(expected_ratios)), rel=0.15)
    assert np.mean(tops) == pytest.approx(0.5, abs=0.06)


def _reference_rectangles() -> tuple[np.ndarray, np.ndarray]:
    """AdaFace's distribution: uniform area, log-uniform ratio, given that it fits."""
    generator = np.random.default_rng(2)
    area = generator.uniform(0.2, 1, 100_000)
    ratio = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), 100_000))
    fits = np.maximum(area * ratio, area / ratio) <= 1
    return area[fits], ratio[fits]


def test_low_resolution_loses_detail_and_keeps_brightness() -> None:
    image = _photo()
    lost = []
    for side in (1.0, 0.7, 0.4, 0.2):
        fixed = Augmentation(**OFF, low_resolution=1.0, low_resolution_side=(side, side))
        images = _many(fixed, image, 100)
        assert abs(images.mean() - image.mean()) < 2
        lost.append(abs(images - image.astype(float)).mean())
    assert lost[0] == 0 and lost == sorted(lost)


def test_low_resolution_draws_both_interpolations() -> None:
    fixed = Augmentation(**OFF, low_resolution=1.0, low_resolution_side=(0.45, 0.45))
    distinct = {changed.tobytes() for changed in _many(fixed, _photo())}
    # Five ways down times five ways up, of which averaging and bilinear may coincide.
    assert 16 <= len(distinct) <= 25


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_light_factors_are_uniform(which: str) -> None:
    # Mild contrast about mid-gray, so that nothing clips and factors can be measured.
    generator = np.random.default_rng(3)
    image = generator.integers(70, 130, (32, 32, 3)).astype(np.uint8)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, which: 0.5}
    images = _many(Augmentation(**OFF, photometric=1.0, **off), image).astype(float)
    if which == "brightness":
        factors = images.mean((1, 2, 3)) / image.mean()
    elif which == "contrast":
        factors = images.std((1, 2, 3)) / image.std()
    else:
        factors = (images - images.mean(3, keepdims=True)).std((1, 2, 3))
        factors /= (image - image.mean(2, keepdims=True)).std()
    assert factors.min() == pytest.approx(0.5, abs=0.03)
    assert factors.max() == pytest.approx(1.5, abs=0.03)
    assert factors.mean() == pytest.approx(1, abs=0.05)
    assert factors.std() == pytest.approx(1 / math.sqrt(12), rel=0.1)


def test_contrast_keeps_the_mean_and_saturation_the_gray() -> None:
    image = np.random.default_rng(3).integers(70, 130, (32, 32, 3)).astype(np.uint8)
    contrast = Augmentation(**OFF, photometric=1.0, brightness=0, saturation=0)
    assert np.ptp(_many(contrast, image).mean((1, 2, 3))) < 2
    saturation = Augmentation(**OFF, photometric=1.0, brightness=0, contrast=0)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int)
    for changed in _many(saturation, image, 50):
        assert abs(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY).astype(int) - gray).max() <= 2


def test_grey_has_equal_channels() -> None:
    changed = Augmentation(**OFF, gray=1.0)(_photo(), np.random.default_rng(0))
    assert (changed == changed[..., :1]).all()
    assert changed.std() > 5


def test_motion_stays_within_its_ranges_and_leaves_no_border() -> None:
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    cv2.circle(image, (70, 56), 3, (0, 0, 0), -1)
    images = _many(Augmentation(**OFF, motion=1.0), image)
    assert (images[:, 0] == 200).all() and (images[:, -1] == 200).all()
    places = []
    for changed in images:
        dark = 200 - changed[..., 0].astype(float)
        places.append([(dark * axis).sum() / dark.sum() for axis in np.indices((SIDE, SIDE))[::-1]])
    offsets = np.array(places) - (70, 56)
    # 5 % of 112 pixels each way, plus rotation and scale of a point 14 pixels off the center.
    assert abs(offsets).max() < 5.6 + 14.5 * 0.18 + 1.5
    np.testing.assert_allclose(offsets.mean(0), 0, atol=0.6)
    assert offsets.std(0).min() > 2


def test_no_motion_changes_nothing() -> None:
    still = Augmentation(**OFF, motion=1.0, motion_rotation=0, motion_scale=(1, 1), motion_shift=0)
    np.testing.assert_array_equal(still(_photo(), np.random.default_rng(0)), _photo())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip = 1.5 is a probability"),
        ({"crop": -0.1}, "crop = -0.1"),
        ({"flip": float("nan")}, "flip = nan"),
        ({"crop_area": (0.5, 0.2)}, "smaller first"),
        ({"crop_ratio": (0.0, 1.0)}, "positive"),
        ({"crop_area": (0.5, 1.2)}, "at most 1"),
    ],
)
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
