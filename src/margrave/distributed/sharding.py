"""Shards a network's parameters over ranks (FSDP2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

MIN_GROUP_PARAMETERS = 2**18
"""A block with at least this many parameters is gathered on its own, just before it is used."""


def shard_parameters(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard every parameter over the mesh's data-parallel dimension, in place.

    The blocks of ``Sequential`` and ``ModuleList`` children are gathered one at a time, in the
    forward and the backward pass.
    """
    from torch.distributed.fsdp import fully_shard

    ranks = mesh["data_parallel"]
    for sequence in network.children():
        for block in sequence if isinstance(sequence, nn.Sequential | nn.ModuleList) else ():
            if sum(parameter.numel() for parameter in block.parameters()) >= MIN_GROUP_PARAMETERS:
                fully_shard(block, mesh=ranks)
    fully_shard(network, mesh=ranks)
    return network


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over ranks; every rank must call it.

    >>> import torch
    >>> full_tensor(torch.tensor(1.0))
    tensor(1.)
    """
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
