"""One loss's target with another's negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("composed")
@dataclass(frozen=True, kw_only=True)
class Composed(Loss):
    """The target of one loss and the negatives of another.

    T and the penalty are those of `target_loss`, N_j those of `negatives_loss`, whose hard
    negatives are still measured against its own margin; the scale is the target's unless given. By
    default a quality-adaptive target with
    curricular negatives. In a recipe either is written ``{kind: …}``.

    Source: ours; it follows from the contract.

    >>> Composed(target_loss={"kind": "cosface"}).target_loss
    CosFace(scale=64.0, straight_through=False, margin=0.35, easy_margin=False)
    """

    scale: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    target_loss: Any = None
    negatives_loss: Any = None

    def __post_init__(self) -> None:
        for field, default in (("target_loss", "adaface"), ("negatives_loss", "curricularface")):
            part = getattr(self, field) or LOSSES.get(default)()
            part = LOSSES.create(part) if isinstance(part, Mapping) else part
            object.__setattr__(self, field, part)
            self.require(field, isinstance(part, Loss), "a loss or a mapping with its kind")
            self.require(field, part.normalized, "a loss of cosines; softmax has none")
        if self.scale is None:
            object.__setattr__(self, "scale", self.target_loss.scale)
        super().__post_init__()

    @property
    def needs(self) -> dict[str, Mapping[str, Any]]:
        needs = dict(self.target_loss.needs)
        for name, settings in self.negatives_loss.needs.items():
            if needs.setdefault(name, settings) != settings:
                raise ValueError(
                    f"target and negatives both read the statistic {name!r} but with different "
                    f"settings, {dict(needs[name])} and {dict(settings)}; give both the same"
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

    def penalty(self, context: Context) -> Tensor | None:
        return self.target_loss.penalty(context)


def compose(*, target: Loss, negatives: Loss, scale: float | None = None) -> Composed:
    """A loss with one's target and another's negatives, at the target's scale unless told.

    >>> from margrave.losses import ArcFace, MVSoftmax
    >>> compose(target=ArcFace(scale=30), negatives=MVSoftmax()).scale
    30
    """
    return Composed(scale=scale, target_loss=target, negatives_loss=negatives)
