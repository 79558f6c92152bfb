from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from margrave.data.protocol_files import read_tinyface

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
    found = read_tinyface(tmp_path)
    prefix = f"{place}/" if place else ""
    assert found.gallery == tuple(
        f"{prefix}Gallery_Match/{name}.jpg" for name in ("2_1", "2_10", "10_2")
    )
    assert found.gallery_labels.tolist() == [2, 2, 10]
    assert found.distractors == tuple(
        f"{prefix}Gallery_Distractor/{name}.jpg" for name in ("100_7", "x")
    )
    assert found.probes == tuple(f"{prefix}Probe/{name}.jpg" for name in ("2_3", "10_1"))
    assert found.probe_labels.tolist() == [2, 10]
    assert found.gallery_labels.dtype == found.probe_labels.dtype == np.int64


def test_lists_restrict(tmp_path: Path, touch: Callable[..., None]) -> None:
    touch(*(f"aligned/{name}" for name in NAMES), "tinyface/Testing_Set/readme.txt")
    lists = tmp_path / "tinyface/Testing_Set"
    gallery = np.array([[10], [2]], np.uint16)
    save_list(
        lists / "gallery_match_img_ID_pairs.mat", "gallery", ["10_2.jpg", "2_10.jpg"], gallery
    )
    save_list(lists / "probe_img_ID_pairs.mat", "probe", ["2_3.jpg"], np.array([[2.0]]))
    found = read_tinyface(tmp_path)
    assert found.gallery == ("aligned/Gallery_Match/2_10.jpg", "aligned/Gallery_Match/10_2.jpg")
    assert found.gallery_labels.tolist() == [2, 10]
    assert found.probes == ("aligned/Probe/2_3.jpg",) and found.probe_labels.tolist() == [2]
    assert len(found.distractors) == 2


@pytest.mark.parametrize(
    ("names", "identities", "message"),
    [
        (["2_3.jpg", "9_9.jpg"], [[2], [9]], r"Probe lacks 1 images that .* lists: 9_9\.jpg"),
        (["2_3.jpg"], [[3]], r"2_3\.jpg is of identity 2 by its name and of 3 by probe_img_ID"),
        (["2_3.jpg", "2_3.jpg"], [[2], [3]], r"row 2 gives 2_3\.jpg identity 3, an earlier row 2"),
        (["2_3.jpg"], [[2], [2]], r"1 files in probe_set and 2 in probe_ids"),
        ([], np.empty((0, 1)), r"0 files in probe_set and 0 in probe_ids"),
        (["2_3.jpg"], [[2.5]], r"row 1 is '2_3\.jpg', 2\.5; expected"),
        (["2_3.jpg"], [[np.nan]], r"row 1 is '2_3\.jpg', nan; expected"),
        (["2_3.jpg"], [[1e300]], r"row 1 is '2_3\.jpg', 1e\+300; expected"),
        (["2_3.jpg"], [[2j]], r"cannot be read as a MATLAB file \(it holds an array of class 6"),
        (["2_3.jpg"], [[]], r"1 files in probe_set and 0 in probe_ids"),
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
    with pytest.raises(ValueError, match="holds no probe_ids; fetch it again"):
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
        (NAMES[:5], r"hold no Gallery_Match, Gallery_Distractor, Probe together"),
        ([f"a/b/c/{name}" for name in NAMES], r"hold no Gallery_Match, .* together"),
        (
            [f"{place}/{name}" for place in ("one", "two") for name in NAMES],
            r"more than once: .*one, .*two; give the folder of one",
        ),
        (
            [*NAMES, "a/probe_img_ID_pairs.mat", "b/probe_img_ID_pairs.mat"],
            r"holds probe_img_ID_pairs\.mat more than once",
        ),
        ([*NAMES[:5], "Probe/2_3.txt"], r"Probe holds no images"),
        ([*NAMES[:3], *NAMES[5:], "Gallery_Distractor/a"], r"Gallery_Distractor holds no images"),
        ([*NAMES, "Probe/x_1.jpg"], r"Probe.x_1\.jpg does not begin with its identity's number"),
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
    with pytest.raises(ValueError, match=r"absent is not a folder that can be listed"):
        read_tinyface(tmp_path / "absent")
