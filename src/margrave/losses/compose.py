"""Combine the target of one loss with the negatives of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from margrave.losses.contract import LOSSES, Context, Loss, SigmoidTerms

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("composed")
@dataclass(frozen=True, kw_only=True)
class Composed(Loss):
    """The target of one loss and the negatives of another.

    `target_loss` computes T and the penalty, and determines how T and N_j are combined into a loss
    (softmax or a sigmoid per class). `negatives_loss` computes N_j; its own margin decides which
    negatives are hard. The default is AdaFace's target with CurricularFace's negatives. In a
    recipe, write each of the two losses as ``{kind: …}``.

    Source: Margrave; the separate methods for T and N_j in `Loss` allow the combination.

    Attributes:
        scale: s; by default that of `target_loss`.
        target_loss: the loss of the target.
        negatives_loss: the loss of the negatives.

    >>> Composed(target_loss={"kind": "cosface"}).target_loss.margin
    0.35
    """

    scale: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    target_loss: Any = None
    negatives_loss: Any = None

    def __post_init__(self) -> None:
        for field, default in (("target_loss", "adaface"), ("negatives_loss", "curricularface")):
            loss = getattr(self, field) or LOSSES.get(default)()
            loss = LOSSES.create(loss) if isinstance(loss, Mapping) else loss
            object.__setattr__(self, field, loss)
            self.require(field, isinstance(loss, Loss), "a loss or a mapping with its kind")
            self.require(field, loss.normalized, "a loss of cosines, not softmax")
            self.require(field, not loss.contains_scale, "a loss that does not adapt its scale")
        if self.ignore_negatives_above is None:
            limit = self.negatives_loss.ignore_negatives_above
            object.__setattr__(self, "ignore_negatives_above", limit)
        if self.scale is None:
            object.__setattr__(self, "scale", self.target_loss.scale)
        super().__post_init__()

    @property
    def needs(self) -> dict[str, Mapping[str, Any]]:
        needs = dict(self.target_loss.needs)
        for name, settings in self.negatives_loss.needs.items():
            if needs.setdefault(name, settings) != settings:
                raise ValueError(
                    f"target_loss and negatives_loss use the statistic {name!r} with different "
                    f"settings, {dict(needs[name])} and {dict(settings)}; make them equal"
                )
        return needs

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        return self.target_loss.modify_target(cosine, context)

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        return self.negatives_loss.negatives(cosines, target_cosine, context)

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None] | None:
        return self.negatives_loss.negatives_and_slope(cosines, target_cosine, context)

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        return self.negatives_loss.hard_negatives(cosines, target_cosine, context)

    def sigmoid_terms(self, num_classes: int) -> SigmoidTerms | None:
        return self.target_loss.sigmoid_terms(num_classes)

    def modify_cross_entropy(
        self, cross_entropy: Tensor, gather_cross_entropy: Callable[[], Tensor]
    ) -> Tensor:
        return self.target_loss.modify_cross_entropy(cross_entropy, gather_cross_entropy)

    def penalty(self, context: Context) -> Tensor | None:
        return self.target_loss.penalty(context)


def compose(*, target: Loss, negatives: Loss, scale: float | None = None) -> Composed:
    """Combine the target of one loss with the negatives of another, see `Composed`.

    >>> from margrave.losses import ArcFace, MVSoftmax
    >>> compose(target=ArcFace(scale=30), negatives=MVSoftmax()).scale
    30
    """
    return Composed(scale=scale, target_loss=target, negatives_loss=negatives)
