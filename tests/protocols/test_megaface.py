from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from margrave.inference import Features
from margrave.models import ModelCard
from margrave.protocols import EvaluationOptions, megaface
from margrave.protocols.megaface import facescrub_identity, read_megaface_list, read_noise_list


def test_lists_are_read(write: Callable[..., Path]) -> None:
    path = write(
        "megaface_features_list.json_10_1",
        '{"id": ["0", "1"], "path": ["Adam_Brody/Adam_Brody_259.png",',
        ' "363/36395475@N00/2663229765_1.jpg", "Adam Brody/\\u00e9.png"]}',
    )
    assert read_megaface_list(path) == (
        "Adam_Brody/Adam_Brody_259.png",
        "363/36395475@N00/2663229765_1.jpg",
        "Adam Brody/é.png",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: ''; expected JSON \("),
        ('{"path":\n["a",,]}', r""":2: '\["a",,\]}'; expected JSON \("""),
        ("[" * 200_000, r" cannot be read as JSON|:1: '\[+'…; expected JSON"),
        ('{"path": [' + "1" * 5000 + "]}", r" cannot be read as JSON"),
        ('["a"]', r" holds no list of images with the key 'path'"),
        ('{"paths": ["a"]}', r" holds no list of images with the key 'path'"),
        ('{"path": "a"}', r" holds no list of images with the key 'path'"),
        ('{"path": []}', r" holds no list of images with the key 'path'"),
        ('{"path": ["a", 3]}', r": path\[1\] is a int; expected an image's relative"),
        ('{"path": ["/a"]}', r": path\[0\] is '/a'; expected an image's relative path"),
        ('{"path": ["\\ud800"]}', r": path\[0\] is '\\ud800'; expected an image's"),
    ],
)
def test_malformed_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"list\.json" + message):
        read_megaface_list(path)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(b'{"path":\n["\xff"]}\n')
    with pytest.raises(ValueError, match=r"list\.json:2: .* expected text encoded as UTF-8"):
        read_megaface_list(path)


def test_noise_is_read(write: Callable[..., Path]) -> None:
    path = write(
        "noises.txt",
        "# FaceScrub",
        "Adam_Brody_259.png",
        "",
        "Adam Brody_3.png ",
        "12\t363/36395475@N00/2663229765_1.jpg",
        "Adam_Brody_259.png",
    )
    assert read_noise_list(path) == {
        "Adam_Brody_259.png",
        "Adam Brody_3.png",
        "363/36395475@N00/2663229765_1.jpg",
    }


def test_noise_may_be_empty(write: Callable[..., Path]) -> None:
    assert read_noise_list(write("facescrub_noises_empty.txt")) == frozenset()


@pytest.mark.parametrize("line", ["/a.png", "a/../b.png", "1\t/a.png", "a\\b.png"])
def test_malformed_noise_is_refused(write: Callable[..., Path], line: str) -> None:
    with pytest.raises(ValueError, match=r"noises\.txt:2: .*; expected an image's name"):
        read_noise_list(write("noises.txt", "a.png", line))


@pytest.mark.parametrize("read", [read_megaface_list, read_noise_list])
def test_missing_files_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ValueError, match=r"cannot be read \(.*check the path"):
        read(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("Adam_Brody/Adam_Brody_259.png", "Adam_Brody"),
        ("facescrub_images/Adam_Brody/x.png", "Adam_Brody"),
        ("Robert_Di Niro_12.jpeg", "Robert_Di Niro"),
    ],
)
def test_people_of_facescrub_are_known_by_name(name: str, identity: str) -> None:
    assert facescrub_identity(name) == identity


@pytest.mark.parametrize("name", ["", "259.png", "_259.png", "/"])
def test_names_of_nobody_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="does not name its identity"):
        facescrub_identity(name)


def test_unreadable_probes_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = {"weights": "ab", "card": {}, "fit": "crop", "flips": False, "images": {}}
    rows = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    rows[4:6] = 0
    names = np.array([b"%d/%d.png" % (row // 3, row) for row in range(9)])
    probes = Features(
        rows,
        names,
        description,
        ModelCard(backbone={"kind": "mbf"}),
        labels=np.repeat(np.arange(3), 3),
        unreadable={4: "damaged", 5: "damaged"},
    )
    others = Features(rows[:4] + 1, names[:4], description, ModelCard(backbone={"kind": "mbf"}))
    monkeypatch.setattr(megaface, "FeatureStore", lambda path: others)
    options = EvaluationOptions(resamples=0)
    [result] = megaface.MegaFace(distractors=tmp_path).evaluate(probes, options)
    assert result.counts["images"] == 7 and result.counts["genuine"] == 6
    noise = tmp_path / "noise.txt"
    noise.write_text("5.png\n")
    [result] = megaface.MegaFace(distractors=tmp_path, probe_noise=noise).evaluate(probes, options)
    assert result.counts["images"] == 8 and result.counts["genuine"] == 7
