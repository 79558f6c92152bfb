"""Reads (classes, features) class centers from other projects' heads, also from sharded ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from margrave.models.contract import State

# Names of the class centers in other projects' heads. Matrices named `kernel` (AdaFace,
# CurricularFace, ElasticFace, TFace) and `W` (PyTorch Metric Learning) are (features, classes).
# Other projects use `weight`, in either orientation.
FEATURES_FIRST = ("kernel", "W")
EITHER_ORIENTATION = ("weight",)
MAX_LISTED = 8
"""Maximum number of names or ranks that a message lists."""


def head_weight(state: State, embedding_size: int) -> Tensor:
    """Return the (C, D) class centers among a head's tensors; D is ``embedding_size``.

    ``kernel`` and ``W`` are (D, C) and are transposed. ``weight`` is transposed only if its second
    dimension is not D, so a square ``weight`` is read as (C, D), InsightFace's orientation.

    Raises:
        ValueError: there is no such matrix, or its shape does not fit ``embedding_size``.

    >>> head_weight({"head.kernel": torch.zeros(4, 10)}, embedding_size=4).shape
    torch.Size([10, 4])
    """
    for leaf in (*FEATURES_FIRST, *EITHER_ORIENTATION):
        for key, tensor in state.items():
            if key.rpartition(".")[2] == leaf and tensor.dim() == 2:
                return _as_classes_first(key, tensor, embedding_size)
    names = ", ".join((*FEATURES_FIRST, *EITHER_ORIENTATION))
    raise ValueError(
        f"no class centers: expected a matrix named {names}; "
        f"found {', '.join(list(state)[:MAX_LISTED]) or 'no tensors'}"
    )


def _as_classes_first(key: str, tensor: Tensor, embedding_size: int) -> Tensor:
    features_first = key.rpartition(".")[2] in FEATURES_FIRST
    if not features_first and tensor.shape[1] == embedding_size:
        return tensor.clone()
    if tensor.shape[0] == embedding_size:
        return tensor.T.clone(memory_format=torch.contiguous_format)
    raise ValueError(
        f"{key} has shape {tuple(tensor.shape)}, "
        f"must be (classes, {embedding_size}) or ({embedding_size}, classes)"
    )


def merge_head_shards(shards: Mapping[str, State], embedding_size: int) -> Tensor:
    """Concatenate the (C, D) class centers of a head that was saved in one file per rank.

    The rank is the last number in a file's name (``checkpoint_gpu_10.pt``,
    ``rank_3_softmax_weight.pt``). With C classes on W ranks, rank r must hold C // W classes, plus
    one if r < C % W.

    Args:
        shards: file name -> the head's tensors in that file.
        embedding_size: D, the number of features.

    Raises:
        ValueError: a file name contains no rank, a rank is missing or occurs twice, or a shard has
            a wrong size.

    >>> first, second = torch.zeros(2, 4), torch.ones(1, 4)
    >>> merge_head_shards({"gpu_1": {"weight": second}, "gpu_0": {"weight": first}}, 4)[:, 0]
    tensor([0., 0., 1.])
    """
    by_rank: dict[int, tuple[str, State]] = {}
    for name, state in shards.items():
        rank = _parse_rank(name)
        if rank in by_rank:
            raise ValueError(f"{by_rank[rank][0]} and {name} are both rank {rank}; keep one")
        by_rank[rank] = (name, state)
    # W distinct ranks are 0 … W - 1 exactly if the largest is below W.
    if max(by_rank, default=0) >= len(by_rank):
        # Without shards, rank 0 is missing.
        ranks = range(max(by_rank, default=0) + 1)
        missing = itertools.islice((rank for rank in ranks if rank not in by_rank), MAX_LISTED)
        raise ValueError(
            f"head shards of ranks {list(missing)} are missing; found ranks "
            f"{sorted(by_rank)[:MAX_LISTED]}"
        )
    ordered = [by_rank[rank] for rank in sorted(by_rank)]
    center_shards = [head_weight(state, embedding_size) for _, state in ordered]
    _check_shard_sizes([name for name, _ in ordered], [len(shard) for shard in center_shards])
    return torch.cat(center_shards)


def _parse_rank(name: str) -> int:
    numbers = re.findall(r"\d+", name.replace("\\", "/").rpartition("/")[2])
    if not numbers:
        raise ValueError(
            f"{name}: no rank in the file name; expected a name like checkpoint_gpu_0.pt"
        )
    return int(numbers[-1])


def _check_shard_sizes(names: Sequence[str], sizes: Sequence[int]) -> None:
    quotient, remainder = divmod(sum(sizes), len(sizes))
    for rank, (name, size) in enumerate(zip(names, sizes, strict=True)):
        expected = quotient + (rank < remainder)
        if size != expected:
            raise ValueError(
                f"{name} holds {size} classes, expected {expected}: the head has {sum(sizes)} "
                f"classes on {len(sizes)} ranks"
            )
