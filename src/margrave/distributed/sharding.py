"""A network whose parameters are split over ranks (FSDP2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

OWN_GROUP_FROM = 2**18
"""Parameters from which a block is gathered by itself, when its turn comes."""


def shard_parameters(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Split every parameter over the ranks of a mesh's data-parallel dimension, in place.

    The blocks of its sequences are gathered one at a time, forward and backward.
    """
    from torch.distributed.fsdp import fully_shard

    over = mesh["data_parallel"]
    for sequence in network.children():
        for block in sequence if isinstance(sequence, nn.Sequential | nn.ModuleList) else ():
            if sum(parameter.numel() for parameter in block.parameters()) >= OWN_GROUP_FROM:
                fully_shard(block, mesh=over)
    fully_shard(network, mesh=over)
    return network


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be split over ranks, as a whole; every rank calls it.

    >>> import torch
    >>> whole(torch.tensor(1.0))
    tensor(1.)
    """
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
