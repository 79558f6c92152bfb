"""A module is filled wholly or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margrave.models import load_strictly


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_a_module_is_filled_with_copies():
    state = network().state_dict()
    module = network()
    load_strictly(module, state, "example.pth")
    module[0].weight.detach().zero_()
    assert state["0.weight"].abs().sum() > 0
    assert torch.equal(module[0].bias, state["0.bias"])


def test_a_module_on_the_meta_device_is_filled():
    state = {key: tensor.half() for key, tensor in network().state_dict().items()}
    with torch.device("meta"):
        module = network()
    module[1].weight.requires_grad_(False)
    load_strictly(module, state, "example.pth")
    assert module[0].weight.dtype == torch.float32
    assert not module[1].weight.requires_grad and module[1].bias.requires_grad
    assert module.eval()(torch.zeros(1, 2)).isfinite().all()


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_counters_of_batches_may_be_missing(device):
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    with torch.device(device):
        module = network()
    load_strictly(module, state, "example.pth")
    assert module[1].num_batches_tracked.item() == 0


def test_a_state_that_does_not_fit_changes_nothing():
    module = network()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    state = network().state_dict()
    state["0.weight"] = torch.zeros(3, 5)
    state["2.weight"] = torch.zeros(1)
    del state["1.bias"]
    with pytest.raises(ValueError) as caught:
        load_strictly(module, state, "example.pth", {"1": "norm"})
    assert str(caught.value).splitlines() == [
        "example.pth does not fit Sequential",
        "  1 missing: norm.bias (in the module: 1.bias)",
        "  1 unexpected: 2.weight",
        "  1 of the wrong shape: 0.weight is (3, 5), expected (3, 2)",
    ]
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_long_lists_are_cut():
    state = {f"extra.{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(ValueError, match=r"20 unexpected: .*extra\.7 and 12 more"):
        load_strictly(nn.Identity(), state, "example.pth")


def test_tensors_that_cannot_be_copied_are_named():
    odd = {
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.ones(2, 2, device="meta"),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
    }
    for weight in odd.values():
        module = nn.Linear(2, 2, bias=False)
        before = module.weight.clone()
        with pytest.raises(ValueError, match="1 sparse, quantized, complex or without data: w"):
            load_strictly(module, {"weight": weight}, "odd.pth")
        assert torch.equal(module.weight, before)
