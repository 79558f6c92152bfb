"""A zoo of planted faults: the doctor names each first, and finds nothing on the healthy."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from untrained_zoo import as_if_trained

from margrave import backbones
from margrave.config import merge, read_config
from margrave.data import (
    EncodedImages,
    ImageFolder,
    PairList,
    RecordImages,
    ShardImages,
    balanced_pairs,
    pack_records,
    pack_shards,
)
from margrave.doctor import (
    Finding,
    examine_images,
    examine_model,
    examine_pairs,
    examine_run,
)
from margrave.doctor.run import check_scale
from margrave.models import ModelCard, save_model
from margrave.runs import Run
from margrave.synthetic import SyntheticFaces
from margrave.training import NonFiniteLossError

MODULE, DIMENSIONS = "discriminant:Discriminant", 4


class Planted:
    """Images in memory, with a fault."""

    def __init__(self, images: Sequence[np.ndarray], labels: np.ndarray) -> None:
        self.images, self.labels = list(images), np.asarray(labels)
        self.class_names = [f"person {n}" for n in range(self.labels.max() + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


@pytest.fixture(scope="session")
def faces() -> Planted:
    """Healthy faces."""
    drawn = SyntheticFaces(num_identities=40, images_per_identity=10, image_size=64, degraded=0)
    return Planted([drawn.read(n) for n in range(len(drawn))], drawn.labels)


def changed(
    faces: Planted, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]
) -> Planted:
    return Planted(
        [change(image, np.random.default_rng(n)) for n, image in enumerate(faces.images)],
        faces.labels,
    )


def serious(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "serious"]


def shifted(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    side = len(image)
    matrix = cv2.getRotationMatrix2D(
        (side / 2, side / 2), draw.uniform(-25, 25), draw.uniform(0.7, 1.2)
    )
    matrix[:, 2] += draw.uniform(-0.15, 0.15, 2) * side
    return cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)


def some(share: float, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return lambda image, draw: change(image) if draw.random() < share else image


IMAGES: dict[str, Callable[[Planted], Planted]] = {
    "reversed_colors": lambda faces: changed(faces, lambda image, draw: image[..., ::-1].copy()),
    "mixed_color_orders": lambda faces: changed(faces, some(0.4, lambda x: x[..., ::-1].copy())),
    "unaligned_faces": lambda faces: changed(faces, shifted),
    "turned_images": lambda faces: changed(faces, lambda x, draw: x[::-1, ::-1].copy()),
    "blank_images": lambda faces: changed(faces, some(0.1, lambda x: np.full_like(x, 90))),
    "small_images": lambda faces: changed(faces, lambda x, draw: cv2.resize(x, (28, 28))),
    "duplicate_identities": lambda faces: Planted(
        faces.images + faces.images[:10], np.append(faces.labels, [40] * 10)
    ),
    "images_under_two_identities": lambda faces: Planted(
        faces.images + faces.images[:400:40], np.append(faces.labels, (np.arange(10) * 4 + 17) % 40)
    ),
    "repeated_images": lambda faces: Planted(
        faces.images + faces.images, np.append(faces.labels, faces.labels)
    ),
    "single_images": lambda faces: Planted(faces.images, np.arange(400)),
}


@pytest.mark.parametrize("fault", IMAGES)
def test_images(fault: str, faces: Planted) -> None:
    findings = examine_images(IMAGES[fault](faces))
    assert findings[0].fault == fault and findings[0].severity == "serious", findings
    json.dumps([finding.to_json() for finding in findings])


def test_healthy_images(faces: Planted) -> None:
    findings = examine_images(faces)
    assert serious(findings) == [] and findings[-1].fault == "class_sizes"
    assert findings[-1].figures == {"8-15": 40}


def test_jpeg_again_is_the_same_image(faces: Planted) -> None:
    def again(image: np.ndarray) -> np.ndarray:
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], 1)

    twice = Planted(faces.images + [again(image) for image in faces.images[:10]],
                    np.append(faces.labels, [40] * 10))  # fmt: skip
    assert examine_images(twice)[0].fault == "duplicate_identities"


def test_unreadable_files(faces: Planted, tmp_path: Path) -> None:
    for index, image in enumerate(faces.images):
        path = tmp_path / str(faces.labels[index]) / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image[..., ::-1])
        if index % 20 == 0:
            path.write_bytes(path.read_bytes()[:-200])
    findings = examine_images(ImageFolder(tmp_path))
    assert findings[0].fault == "unreadable_images" and "is truncated" in findings[0].examples[0]


def records(faces: Planted, folder: Path, relabel: Callable[[int], int] = lambda n: n) -> None:
    """Records whose labels are not what the format asks for."""
    from margrave.files.recordio import RecordWriter, join_record, write_index

    pack_records(faces, folder, 64)
    packed = RecordImages(folder)
    contents = [packed.read_bytes(index) for index in range(len(packed))]
    with RecordWriter(folder / "train.rec") as writer:
        places = [
            writer.write(join_record(index, float(relabel(int(packed.labels[index]))), content))
            for index, content in enumerate(contents)
        ]
    write_index(folder / "train.idx", range(len(places)), places)


def test_labels_off_by_one(faces: Planted, tmp_path: Path) -> None:
    records(faces, tmp_path, lambda label: label + 1)
    findings = examine_images(RecordImages(tmp_path))
    assert findings[0].fault == "shifted_labels" and "begin at 1" in findings[0].message


def test_label_gaps(faces: Planted, tmp_path: Path) -> None:
    records(faces, tmp_path, lambda label: 2 * label)
    findings = examine_images(RecordImages(tmp_path))
    assert findings[0].fault == "label_gaps" and "39 labels between 0 and 78" in findings[0].message


def test_names_that_are_numbers_are_no_labels(faces: Planted, tmp_path: Path) -> None:
    numbered = Planted(faces.images, faces.labels)
    numbered.class_names = [f"{10**14 + 7 * n}" for n in range(40)]
    pack_shards(numbered, tmp_path, 64)
    faults = [finding.fault for finding in examine_images(ShardImages(tmp_path))]
    assert faults == ["alignment_not_checked", "class_sizes"]


def test_wrong_class_count(faces: Planted, tmp_path: Path) -> None:
    pack_records(faces, tmp_path, 64)
    assert serious(examine_images(RecordImages(tmp_path))) == []
    (tmp_path / "property").write_text("85742,112,112")
    assert examine_images(RecordImages(tmp_path))[0].fault == "wrong_class_count"


def test_damaged_shards(faces: Planted, tmp_path: Path) -> None:
    pack_shards(faces, tmp_path, 64, images_per_shard=100)
    assert serious(examine_images(ShardImages(tmp_path))) == []
    path = tmp_path / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 4
    path.write_bytes(content)
    findings = examine_images(ShardImages(tmp_path))
    assert findings[0].fault == "damaged_shards" and "SHA-256" in findings[0].examples[0]


def test_dominant_identity(faces: Planted) -> None:
    labels = np.concatenate([np.repeat(np.arange(100), 1), np.full(300, 100)])
    findings = examine_images(Planted(faces.images, labels))
    assert {"dominant_identity", "single_images"} <= {finding.fault for finding in findings}


def test_pairs(faces: Planted) -> None:
    pairs = balanced_pairs(faces.labels, 200, seed=0)
    assert serious(examine_pairs(faces, pairs)) == []
    all_same = PairList(pairs.first, pairs.second, np.ones(200, bool), pairs.folds)
    assert examine_pairs(faces, all_same)[0].fault == "one_sided_pairs"
    itself = np.where(pairs.same, pairs.first, pairs.second)
    findings = examine_pairs(faces, PairList(pairs.first, itself, pairs.same, pairs.folds))
    assert findings[0].fault == "identical_pairs"
    findings = examine_pairs(faces, PairList(pairs.first, itself, ~pairs.same, pairs.folds))
    assert findings[0].fault == "contradicted_pairs" and findings[0].figures["contradicted"] == 100
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in faces.images]
    assert serious(examine_pairs(EncodedImages(encoded, "a.bin"), pairs)) == []


@pytest.fixture(scope="session")
def state(faces: Planted) -> dict[str, torch.Tensor]:
    """Weights of a model that knows the healthy faces."""
    from discriminant import fitted

    return fitted(np.stack(faces.images), faces.labels, DIMENSIONS)


def model(path: Path, state: dict[str, torch.Tensor], **card: Any) -> Path:
    against = card.pop("against", False)
    backbone = {"kind": MODULE, "embedding_size": DIMENSIONS, "against": against}
    save_model(path, state, ModelCard(backbone=backbone, image_size=64, **card))
    return path


def examined(path: Path, faces: Planted | None = None) -> list[Finding]:
    return examine_model(path, faces, trust_code=True)


def test_few_faces_are_no_mistake(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    few = SyntheticFaces(num_identities=4, images_per_identity=2, image_size=64)
    findings = examine_model(model(tmp_path / "m.safetensors", state), few, trust_code=True)
    assert "preparation_not_checked" in {finding.fault for finding in findings}


def test_healthy_model(faces: Planted, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    findings = examined(model(tmp_path / "good.safetensors", state), faces)
    assert serious(findings) == [] and "RGB" in findings[0].message


def test_wrong_color_order(faces: Planted, state: dict[str, Any], tmp_path: Path) -> None:
    weight = state["linear.weight"].reshape(DIMENSIONS, 3, -1).flip(1).flatten(1)
    path = model(tmp_path / "bgr.safetensors", state | {"linear.weight": weight})
    findings = examined(path, faces)
    assert findings[0].fault == "wrong_color_order", findings
    assert "--color-order" in findings[0].remedy


def test_wrong_normalization(faces: Planted, state: dict[str, Any], tmp_path: Path) -> None:
    path = model(tmp_path / "range.safetensors", state, mean=0.0, std=1.0)
    findings = examined(path, faces)
    assert findings[0].fault == "wrong_normalization" and "[-1, 1]" in findings[0].message, findings


def test_labels_of_other_images(faces: Planted, state: dict[str, Any], tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(faces.labels)
    path = model(tmp_path / "good.safetensors", state)
    assert examined(path, Planted(faces.images, labels))[0].fault == "labels_disagree"


def test_broken_weights(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    broken = state["linear.weight"].clone()
    broken[3, 5] = float("nan")
    faults = {
        "non_finite_weights": {"linear.weight": broken},
        "empty_weights": {"linear.weight": torch.zeros_like(broken)},
        "collapsed_embeddings": {"linear.weight": 1e-6 * state["linear.weight"],
                                 "linear.bias": torch.ones(DIMENSIONS)},
        "misfitting_weights": {"linear.weight": torch.ones(DIMENSIONS, 5)},
    }  # fmt: skip
    for fault, changes in faults.items():
        findings = examined(model(tmp_path / f"{fault}.safetensors", state | changes))
        assert findings[0].fault == fault and findings[0].severity == "serious"


SMALL_NETWORK = {"kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [16, 16, 32, 32],
                 "embedding_size": 32}  # fmt: skip


def test_checkpoints_of_others(tmp_path: Path) -> None:
    good = as_if_trained(backbones.create(SMALL_NETWORK)).state_dict()
    torch.save(good, tmp_path / "good.pth")
    findings = examine_model(tmp_path / "good.pth")
    assert (
        findings[0].fault == "foreign_checkpoint" and "insightface_iresnet" in findings[0].message
    )
    torch.save({key: value for key, value in good.items() if key != "bn2.weight"},
               tmp_path / "less.pth")  # fmt: skip
    assert examine_model(tmp_path / "less.pth")[0].fault == "misfitting_weights"
    torch.save({"some.thing": torch.ones(3)}, tmp_path / "other.pth")
    assert examine_model(tmp_path / "other.pth")[0].fault == "unknown_layout"
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:5000])
    assert examine_model(tmp_path / "cut.pth")[0].fault == "unreadable_checkpoint"
    negative = good | {"bn1.running_var": -good["bn1.running_var"]}
    torch.save(negative, tmp_path / "negative.pth")
    assert examine_model(tmp_path / "negative.pth")[0].fault == "negative_variances"


SMALL = {
    "data": {
        "train": {"kind": "planted_source:Faces"},
        "image_size": 32, "cached": True, "augmentation": {"flip": 0.0},
    },
    "backbone": {"kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [8, 16, 32, 64],
                 "embedding_size": 32},
    "loss": {"kind": "adaface", "scale": 16, "margin": 0.2},
    "head": {"kind": "dense"},
    "training": {"epochs": 3, "batch_size": 20, "log_steps": 2,
                 "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "evaluation": {"sets": {"unseen": {"images": {
        "kind": "planted_source:Faces", "num_identities": 20, "first_identity": 5000},
        "pairs": 40}}},
}  # fmt: skip


def trained(folder: Path, **changes: Any) -> Path:
    run = Run(read_config([], merge(SMALL, changes)), folder)
    with contextlib.suppress(NonFiniteLossError):
        run.train(run.open_training())
    return folder


def test_healthy_run(tmp_path: Path) -> None:
    findings = examine_run(trained(tmp_path / "run"), trust_code=True)
    assert serious(findings) == [], findings
    assert {"norm_and_quality"} <= {finding.fault for finding in findings}
    assert serious(examine_model(tmp_path / "run" / "model.safetensors")) == []


RUNS: dict[str, dict[str, Any]] = {
    "learning_rate_too_high": {"training": {"optimizer": {"learning_rate": 30.0}}},
    "learning_rate_too_low": {"training": {"optimizer": {"learning_rate": 1e-7}, "epochs": 2}},
    "scale_too_low": {"loss": {"scale": 2.0}, "training": {"epochs": 2}},
    "evaluation_leak": {
        "training": {"epochs": 2},
        "evaluation": {"sets": {"unseen": {"images": {"first_identity": 10}}}},
    },
    "reversed_colors": {"data": {"train": {"kind": "planted_source:Reversed"}},
                         "training": {"epochs": 1}},
}  # fmt: skip


@pytest.mark.parametrize("fault", RUNS)
def test_runs(fault: str, tmp_path: Path) -> None:
    findings = examine_run(trained(tmp_path / "run", **RUNS[fault]), trust_code=True)
    assert findings[0].fault == fault and findings[0].severity == "serious", findings


def test_a_run_that_blew_up(tmp_path: Path) -> None:
    changes = {"training": {"optimizer": {"learning_rate": 1e30}, "epochs": 1}}
    findings = examine_run(trained(tmp_path / "run", **changes), trust_code=True)
    assert (
        findings[0].fault == "non_finite_loss" and "training stopped at step" in findings[0].message
    )


def test_norm_against_quality(faces: Planted, state: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", training={"epochs": 1})
    config = run / "config.yaml"
    text = config.read_text()
    for against, fault in ((True, "norm_against_quality"), (False, "norm_and_quality")):
        card_of = ModelCard(
            backbone={"kind": MODULE, "embedding_size": DIMENSIONS, "against": against},
            image_size=64,
        )
        save_model(run / "model.safetensors", state, card_of)
        config.write_text(text)
        findings = examine_run(run, trust_code=True)
        faults = [finding.fault for finding in findings]
        assert fault in faults, findings
        assert not against or faults[0] == fault


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml"):
        examine_run(tmp_path)
    shutil.copy(trained(tmp_path / "run", training={"epochs": 1}) / "config.yaml", tmp_path)
    assert {finding.fault for finding in examine_run(tmp_path, trust_code=True)} >= {"no_curve"}


@pytest.mark.parametrize("kind", ["adacos", "uniface", "softmax"])
def test_losses_without_a_softmax_of_scaled_cosines_have_no_lowest_scale(kind: str) -> None:
    config = read_config([], merge(SMALL, {"loss": {"kind": kind, "scale": 1.0}}))
    assert not list(check_scale(config, 10_000))
    low = read_config([], merge(SMALL, {"loss": {"kind": "arcface", "scale": 1.0}}))
    assert [finding.fault for finding in check_scale(low, 10_000)] == ["scale_too_low"]
