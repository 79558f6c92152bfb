"""A head whose classes are sharded over ranks."""

from __future__ import annotations

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS


@HEADS.register("sharded")
class ShardedHead(ChunkedHead):
    """A chunked head in which each rank owns a contiguous block of classes.

    Every rank passes its own batch, of any size, and gets the loss of its samples. Embeddings are
    gathered. Each rank computes the cosines of the targets it owns (all-reduced) and the
    log-sum-exp of its own negatives (reduced). Statistics use the batch of all ranks; per-class
    statistics are stored by the class's owner. With one rank it equals the chunked head.

    Do not wrap the head in DDP. With ``reduction="mean"`` a rank's loss is ranks/samples times the
    sum over its samples, so that averaging the backbone's gradients over ranks (DDP) gives those of
    the mean over all samples. The head corrects its own gradient for this factor
    (`margrave.heads.cross_entropy.gradient_share`). With ``reduction="none"``, apply the factor
    yourself.

    Args:
        *: see `ChunkedHead`; `num_classes` counts the classes of all ranks.

    Source: ArcFace, arXiv 1801.07698, section 3.3, and Partial FC, generalized to any loss.

    >>> import torch
    >>> head = ShardedHead("curricularface", num_classes=10, embedding_size=4)
    >>> head(torch.randn(3, 4), torch.arange(3)).shape
    torch.Size([])
    """

    sharded = True
