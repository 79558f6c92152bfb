"""The averaged network follows parameters and buffers alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margrave.backbones import MomentumEncoder


def test_batch_norm_buffers_follow() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    encoder = MomentumEncoder(network, momentum=0.9)
    network.train()(torch.randn(32, 4) * 5 + 3)
    encoder.update(network)
    expected = 0.1 * network[1].running_mean
    torch.testing.assert_close(encoder.average[1].running_mean, expected)
    assert encoder.average[1].num_batches_tracked == network[1].num_batches_tracked


def test_it_stays_in_evaluation_mode_and_without_gradient() -> None:
    encoder = MomentumEncoder(nn.BatchNorm1d(4)).train()
    assert not encoder.average.training
    assert not encoder(torch.randn(8, 4)).requires_grad
    assert encoder.average.running_mean.eq(0).all()


def test_momentum_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"momentum = 1.0 must be in \[0, 1\)"):
        MomentumEncoder(nn.Linear(1, 1), momentum=1.0)
