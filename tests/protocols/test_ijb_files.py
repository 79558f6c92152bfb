from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from margrave.faces import read_landmarks
from margrave.protocols import ijb_files
from margrave.protocols.ijb_files import (
    find_ijb_files,
    read_template_images,
    read_template_pairs,
    read_template_subjects,
)

LANDMARKS = "1.jpg 46.06 62.3 87.1 63.5 65 91.2 -1 9e1 82 110.25 0.99"


def test_images_are_read(write: Callable[..., Path]) -> None:
    images = read_template_images(
        write("ijbc_face_tid_mid.txt", "1.jpg 1 69544", "2.jpg 1 69544", "loose/3.jpg 20 7", "")
    )
    assert images.names == ("1.jpg", "2.jpg", "loose/3.jpg")
    assert images.templates.tolist() == [1, 1, 20] and images.templates.dtype == np.int64
    assert images.media.tolist() == [69544, 69544, 7] and images.media.dtype == np.int64


def test_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"\xef\xbb\xbf1 11065 1\r\n\r\n  2\t11066  0 \n999999999999999999 3 1")
    pairs = read_template_pairs(path)
    assert pairs.first.tolist() == [1, 2, 999_999_999_999_999_999]
    assert pairs.second.tolist() == [11065, 11066, 3]
    assert pairs.same.tolist() == [True, False, True]
    assert (pairs.first.dtype, pairs.second.dtype, pairs.same.dtype) == (np.int64, np.int64, bool)


def test_many_pairs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ijb_files, "_BLOCK_BYTES", 10_007)
    generator = np.random.default_rng(0)
    codes = generator.choice(20_000**2, 200_000, replace=False)
    first, second = codes // 20_000, 20_000 + codes % 20_000
    same = generator.random(len(codes)) < 0.1
    lines = [f"{a} {b} {c:d}\n" for a, b, c in zip(first, second, same, strict=True)]
    path = tmp_path / "ijbc_template_pair_label.txt"
    path.write_text("".join(lines))
    pairs = read_template_pairs(path)
    np.testing.assert_array_equal(pairs.first, first)
    np.testing.assert_array_equal(pairs.second, second)
    np.testing.assert_array_equal(pairs.same, same)

    lines[123_456] = "12 34 2\n"
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"label\.txt:123457: '12 34 2'; expected '1 2 0'"):
        read_template_pairs(path)


def test_landmarks_are_read(write: Callable[..., Path]) -> None:
    landmarks = read_landmarks(write("points.txt", LANDMARKS, LANDMARKS.replace("1.jpg", "2.jpg")))
    assert landmarks.names == ("1.jpg", "2.jpg")
    assert landmarks.points.shape == (2, 5, 2) and landmarks.points.dtype == np.float64
    expected = [[46.06, 62.3], [87.1, 63.5], [65, 91.2], [-1, 90], [82, 110.25]]
    np.testing.assert_array_equal(landmarks.points[1], expected)
    np.testing.assert_array_equal(landmarks.scores, [0.99, 0.99])
    assert landmarks.points.flags.writeable


@pytest.mark.parametrize("header", ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "Template_Id, subject_id,x"])
def test_subjects_are_read(write: Callable[..., Path], header: str) -> None:
    subjects = read_template_subjects(
        write("ijbc_1N_probe_mixed.csv", header, "7,1,a.jpg", "7,1,b.jpg", "3,2,c.jpg", "9,1")
    )
    assert subjects.templates.tolist() == [7, 3, 9] and subjects.templates.dtype == np.int64
    assert subjects.subjects.tolist() == [1, 2, 1] and subjects.subjects.dtype == np.int64


