"""The reference head, which computes all cosines at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from margrave.heads.batch import Batch
from margrave.heads.centers import nearest_centers
from margrave.heads.contract import HEADS, Head
from margrave.heads.embeddings import unit_and_norm
from margrave.heads.reducers import SOFTPLUS_THRESHOLD


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The intermediate values of a loss on one batch, for analysis.

    Attributes:
        loss: (B,) loss of each sample, including the penalty.
        cosines: (B, C) cosθ_j (inner products for softmax).
        target_cosine: (B,) cosθ_y.
        margin: (B,) cosθ_y − T, where T is the modified target cosine.
        hard_negatives: (B, C) bool, the negatives that the loss re-weights.
        feature_norm: (B,) ‖x‖.
    """

    loss: Tensor
    cosines: Tensor
    target_cosine: Tensor
    margin: Tensor
    hard_negatives: Tensor
    feature_norm: Tensor


def dense_cross_entropy(head: Head, batch: Batch) -> Tensor:
    """(B,) `Head.cross_entropy`, computed from all (B, C) cosines at once."""
    products = _products(head, batch)
    # Recomputed, because batch.target_cosine has no gradient.
    target_cosine = head.local_target_products(batch.unit, batch.norm, batch.labels)
    modified_target = head.loss.modify_target(target_cosine, batch.context)
    negatives = head.loss.modify_negatives(products, batch.target_cosine, batch.context)
    terms, bias = head.sigmoid_terms, head.sigmoid_bias
    if terms is not None and bias is not None:
        logits = (head.loss.scale * negatives + bias).scatter(1, batch.labels[:, None], -torch.inf)
        target_loss = functional.softplus(
            -(head.loss.scale * modified_target + bias), threshold=SOFTPLUS_THRESHOLD
        )
        negatives_loss = functional.softplus(logits, threshold=SOFTPLUS_THRESHOLD).sum(dim=1)
        return terms.target_weight * target_loss + terms.negatives_weight * negatives_loss
    modified = negatives.scatter(1, batch.labels[:, None], modified_target[:, None])
    return functional.cross_entropy(head.loss.scale * modified, batch.labels, reduction="none")


def _products(head: Head, batch: Batch) -> Tensor:
    """(B, C) cosines, or inner products plus bias."""
    if head.bias is None:
        cosines = batch.unit @ unit_and_norm(head.centers)[0].T
        return nearest_centers(cosines, head.centers_per_class)[0]
    return batch.norm[:, None] * (batch.unit @ head.weight.T) + head.bias


@HEADS.register("dense")
class DenseHead(Head):
    """A head that stores the (batch, classes) cosines; the reference for the faster heads.

    The loss is −log( e^{s·T} / (e^{s·T} + Σ_{j≠y} e^{s·N_j}) ), or a sum of one sigmoid loss per
    class, averaged over the batch. `margrave.losses.Loss` defines s, T and N.

    >>> head = DenseHead("adaface", num_classes=10, embedding_size=4)
    >>> loss = head(torch.randn(8, 4), torch.arange(8))
    >>> loss.backward()
    >>> head.weight.grad.shape
    torch.Size([10, 4])
    """

    def cross_entropy(self, batch: Batch) -> Tensor:
        return dense_cross_entropy(self, batch)

    @torch.no_grad()
    def analyze(self, embeddings: Tensor, labels: Tensor) -> Analysis:
        """Compute a batch's cosines, margins and hard negatives; the statistics stay unchanged.

        >>> head = DenseHead("sv_softmax", num_classes=10, embedding_size=4)
        >>> analysis = head.analyze(torch.randn(8, 4), torch.arange(8))
        >>> analysis.hard_negatives.shape
        torch.Size([8, 10])
        """
        was_training = self.training
        self.eval()
        try:
            with torch.autocast(embeddings.device.type, enabled=False):
                batch = self.prepare(embeddings, labels)
                products = _products(self, batch)
                hard = self.loss.hard_negatives(products, batch.target_cosine, batch.context)
                if self.loss.ignore_negatives_above is not None:
                    hard &= products <= self.loss.ignore_negatives_above
                modified_target = self.loss.modify_target(batch.target_cosine, batch.context)
                return Analysis(
                    loss=sum(self.terms(batch).values(), torch.zeros_like(batch.norm)),
                    cosines=products,
                    target_cosine=batch.target_cosine,
                    margin=batch.target_cosine - modified_target,
                    hard_negatives=hard.scatter(1, batch.labels[:, None], False),
                    feature_norm=batch.norm,
                )
        finally:
            self.train(was_training)
