"""Networks with parameters that a step does not use, trained by several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from margrave.training import read_metrics
from margrave.training.unused_parameters import (
    check_gradients,
    explain_ddp_errors,
    unused_parameters,
)

NETWORKS = '''
import torch
from torch import nn


class Spare(nn.Module):
    """Has a layer that no step uses."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=4)
        self.last = nn.Linear(6 * 64, 8)
        self.spare = nn.Linear(4, 4)

    def forward(self, images):
        return self.last(self.first(images).tanh().flatten(1))


class LayerDrop(Spare):
    """Leaves a layer out in some steps, by itself on each rank."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(8, 8)

    def forward(self, images):
        embeddings = super().forward(images)
        # By what the images are, so that trials and ranks differ.
        if self.training and images.double().sum().sin() > 0:
            return embeddings
        return embeddings + self.spare(embeddings)
'''


CANNOT_BE_TORN_DOWN = """
import atexit, os

if "RANK" in os.environ:
    atexit.register(os.abort)
"""


def train(folder: Path, network: str, *settings: str, devices: int = 2, code: int = 0) -> str:
    end = CANNOT_BE_TORN_DOWN if code else ""
    (folder / "networks.py").write_text(NETWORKS + end)
    faces = {"num_identities": 6, "images_per_identity": 8, "image_size": 32}
    config = {
        "data": {"train": {"kind": "synthetic", **faces}, "image_size": 32, "augmentation": {}},
        "backbone": {"kind": f"networks:{network}"},
        "loss": {"kind": "arcface", "scale": 8},
        "training": {
            "epochs": 3,
            "batch_size": 16,
            "log_steps": 1,
            "precision": "float64",
            "weight_average": 0.9,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    output = folder / f"run on {devices}"
    words = ["recipe.yaml", "--output", str(output), "--devices", str(devices)]
    done = subprocess.run(
        [sys.executable, "-m", "margrave", "train", *words, *(f"--set={one}" for one in settings)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def losses(folder: Path) -> list[float]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "training"]


def test_an_unused_layer_is_noticed_and_trains_as_in_one_process(tmp_path: Path) -> None:
    output = train(tmp_path, "Spare")
    assert "leaves 2 parameters unused (spare.weight, spare.bias)" in output
    train(tmp_path, "Spare", devices=1)
    one, two = losses(tmp_path / "run on 1"), losses(tmp_path / "run on 2")
    assert len(one) == 9
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-8, atol=1e-8)


def test_a_layer_that_some_steps_leave_out_is_named_with_the_remedy(tmp_path: Path) -> None:
    settings = "training.find_unused_parameters=false"
    output = train(tmp_path, "LayerDrop", settings, code=1)
    assert "without a gradient: spare.weight, spare.bias; with several processes" in output
    assert "training.find_unused_parameters=true" in output


def test_such_a_network_trains_with_the_remedy(tmp_path: Path) -> None:
    train(tmp_path, "LayerDrop", "training.find_unused_parameters=true")
    assert len(losses(tmp_path / "run on 2")) == 9


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.drop = nn.Dropout()
        self.spare = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(images)).mean((2, 3))


def test_a_trial_leaves_no_trace() -> None:
    network = Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    names = unused_parameters(network, 4)
    assert names == [f"spare.{number}.{kind}" for number in range(4) for kind in ("weight", "bias")]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_messages_name_some_parameters() -> None:
    network = Net()
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"spare\.0\.weight, .* spare\.2\.weight and 3 more; with"):
        check_gradients(network, network.parameters())
    message = (
        "Expected to have finished reduction in the prior iteration before starting a new one. …"
        "\nParameter indices which did not receive grad for rank 1: 3 5\n In addition, …"
    )
    with (
        pytest.raises(
            ValueError, match=r"without a gradient: spare\.0\.bias, spare\.1\.bias; with"
        ),
        explain_ddp_errors(network),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="something else"), explain_ddp_errors(network):
        raise RuntimeError("something else")
