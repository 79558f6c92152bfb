"""Small models with thresholds, and folders of synthetic faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from margrave import backbones
from margrave.data import normalize, open_source
from margrave.export import export_model, exporting
from margrave.models import ModelCard, OperatingPoint, ScoreReference, save_model
from margrave.synthetic import SyntheticFaces

SMALL = {
    "kind": "mobilefacenet",
    "block_counts": [1, 1, 1, 1],
    "width_multiplier": 1,
    "embedding_size": 32,
    "image_size": 32,
}
MEAN, STD = (0.4, 0.5, 0.6), 0.25
POINTS = (
    OperatingPoint(far=0.1, threshold=0.3, flips=True),
    OperatingPoint(far=1e-4, threshold=0.6, flips=True),
)


def write_model(path: Path, spec: Mapping[str, Any] = SMALL) -> Path:
    """A network whose batch norms have seen faces, so that these differ, with two thresholds."""
    torch.manual_seed(0)
    network = backbones.create(spec)
    size = int(spec["image_size"])
    faces = SyntheticFaces(num_identities=16, images_per_identity=2, image_size=size)
    pixels = np.stack([faces.read(index) for index in range(32)]).transpose(0, 3, 1, 2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(normalize(torch.from_numpy(pixels), MEAN, STD))
    card = ModelCard(
        backbone=spec,
        image_size=size,
        mean=MEAN,
        std=STD,
        fit="pad",
        source="a test",
        operating_points=POINTS,
        reference=ScoreReference(measured_on="a test"),
    )
    save_model(path, network.state_dict(), card)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file."""
    return write_model(tmp_path_factory.mktemp("export") / "model.safetensors")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 identities."""
    folder = tmp_path_factory.mktemp("faces") / "faces"
    SyntheticFaces(num_identities=20, images_per_identity=4, image_size=32).write(folder)
    return folder


@pytest.fixture(scope="session")
def exported(model: Path, faces: Path) -> Path:
    """The model as ONNX."""
    result = export_model(model, model.with_name("model.onnx"), faces=open_source(str(faces)))
    assert [parity.count for parity in result.parity] == [64, 16]
    assert all(parity.cosine > 1 - 1e-9 for parity in result.parity)
    assert [each.pairs for each in result.parity[0].decisions] == [64 * 63 // 2] * 2
    assert all(each.differing == 0 for each in result.parity[0].decisions)
    return result.path


@pytest.fixture
def as_written(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Exports write the exported graph from now on, scaled and with noise in its weights."""

    def plant(factor: float = 1.0, noise: float = 0.0) -> None:
        model = onnx.load(str(exported))
        largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        weight = torch.from_numpy(numpy_helper.to_array(largest).copy())
        weight += noise * weight.std() * torch.randn(weight.shape)
        largest.CopyFrom(numpy_helper.from_array(weight.numpy(), largest.name))
        for node in model.graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = "unscaled" if name == "embeddings" else name
        constant = numpy_helper.from_array(torch.tensor(factor).numpy(), "factor")
        model.graph.initializer.append(constant)
        scale = helper.make_node("Mul", ["unscaled", "factor"], ["embeddings"])
        model.graph.node.append(scale)
        monkeypatch.setattr(
            exporting, "write_graph", lambda network, card, path: onnx.save(model, str(path))
        )

    return plant
