"""Shards a network's parameters over ranks with FSDP2, and gathers them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

MIN_GROUP_PARAMETERS = 2**18
"""Blocks with at least this many parameters are gathered separately, just before their use."""


def shard_parameters(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard every parameter over the mesh's data-parallel dimension, in place; return the network.

    In the forward and the backward pass, the large blocks in the network's ``Sequential`` and
    ``ModuleList`` children are gathered one at a time, and all other parameters together.
    """
    from torch.distributed.fsdp import fully_shard

    data_parallel = mesh["data_parallel"]
    for block in sharded_blocks(network):
        fully_shard(block, mesh=data_parallel)
    fully_shard(network, mesh=data_parallel)
    return network


def sharded_blocks(network: nn.Module) -> list[nn.Module]:
    """The large blocks that are gathered one at a time, see `shard_parameters`."""
    return [
        block
        for sequence in network.children()
        if isinstance(sequence, nn.Sequential | nn.ModuleList)
        for block in sequence
        if sum(parameter.numel() for parameter in block.parameters()) >= MIN_GROUP_PARAMETERS
    ]


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that FSDP has sharded; return any other tensor unchanged.

    Every rank must call this function.

    >>> import torch
    >>> full_tensor(torch.tensor(1.0))
    tensor(1.)
    """
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
