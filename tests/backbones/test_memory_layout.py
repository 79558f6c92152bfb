"""Networks whose convolutions torch gets wrong in channels-last layout are kept from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from margrave import backbones
from margrave.backbones.memory_layout import channels_last_is_safe, memory_format
from margrave.data import normalize

AFFECTED = """
data:
  train: {kind: synthetic, num_identities: 7, images_per_identity: 5, image_size: 32}
  image_size: 32
backbone:
  {kind: iresnet, block_counts: [1, 1, 1, 1], channels: [4, 4, 8, 8], embedding_size: 8}
training: {epochs: 3, batch_size: 16, threads: 1, log_steps: 1}
"""


class CustomLayer(nn.Module):
    """A convolution that is no module of torch's."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, inputs, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(images, self.kernel, stride=2)


@pytest.mark.parametrize(
    ("network", "safe"),
    [
        (nn.Conv2d(4, 8, 1, 2), False),
        (nn.Conv2d(7, 8, 1, (1, 2)), False),
        (nn.Conv2d(4, 8, (1, 3), 3), False),
        (nn.Conv2d(16, 16, 1, 2, groups=4), False),
        (nn.ConvTranspose2d(8, 4, 1, 2), False),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(6, 8, 1, 2))), False),
        (CustomLayer(4), False),
        (CustomLayer(8), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(8, 8, 1, 2), True),
        (nn.Conv2d(3, 8, 3, 2), True),
        (nn.Conv2d(8, 8, 3, 2, groups=8), True),
    ],
)
def test_which_networks_are_affected(network: nn.Module, safe: bool) -> None:
    assert channels_last_is_safe(network) is safe


@pytest.mark.parametrize("kind", ["iresnet50", "mbf", "vit_t"])
def test_published_backbones_run_channels_last(kind: str) -> None:
    with torch.device("meta"):
        network = backbones.create({"kind": kind})
    assert memory_format(network) == torch.channels_last
    assert memory_format(network, channels_last=False) == torch.contiguous_format


def test_contiguous_images_for_an_affected_network() -> None:
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    images = normalize(pixels)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.contiguous(memory_format=memory_format(CustomLayer(3))).is_contiguous()


def test_an_affected_network_trains(tmp_path: Path) -> None:
    # The faulty code is for AVX2 alone; processors with AVX-512 run it only on request.
    (tmp_path / "affected.yaml").write_text(AFFECTED)
    avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-m", "margrave", "train", "affected.yaml", "--output", "run"],
        cwd=tmp_path,
        env={**os.environ, **avx2},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "channels_last: true" in (tmp_path / "run" / "config.yaml").read_text()