MALFORMED = [
    (read_template_images, ("1.jpg 1 2", "2.jpg 1"), r":2: '2\.jpg 1'; expected '1\.jpg 1 69544'"),
    (read_template_images, ("1.jpg 1 2 3",), r":1: '1\.jpg 1 2 3'; expected"),
    (read_template_images, ("1.jpg -1 2",), r":1: '1\.jpg -1 2'; expected"),
    (read_template_images, ("1.jpg 1 9223372036854775808",), r":1: .*; expected"),
    (read_template_images, ("/1.jpg 1 2",), r":1: '/1\.jpg 1 2'; expected"),
    (read_template_images, ("a/../../1.jpg 1 2",), r":1: .*; expected"),
    (
        read_template_images,
        ("1.jpg 1 2", "2.jpg 1 2", "1.jpg 1 3"),
        r":3: '1\.jpg 1 3'; expected image and template 1\.jpg and 1 to have the medium that",
    ),
    (read_template_images, (), r" names no images"),
    (read_template_pairs, ("1 2 1", "1 2"), r":2: '1 2'; expected '1 2 0'"),
    (read_template_pairs, ("1 2 1", "", "1 3 0", "x"), r":4: 'x'; expected '1 2 0'"),
    (read_template_pairs, ("1 2 3",), r":1: '1 2 3'; expected"),
    (read_template_pairs, ("1 2 1.0",), r":1: '1 2 1\.0'; expected"),
    (read_template_pairs, ("1 2 1 0",), r":1: '1 2 1 0'; expected"),
    (read_template_pairs, ("-1 2 1",), r":1: '-1 2 1'; expected"),
    (read_template_pairs, ("9223372036854775808 2 1",), r":1: '9223372036854775808 2 1'; expected"),
    (read_template_pairs, ("é 2 1",), r":1: 'é 2 1'; expected"),
    (read_template_pairs, ("1\x0b2 1",), r":1: '1\\x0b2 1'; expected"),
    (
        read_template_pairs,
        ("", "5 6 0", "1 2 1", "", "5 6 0", "2 1 0"),
        r":6: '2 1 0'; expected the pair to have the label of line 3",
    ),
    (
        read_template_pairs,
        ("1 999999999999999999 1", "2 3 0", "1 999999999999999999 0"),
        r":3: '1 999999999999999999 0'; expected the pair to have the label of line 1",
    ),
    (read_template_pairs, (), r" holds no pairs"),
    (read_template_pairs, ("", " "), r" holds no pairs"),
    (read_landmarks, (LANDMARKS, LANDMARKS[:-5]), r":2: .*; expected an image's relative path"),
    (read_landmarks, (LANDMARKS + " 1",), r":1: .*; expected"),
    (read_landmarks, (LANDMARKS.replace("65", "nan"),), r":1: .*; expected"),
    (read_landmarks, (LANDMARKS.replace("65", "1e999"),), r":1: .*; expected"),
    (read_landmarks, (LANDMARKS.replace("65", "6_5"),), r":1: .*; expected"),
    (read_landmarks, ("../" + LANDMARKS,), r":1: .*; expected"),
    (
        read_landmarks,
        (LANDMARKS, LANDMARKS, LANDMARKS.replace("-1", "-2")),
        r":3: .*; expected image 1\.jpg to have the set of points and score that line 1 gives",
    ),
    (read_landmarks, (), r" lists no images"),
    (read_template_subjects, (), r":1: ''; expected a column 'template_id' and"),
    (read_template_subjects, ("1,2,3.jpg",), r":1: '1,2,3\.jpg'; expected a column 'template_id'"),
    (
        read_template_subjects,
        ("TEMPLATE,SUBJECT_ID",),
        r":1: .*; expected a column 'template_id' \(nearest is 'template'\)",
    ),
    (read_template_subjects, ("TEMPLATE_ID,SUBJECT_ID",), r" holds no templates below its header"),
    (read_template_subjects, ("TEMPLATE_ID,SUBJECT_ID", "1"), r":2: '1'; expected 2 comma-"),
    (read_template_subjects, ("TEMPLATE_ID,SUBJECT_ID", "1,x"), r":2: '1,x'; expected whole num"),
    (
        read_template_subjects,
        ("SUBJECT_ID,TEMPLATE_ID", "1,7", "2,8", "2,7"),
        r":4: '2,7'; expected template 7 to have the subject that line 2 gives",
    ),
]


@pytest.mark.parametrize(("read", "lines", "message"), MALFORMED)
def test_malformed_files_are_refused(
    write: Callable[..., Path],
    read: Callable[[Path], object],
    lines: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=r"f\.txt" + message):
        read(write("f.txt", *lines))


@pytest.mark.parametrize(
    "read", [read_template_images, read_template_pairs, read_landmarks, read_template_subjects]
)
def test_missing_files_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for name in ("absent.txt", "."):
        with pytest.raises(ValueError, match=r"cannot be read \(.*check the path"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("prefix", "letter", "place"), [("ijbc", "G", "meta/"), ("ijbb", "S", "meta/"), ("my", "G", "")]
)
def test_files_are_found(
    tmp_path: Path, touch: Callable[..., None], prefix: str, letter: str, place: str
) -> None:
    names = [
        f"{prefix}_face_tid_mid.txt",
        f"{prefix}_template_pair_label.txt",
        f"{prefix}_name_5pts_score.txt",
        f"{prefix}_1N_gallery_{letter}1.csv",
        f"{prefix}_1N_gallery_{letter}2.csv",
        f"{prefix}_1N_probe_mixed.csv",
    ]
    others = (f"{prefix}_name_5pts_score_retina.txt", f"._{prefix}_face_tid_mid.txt")
    touch(*(place + name for name in (*names, *others)))
    files = find_ijb_files(tmp_path)
    result = [
        files.images,
        files.pairs,
        files.landmarks,
        files.gallery_1,
        files.gallery_2,
        files.probe,
    ]
    assert result == [tmp_path / place / name for name in names]


def test_files_may_be_absent(tmp_path: Path, touch: Callable[..., None]) -> None:
    touch("ijbb_face_tid_mid.txt")
    files = find_ijb_files(tmp_path)
    assert files.pairs is files.landmarks is files.gallery_1 is files.gallery_2 is files.probe
    assert files.probe is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ijbb_name_5pts_score.txt",), r"neither .* contains a file \*_face_tid_mid\.txt"),
        (
            ("ijbb_face_tid_mid.txt", "meta/ijbc_face_tid_mid.txt"),
            r"more than once: .*ijbb_face_tid_mid\.txt, .*ijbc_face_tid_mid\.txt",
        ),
        (
            ("a_face_tid_mid.txt", "a_1N_gallery_G1.csv", "a_1N_gallery_S1.csv"),
            r"more than once: .*_G1\.csv, .*_S1\.csv",
        ),
        (
            ("ijbb_face_tid_mid.txt", "ijbc_template_pair_label.txt"),
            r"several sets: ijbb_face_tid_mid\.txt, ijbc_template_pair_label\.txt",
        ),
    ],
)
def test_folders_without_one_set_are_refused(
    tmp_path: Path, touch: Callable[..., None], names: tuple[str, ...], message: str
) -> None:
    touch(*names)
    with pytest.raises(ValueError, match=message):
        find_ijb_files(tmp_path)


def test_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent cannot be listed"):
        find_ijb_files(tmp_path / "absent")
