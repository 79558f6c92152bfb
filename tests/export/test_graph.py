"""Every kind of backbone gives torch's embeddings as ONNX, at every batch and in every runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from margrave import backbones
from margrave.backbones import BACKBONES
from margrave.export import write_graph
from margrave.models import RUNTIMES, ModelCard, open_model

TINY = {"embedding_size": 16, "image_size": 32}
CASES = {
    "iresnet": {
        "kind": "iresnet",
        "block_counts": (1, 1, 1, 1),
        "channels": (8, 8, 16, 16),
        "activation": "leaky_relu",
    },
    "bottleneck": {
        "kind": "iresnet",
        "block_counts": (1, 1, 1, 1),
        "channels": (16, 16, 32, 32),
        "block": "bottleneck",
        "channel_gates": True,
        "shortcut": "subsample",
        "stem_stride": 2,
        "feature_affine": "full",
        "dropout": 0.4,
    },
    "mobilefacenet": {"kind": "mobilefacenet", "block_counts": (1, 1, 1, 1), "width_multiplier": 1},
    "vit": {"kind": "vit", "width": 16, "depth": 2, "attention_heads": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_torchs(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = backbones.create({**CASES[case], **TINY})
    with torch.no_grad():
        network(torch.randn(8, 3, 32, 32))
    network.eval()
    path = tmp_path / "model.onnx"
    write_graph(network, ModelCard(backbone={"kind": "onnx"}, image_size=32), path)
    for runtime in RUNTIMES:
        exported = open_model(path, device="cpu", runtime=runtime).backbone
        for batch in (1, 3, 32):
            images = torch.randn(batch, 3, 32, 32)
            with torch.no_grad():
                expected, given = network(images).double(), exported(images).double()
            cosine = torch.cosine_similarity(given, expected)
            norms = given.norm(dim=1) / expected.norm(dim=1)
            assert cosine.min() >= 0.99999, (runtime, batch)
            assert (norms - 1).abs().max() <= 1e-5, (runtime, batch)


def test_every_registered_backbone_is_of_a_tested_kind() -> None:
    with torch.device("meta"):
        # Other tests of this process register backbones of their own.
        kinds = {
            kind
            for kind in (type(backbones.create({"kind": name})) for name in BACKBONES)
            if kind.__module__.startswith("margrave.")
        }
        tested = {type(backbones.create({**case, **TINY})) for case in CASES.values()}
    assert kinds == tested


def test_no_traces_of_this_machine_are_in_the_file(exported: Path) -> None:
    assert b".py" not in exported.read_bytes()
    graph = onnx.load(str(exported)).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class _Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(2, 3))
        return mean if float(mean.sum()) > 0 else -mean


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=32)
    with pytest.raises(ValueError, match=r"_Branching cannot be exported to ONNX .*control flow"):
        write_graph(_Branching(), card, tmp_path / "model.onnx")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'margrave\[export\]'"):
        write_graph(nn.Identity(), ModelCard(backbone={"kind": "onnx"}), tmp_path / "model.onnx")
