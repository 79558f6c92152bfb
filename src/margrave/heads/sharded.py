"""A head whose classes are sharded over ranks."""

from __future__ import annotations

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS


@HEADS.register("sharded")
class ShardedHead(ChunkedHead):
    """A chunked head in which each rank owns a contiguous range of classes.

    Every rank passes its own batch, of any size, and gets the loss of its samples. The head gathers
    the embeddings of all ranks. Each rank computes the target cosines and the log-sum-exp of the
    classes that it owns; the ranks then combine both. Statistics use the samples of all ranks; each
    rank stores those of its own classes. With one rank, the head equals the chunked head.

    Do not wrap the head in DDP. With ``reduction="mean"``, a rank's loss is the sum over its own
    samples, multiplied by ``ranks / samples``, where `samples` counts the samples of all ranks.
    When DDP averages the backbone's gradients over ranks, the result is the gradient of the mean
    loss over all samples. DDP does not average the gradient of the centers, so the head divides it
    by `ranks` (`margrave.heads.cross_entropy.gradient_share`). With ``reduction="none"``, multiply
    the sum of the losses by ``ranks / samples`` yourself.

    Args:
        *: see `ChunkedHead`; `num_classes` is the number of classes over all ranks.

    Source: ArcFace, arXiv 1801.07698, section 3.3, and Partial FC, generalized to any loss.

    >>> import torch
    >>> head = ShardedHead("curricularface", num_classes=10, embedding_size=4)
    >>> head(torch.randn(3, 4), torch.arange(3)).shape
    torch.Size([])
    """

    sharded = True
