"""Which preparations of images are tried, and what is advised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from discriminant import Discriminant, fitted
from torch import Tensor, nn

from margrave.doctor import Finding, examine_model
from margrave.doctor.embedding_checks import check_preparation
from margrave.inference import Embedder
from margrave.models import ImportOptions, ModelCard
from margrave.models.onnx_file import OnnxBackbone
from margrave.models.pixel_statistics import ColorOrder
from margrave.synthetic import SyntheticFaces

DIMENSIONS = 4


@pytest.fixture(scope="module")
def faces() -> SyntheticFaces:
    return SyntheticFaces(num_identities=20, images_per_identity=10, image_size=64)


@pytest.fixture(scope="module")
def swapped(faces: SyntheticFaces) -> Embedder:
    """A network that expects BGR, with the card of one that expects RGB."""
    images = np.stack([faces.read(index) for index in range(len(faces))])
    state = fitted(images[..., ::-1].copy(), np.asarray(faces.labels), DIMENSIONS)
    network = Discriminant(DIMENSIONS)
    network.load_state_dict(state)
    card = ModelCard(backbone={"kind": "discriminant:Discriminant"}, image_size=64)
    return Embedder(network.eval(), card)


@pytest.mark.parametrize(
    ("assumed", "color_order", "remedy"),
    [("rgb", "BGR", "--color-order bgr"), ("bgr", "RGB", "--color-order rgb"),
     (None, "BGR", "the opposite --color-order")],
)  # fmt: skip
def test_the_order_opposite_to_the_assumed_one_is_advised(
    swapped: Embedder,
    faces: SyntheticFaces,
    assumed: ColorOrder | None,
    color_order: str,
    remedy: str,
) -> None:
    (finding,) = check_preparation(swapped, faces, color_order=assumed)
    assert finding.fault == "wrong_color_order"
    assert f"better with {color_order} images" in finding.message
    assert finding.remedy == f"import it again with {remedy}"


class Uint8Network(nn.Module):
    """Normalizes the pixels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.float() / 127.5 - 1)


@pytest.fixture
def uint8_model(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    torch.onnx.export(Uint8Network().eval(), (pixels,), str(path), dynamo=False)
    return path


def test_a_model_that_takes_uint8_is_tried_with_no_other_normalization(
    uint8_model: Path, faces: SyntheticFaces
) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=64, mean=0.0, std=1.0)
    calls: list[tuple[int, int | None]] = []
    embedder = Embedder(OnnxBackbone(uint8_model), card)
    list(check_preparation(embedder, faces, progress=lambda *call: calls.append(call)))
    assert calls == [(1, 2), (2, 2)]


def test_only_the_color_order_is_asked_for_if_only_it_is_wrong(
    uint8_model: Path, faces: SyntheticFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding(
        fault="wrong_color_order", severity="serious", message="better", remedy="import it again"
    )
    monkeypatch.setattr("margrave.doctor.model.check_collapse", lambda *_: [])
    monkeypatch.setattr("margrave.doctor.model.check_preparation", lambda *_: iter([wrong]))
    findings = examine_model(uint8_model, faces, options=ImportOptions())
    (hint,) = [finding for finding in findings if finding.fault == "likely_preparation"]
    assert hint.remedy == "give --color-order to margrave doctor, and to margrave import"
