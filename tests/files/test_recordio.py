"""RecordIO against files that MXNet 1.9.1 wrote, and against damage."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from margrave.data import RecordImages, TrainingImages, open_source, write_record_images
from margrave.files.recordio import (
    MAGIC,
    RecordFile,
    RecordWriter,
    join_record,
    read_index,
    split_record,
    write_index,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "recordio"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
MAGIC_BYTES = struct.pack("<I", MAGIC)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_image_and_label_is_mxnets() -> None:
    images = RecordImages(GOLDEN)
    assert len(images) == EXPECTED["images"] and len(images.class_names) == EXPECTED["identities"]
    assert images.image_size == (112, 112) and not images.rebuilt
    for index, record in enumerate(EXPECTED["records"]):
        content = images.read_bytes(index)
        assert (len(content), sha256(content)) == (record["bytes"], record["sha256"])
        assert images.labels[index] == record["label"]
        assert images.class_names[images.labels[index]] == str(record["label"])
        assert images.read(index).shape == (112, 112, 3)


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    return tmp_path


def test_a_missing_index_is_rebuilt(tmp_path: Path) -> None:
    images = RecordImages(folder_of(tmp_path, "train.rec"))
    full = RecordImages(GOLDEN)
    assert images.rebuilt and images.image_size is None
    assert np.array_equal(images.labels, full.labels)
    assert [images.read_bytes(n) for n in range(40)] == [full.read_bytes(n) for n in range(40)]


def write_records(folder: Path, records: list[tuple[int, float | list[float], bytes]]) -> None:
    with RecordWriter(folder / "train.rec") as writer:
        for key, label, image in records:
            value = label if isinstance(label, float) else np.array(label, np.float32)
            writer.write(join_record(key, value, image))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_missing_index_is_rebuilt_by_the_records_own_keys(
    aligned: bool, reverse: bool, tmp_path: Path
) -> None:
    # InsightFace's packer writes the images, then record 0, then the identities.
    records: list[tuple[int, float | list[float], bytes]] = [
        (key, [(key - 1) // 3, 1.0] if aligned else float((key - 1) // 3), b"image %d" % key)
        for key in range(1, 13)
    ]
    records += [(0, [13, 17], b"")]
    records += [(13 + person, [1 + 3 * person, 4 + 3 * person], b"") for person in range(4)]
    write_records(tmp_path, records[::-1] if reverse else records)
    images = RecordImages(tmp_path)
    assert images.rebuilt and images.class_names == ["0", "1", "2", "3"]
    assert images.labels.tolist() == np.repeat(range(4), 3).tolist()
    assert [images.read_bytes(n) for n in range(12)] == [b"image %d" % n for n in range(1, 13)]


def test_records_without_keys_of_their_own_keep_their_order(tmp_path: Path) -> None:
    write_records(tmp_path, [(0, float(n // 2), b"image %d" % n) for n in range(6)])
    images = RecordImages(tmp_path)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2] and images.read_bytes(4) == b"image 4"


@pytest.mark.parametrize(
    ("keys", "message"), [([1, 2, 1], "key 1 occurs twice"), ([1, 2, 2**64 - 1], "no")]
)
def test_keys_that_make_no_index_are_refused(keys: list[int], message: str, tmp_path: Path) -> None:
    write_records(tmp_path, [(key, float(key % 2), b"image") for key in keys])
    with pytest.raises(ValueError, match=f"train.idx is missing and cannot be rebuilt.*{message}"):
        RecordImages(tmp_path)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_record_0_with_an_image_is_an_image(indexed: bool, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train.rec") as writer:
        payloads = [
            join_record(n, np.array([n // 2, 1], np.float32), b"image %d" % n) for n in range(6)
        ]
        places = [writer.write(payload) for payload in payloads]
    if indexed:
        write_index(tmp_path / "train.idx", range(6), places)
    images = RecordImages(tmp_path)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2] and images.read_bytes(0) == b"image 0"


def test_identities_records_without_a_record_0_are_no_images(tmp_path: Path) -> None:
    records = [(n, float(n // 2), b"image") for n in range(4)]
    write_records(tmp_path, [*records, (4, [0, 2], b""), (5, [2, 4], b"")])
    assert len(RecordImages(tmp_path)) == 4


@pytest.mark.parametrize("content", [b"\0", b"\n#\xd7", MAGIC_BYTES, MAGIC_BYTES + b"\0\0\0\0"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_few_bytes_are_no_records(content: bytes, indexed: bool, tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(content)
    if indexed:
        write_index(tmp_path / "train.idx", [0, 1], [0, 40])
    with pytest.raises(ValueError, match=r"train.rec: damaged record at byte 0"):
        RecordImages(tmp_path)


def test_without_ranges_labels_come_from_the_images_heads(tmp_path: Path) -> None:
    keys, offsets = read_index(GOLDEN / "train.idx")
    folder_of(tmp_path, "train.rec")
    write_index(tmp_path / "train.idx", keys[1:41].tolist(), offsets[1:41].tolist())
    images = RecordImages(tmp_path)
    assert np.array_equal(images.labels, RecordImages(GOLDEN).labels)


def test_what_is_written_is_mxnets_byte_for_byte(tmp_path: Path) -> None:
    golden = RecordImages(GOLDEN)
    pairs = [(int(golden.labels[n]), golden.read_bytes(n)) for n in range(len(golden))]
    write_record_images(tmp_path, pairs, 112, has_array_label=lambda key: key % 2 == 0)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_it_trains_directly() -> None:
    images = open_source({"kind": "records", "root": str(GOLDEN), "minimum_images": 3})
    assert TrainingImages(images, 32)[0, 5].labels.tolist() == [images.labels[5]]
    copied = pickle.loads(pickle.dumps(images))
    assert np.array_equal(copied.read(3), images.read(3))


@given(
    st.lists(
        st.binary(max_size=40)
        | st.lists(st.sampled_from([MAGIC_BYTES, b"a", b"bcde"])).map(b"".join),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_any_payload_comes_back(payloads: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with RecordWriter(Path(folder, "some.rec")) as writer:
            places = [writer.write(payload) for payload in payloads]
        records = RecordFile(Path(folder, "some.rec"))
        assert list(records.offsets()) == places
        assert [records.read(place) for place in places] == payloads


@pytest.mark.parametrize("label", [3.0, np.array([4.0, 0.5], np.float32), np.zeros(5, np.float32)])
def test_labels_of_every_form(label: float | np.ndarray, tmp_path: Path) -> None:
    payload = join_record(7, label, b"image")
    values, image = split_record(payload)
    assert np.array_equal(values, label) and image == b"image"
    with RecordWriter(tmp_path / "one.rec") as writer:
        writer.write(payload)
    heads = RecordFile(tmp_path / "one.rec").headers(np.array([0]))
    expected = (*np.ravel(label), np.nan)[:2]
    assert np.array_equal(heads.labels[0], np.array(expected, np.float32), equal_nan=True)
    assert (heads.keys[0], heads.image_bytes[0]) == (7, len(b"image"))


def without_record(folder: Path, key: int) -> None:
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:key] + lines[key + 1 :]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train.idx").write_text("0\t0\n1 40\n"), r"train.idx, line 2: b'1 40'"),
        (lambda f: (f / "train.idx").write_text("0\t0\n0\t40\n"), "key 0 occurs twice"),
        (lambda f: (f / "train.idx").write_text(""), "lists no records"),
        (lambda f: without_record(f, 41), "refers to record 41"),
        (lambda f: without_record(f, 17), "refers to record 17"),
        (lambda f: (f / "train.idx").write_text("0\t4\n"), r"damaged record at byte 4: no record"),
        (
            lambda f: (f / "train.idx").write_text("0\t999999999\n"),
            "the file has only 140136 bytes",
        ),
        (lambda f: (f / "train.rec").write_bytes(b""), "train.rec is empty"),
        (lambda f: (f / "property").write_text("ten"), "is not 'classes,height,width'"),
    ],
)
def test_mistakes_are_told(change, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train.rec", "train.idx", "property")
    change(folder)
    with pytest.raises(ValueError, match=message):
        RecordImages(folder)


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    folder_of(tmp_path, "train.rec")
    full = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(full[:100_000])
    with pytest.raises(ValueError, match="extend past the end of the file"):
        RecordImages(tmp_path)


def test_an_image_of_another_identity_is_told_when_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train.rec", "train.idx")
    content = bytearray((folder / "train.rec").read_bytes())
    # The label of record 3, a scalar at the head's second word.
    content[7300 + 12 : 7300 + 16] = struct.pack("<f", 5.0)
    (folder / "train.rec").write_bytes(content)
    images = RecordImages(folder)
    with pytest.raises(ValueError, match="record 3 at byte 7300 has label 5, expected 0"):
        images.read(2)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "does not exist"), (".", r"contains 0 \*.rec files")],
)
def test_no_records(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RecordImages(tmp_path / path)


def test_identities_must_come_in_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 2 has label 2 after label 0"):
        write_record_images(tmp_path, [(0, b""), (2, b"")], 112)


def test_a_long_record_that_many_keys_name_is_not_read_again_and_again(tmp_path: Path) -> None:
    content = join_record(1, 0.0, bytes(2**26))
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(content)
    # Where no word begins, heads cannot be read at once.
    path = tmp_path / "train.rec"
    path.write_bytes(b"\0" + path.read_bytes())
    lines = (f"{key}\t1\n" for key in range(1, 20_000))
    (tmp_path / "train.idx").write_text("".join(lines))
    with pytest.raises(ValueError, match=r"train\.rec has \d+ bytes but would take more"):
        RecordImages(tmp_path)


def test_no_record_key_may_exceed_what_float32_represents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Record 0 stores the end of the identity records: 6 images and 2 identities give 9.
    pairs = [(number // 3, b"") for number in range(6)]
    monkeypatch.setattr("margrave.data.record_images.MAX_LABEL", 9)
    write_record_images(tmp_path, pairs, 112)
    monkeypatch.setattr("margrave.data.record_images.MAX_LABEL", 8)
    with pytest.raises(ValueError, match="6 images of 2 identities need record keys above 8"):
        write_record_images(tmp_path, pairs, 112)
