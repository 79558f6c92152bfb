"""Classes split over ranks."""

from __future__ import annotations

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS


@HEADS.register("sharded")
class ShardedHead(ChunkedHead):
    """The chunked head of which each rank owns a contiguous block of classes.

    Every rank gives its own batch, of any size, and gets its own samples' loss. Embeddings are
    gathered; each owner finds its targets' cosines (B numbers are all-reduced) and modulates its
    own negatives; the log-sum-exp is reduced. Statistics see the batch of all ranks, and those of
    classes live with the class's owner. In a world of one it is the chunked head.

    Keep the head outside of data-parallel wrapping. With ``reduction="mean"`` a rank's loss is
    ranks/samples times the sum over its samples, so that gradients of the backbone averaged over
    ranks (DDP) are those of the mean over all samples; the shard's own gradient already is
    (`margrave.heads.cross_entropy.gradient_share`). With ``reduction="none"`` weight the losses
    so yourself.

    Args:
        as `ChunkedHead`. `num_classes` counts the classes of all ranks.

    Source: the scheme of ArcFace, arXiv 1801.07698, section 3.3, and of Partial FC, for any loss.

    >>> import torch
    >>> head = ShardedHead("curricularface", num_classes=10, embedding_size=4)
    >>> head(torch.randn(3, 4), torch.arange(3)).shape
    torch.Size([])
    """

    splits_classes = True
