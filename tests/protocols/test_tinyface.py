from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from margrave.protocols.tinyface import read_tinyface

NAMES = (
    "Gallery_Match/10_2.jpg",
    "Gallery_Match/2_1.jpg",
    "Gallery_Match/2_10.jpg",
    "Gallery_Distractor/x.jpg",
    "Gallery_Distractor/100_7.jpg",
    "Probe/2_3.jpg",
    "Probe/10_1.jpg",
)


def save_list(path: Path, key: str, names: list[str], identities: Any) -> None:
    """As the official lists: a column of cells, and one of numbers."""
    cells = np.empty((len(names), 1), object)
    cells[:, 0] = names
    savemat(path, {f"{key}_set": cells, f"{key}_ids": identities})


@pytest.mark.parametrize("place", ["", "Testing_Set", "aligned/aligned_pad_0.1_pad_high"])
def test_images_are_found(tmp_path: Path, touch: Callable[..., None], place: str) -> None:
    touch(*(f"{place}/{name}" if place else name for name in NAMES), "Training_Set/1/1_1.jpg")
    result = read_tinyface(tmp_path)
    prefix = f"{place}/" if place else ""
    assert result.gallery == tuple(
        f"{prefix}Gallery_Match/{name}.jpg" for name in ("2_1", "2_10", "10_2")
    )
    assert result.gallery_labels.tolist() == [2, 2, 10]
    assert result.distractors == tuple(
        f"{prefix}Gallery_Distractor/{name}.jpg" for name in ("100_7", "x")
    )
    assert result.probes == tuple(f"{prefix}Probe/{name}.jpg" for name in ("2_3", "10_1"))
    assert result.probe_labels.tolist() == [2, 10]
    assert result.gallery_labels.dtype == result.probe_labels.dtype == np.int64


def test_lists_restrict(tmp_path: Path, touch: Callable[..., None]) -> None:
    touch(*(f"aligned/{name}" for name in NAMES), "tinyface/Testing_Set/readme.txt")
    lists = tmp_path / "tinyface/Testing_Set"
    gallery = np.array([[10], [2]], np.uint16)
    save_list(
        lists / "gallery_match_img_ID_pairs.mat", "gallery", ["10_2.jpg", "2_10.jpg"], gallery
    )
    save_list(lists / "probe_img_ID_pairs.mat", "probe", ["2_3.jpg"], np.array([[2.0]]))
    result = read_tinyface(tmp_path)
    assert result.gallery == ("aligned/Gallery_Match/2_10.jpg", "aligned/Gallery_Match/10_2.jpg")
    assert result.gallery_labels.tolist() == [2, 10]
    assert result.probes == ("aligned/Probe/2_3.jpg",) and result.probe_labels.tolist() == [2]
    assert len(result.distractors) == 2


@pytest.mark.parametrize(
    ("names", "identities", "message"),
    [
        (["2_3.jpg", "9_9.jpg"], [[2], [9]], r"Probe lacks 1 image that .* lists: 9_9\.jpg"),
        (["2_3.jpg"], [[3]], r"2_3\.jpg has identity 2 according to its name, but 3 according"),
        (["2_3.jpg", "2_3.jpg"], [[2], [3]], r"row 2 gives 2_3\.jpg identity 3, but an earlier"),
        (["2_3.jpg"], [[2], [2]], r"probe_set has 1 entries and probe_ids 2"),
        ([], np.empty((0, 1)), r"probe_set has 0 entries and probe_ids 0"),
        (["2_3.jpg"], [[2.5]], r"row 1 is '2_3\.jpg', 2\.5; expected"),
        (["2_3.jpg"], [[np.nan]], r"row 1 is '2_3\.jpg', nan; expected"),
        (["2_3.jpg"], [[1e300]], r"row 1 is '2_3\.jpg', 1e\+300; expected"),
        (["2_3.jpg"], [[2j]], r"as a MATLAB file \(an array has the unsupported class 6"),
        (["2_3.jpg"], [[]], r"probe_set has 1 entries and probe_ids 0"),
        ([3.0], [[2]], r"row 1 is 3\.0, 2; expected"),
    ],
)
def test_lists_that_disagree_are_refused(
    tmp_path: Path, touch: Callable[..., None], names: list[Any], identities: Any, message: str
) -> None:
    touch(*NAMES)
    save_list(tmp_path / "probe_img_ID_pairs.mat", "probe", names, np.array(identities))
    with pytest.raises(ValueError, match=message):
        read_tinyface(tmp_path)


def test_lists_without_their_keys_are_refused(tmp_path: Path, touch: Callable[..., None]) -> None:
    touch(*NAMES)
    savemat(tmp_path / "probe_img_ID_pairs.mat", {"probe_set": np.eye(2)})
    with pytest.raises(ValueError, match="contains no probe_ids; download it again"):
        read_tinyface(tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_broken_lists_are_read_or_refused(
    tmp_path: Path, touch: Callable[..., None], data: st.DataObject
) -> None:
    touch(*NAMES)
    path = tmp_path / "probe_img_ID_pairs.mat"
    save_list(path, "probe", ["2_3.jpg", "10_1.jpg"], np.array([[2], [10]], np.uint16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_tinyface(tmp_path)
    except ValueError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:5], r"contains Gallery_Match, Gallery_Distractor, Probe"),
        ([f"a/b/c/{name}" for name in NAMES], r"contains Gallery_Match, "),
        (
            [f"{place}/{name}" for place in ("one", "two") for name in NAMES],
            r"more than once: .*one, .*two; give the folder",
        ),
        (
            [*NAMES, "a/probe_img_ID_pairs.mat", "b/probe_img_ID_pairs.mat"],
            r"contains probe_img_ID_pairs\.mat more than once",
        ),
        ([*NAMES[:5], "Probe/2_3.txt"], r"Probe holds no images"),
        ([*NAMES[:3], *NAMES[5:], "Gallery_Distractor/a"], r"Gallery_Distractor holds no images"),
        (
            [*NAMES, "Probe/x_1.jpg"],
            r"Probe.x_1\.jpg: the file name does not begin with its identity's number",
        ),
        ([*NAMES, f"Probe/{'9' * 19}_1.jpg"], r"does not begin with its identity's number"),
    ],
)
def test_incomplete_folders_are_refused(
    tmp_path: Path, touch: Callable[..., None], names: list[str], message: str
) -> None:
    touch(*names)
    with pytest.raises(ValueError, match=message):
        read_tinyface(tmp_path)


def test_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent cannot be listed"):
        read_tinyface(tmp_path / "absent")
