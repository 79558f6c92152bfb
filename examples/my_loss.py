"""A loss of one's own: ``margrave train --loss my_loss:HalfwayFace``, run from this folder."""

from dataclasses import dataclass

from torch import Tensor

from margrave.losses import Context, Loss
from margrave.losses.angles import add_angle


@dataclass(frozen=True, kw_only=True)
class HalfwayFace(Loss):
    """Half of ArcFace's margin and half of CosFace's: T = ½[cos(θ + m) + cosθ − m].

    >>> import torch
    >>> HalfwayFace(margin=0.0).target(torch.tensor([0.5]), Context())
    tensor([0.5000])
    """

    margin: float = 0.3

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        return (add_angle(cosine, self.margin, "monotone") + cosine - self.margin) / 2
