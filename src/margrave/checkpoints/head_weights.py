"""Class centres of other projects' heads, whole or in shards, as (classes, features)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from margrave.checkpoints.contract import State

# Where heads keep them: AdaFace, CurricularFace, ElasticFace and TFace write kernel, PyTorch
# Metric Learning W, both (features, classes); the others weight, either way round.
FEATURES_FIRST = ("kernel", "W")
EITHER_WAY = ("weight",)
SHOWN = 8


def head_weight(state: State, embedding_size: int) -> Tensor:
    """The (C, D) class centres among a head's tensors, by name and shape.

    ``kernel`` and ``W`` are (D, C) and transposed. ``weight`` is transposed only where its
    second dimension is not D: square ones are taken for (C, D), as InsightFace writes them.

    Raises:
        ValueError: no such tensor, or neither of its dimensions is ``embedding_size``.

    >>> head_weight({"head.kernel": torch.zeros(4, 10)}, embedding_size=4).shape
    torch.Size([10, 4])
    """
    for leaf in (*FEATURES_FIRST, *EITHER_WAY):
        for key, tensor in state.items():
            if key.rpartition(".")[2] == leaf and tensor.dim() == 2:
                return _classes_first(key, tensor, embedding_size)
    raise ValueError(
        f"no class centres: looked for a matrix named {', '.join((*FEATURES_FIRST, *EITHER_WAY))} "
        f"among {', '.join(list(state)[:8]) or 'no tensors'}"
    )


def _classes_first(key: str, tensor: Tensor, embedding_size: int) -> Tensor:
    features_first = key.rpartition(".")[2] in FEATURES_FIRST
    if not features_first and tensor.shape[1] == embedding_size:
        return tensor.clone()
    if tensor.shape[0] == embedding_size:
        return tensor.T.clone(memory_format=torch.contiguous_format)
    raise ValueError(
        f"{key} has shape {tuple(tensor.shape)}, "
        f"neither (classes, {embedding_size}) nor (features, classes)"
    )


def merge_head_shards(shards: Mapping[str, State], embedding_size: int) -> Tensor:
    """All (C, D) class centres from one head state per rank, by file name.

    The rank is the last number in the file's name (``checkpoint_gpu_10.pt``,
    ``rank_3_softmax_weight.pt``), whatever the order given. Of C classes on W ranks, rank r owns
    C // W, and one more while r < C % W.

    Raises:
        ValueError: a name without a rank, a missing or double rank, or a shard of a wrong size.

    >>> first, second = torch.zeros(2, 4), torch.ones(1, 4)
    >>> merge_head_shards({"gpu_1": {"weight": second}, "gpu_0": {"weight": first}}, 4)[:, 0]
    tensor([0., 0., 1.])
    """
    by_rank: dict[int, tuple[str, State]] = {}
    for name, state in shards.items():
        rank = _rank(name)
        if rank in by_rank:
            raise ValueError(f"{by_rank[rank][0]} and {name} are both rank {rank}; keep one")
        by_rank[rank] = (name, state)
    if max(by_rank, default=0) >= len(by_rank):
        # One rank at least is missing among as many as there are files.
        absent = [rank for rank in range(max(len(by_rank), 1)) if rank not in by_rank]
        raise ValueError(
            f"head shards of ranks {absent[:SHOWN]} are missing; found {sorted(by_rank)[:SHOWN]}"
        )
    ordered = [by_rank[rank] for rank in sorted(by_rank)]
    parts = [head_weight(state, embedding_size) for _, state in ordered]
    _check_sizes([name for name, _ in ordered], [len(part) for part in parts])
    return torch.cat(parts)


def _rank(name: str) -> int:
    numbers = re.findall(r"\d+", name.replace("\\", "/").rpartition("/")[2])
    if not numbers:
        raise ValueError(f"{name}: no rank in the name, expected one like checkpoint_gpu_0.pt")
    return int(numbers[-1])


def _check_sizes(names: Sequence[str], sizes: Sequence[int]) -> None:
    share, rest = divmod(sum(sizes), len(sizes))
    for rank, (name, size) in enumerate(zip(names, sizes, strict=True)):
        expected = share + (rank < rest)
        if size != expected:
            raise ValueError(
                f"{name} holds {size} classes, expected {expected} "
                f"of {sum(sizes)} on {len(sizes)} ranks"
            )
