"""AdaCos: softmax over cosines with a scale that adapts during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("adacos")
@dataclass(frozen=True, kw_only=True)
class AdaCos(Loss):
    """Softmax over cosines, without a margin; the scale adapts to the cosines of each batch.

    T = s̃·cosθ_y, N_j = s̃·cosθ_j, where s̃ starts at √2·log(C − 1) and falls as the classes are
    learned: see `margrave.statistics.AdaptiveScale`.

    Source: AdaCos, CVPR 2019, arXiv 1905.00292, dynamic version. The fixed version is `NormFace`
    with scale √2·log(C − 1).

    Attributes:
        scale: s, an additional factor for s̃; the paper has no such factor.

    >>> import torch
    >>> AdaCos().target(torch.tensor([0.5]), Context(adaptive_scale=torch.tensor(10.0)))
    tensor([5.])
    """

    contains_scale: ClassVar[bool] = True

    scale: float = 1.0

    @property
    def needs(self) -> Mapping[str, Mapping[str, Any]]:
        return {"adaptive_scale": {}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        return context["adaptive_scale"] * cosine

    def modify_target(self, cosine: Tensor, context: Context) -> Tensor:
        # There is no margin that straight_through could ignore; it would only remove s̃ from the
        # gradient, so it has no effect here.
        return self.target(cosine, context)

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del target_cosine
        return context["adaptive_scale"] * cosines

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        negatives = self.negatives(cosines, target_cosine, context)
        return negatives, context["adaptive_scale"].expand_as(cosines)
