"""Functions of angles given by their cosines; values and gradients are finite at cosθ = ±1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


BeyondPi = Literal["monotone", "clip", "none"]
"""How to compute cos(θ + m) where θ + m > π, see `add_angle`."""

BaseMargin = Literal["none", "cosine", "angular"]
"""No margin, CosFace's cosθ − m, or ArcFace's cos(θ + m)."""


def sine(cosine: Tensor) -> Tensor:
    """sin θ from cos θ, at least √eps of the dtype, so that its slope is finite at cos θ = ±1.

    >>> import torch
    >>> sine(torch.tensor([0.6, 1.0])) > 0
    tensor([True, True])
    """
    return (1 - cosine.square()).clamp_min(_machine_epsilon(cosine)).sqrt()


def arccosine(cosine: Tensor, epsilon: float | None = None) -> Tensor:
    """θ from cos θ clamped to ±(1 − epsilon); epsilon is the dtype's machine epsilon by default.

    If the dtype would round 1 − epsilon to 1, where the slope is infinite, epsilon is raised to the
    dtype's smallest step below 1.

    >>> import torch
    >>> cosine = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    >>> arccosine(cosine, 1e-4).backward()
    >>> bool(torch.isfinite(cosine.grad))
    True
    """
    machine_epsilon = _machine_epsilon(cosine)
    # The largest number below 1 is 1 − machine_epsilon / 2.
    limit = 1 - (machine_epsilon if epsilon is None else max(epsilon, machine_epsilon / 2))
    return cosine.clamp(-limit, limit).arccos()


def above_mask(cosines: Tensor, threshold: Tensor) -> Tensor:
    """A (B, K) mask, 1 where a cosine exceeds its sample's threshold (B,), otherwise 0.

    The mask has the cosines' dtype: CPUs multiply by it several times faster than by a bool mask.

    >>> import torch
    >>> above_mask(torch.tensor([[0.5, 0.1]]), torch.tensor([0.3]))
    tensor([[1., 0.]])
    """
    import torch

    if torch.compiler.is_compiling():
        return (cosines.detach() > threshold.detach()[:, None]).to(cosines.dtype)
    exceeds = torch.empty_like(cosines, requires_grad=False)
    return torch.gt(cosines.detach(), threshold.detach()[:, None], out=exceeds)


def rotate(cosine: Tensor, angle: float | Tensor) -> Tensor:
    """cos(θ + angle) = cosθ·cos(angle) − sinθ·sin(angle), without a special rule beyond π."""
    angle = _as_tensor(angle, cosine)
    return cosine * angle.cos() - sine(cosine) * angle.sin()


def add_angle(
    cosine: Tensor, margin: float | Tensor, beyond_pi: BeyondPi, epsilon: float = 1e-4
) -> Tensor:
    """cos(θ + m) for a margin m, with a rule for θ + m > π.

    - ``monotone``: cosθ − m·sin(m) beyond π, so the result keeps decreasing with θ (code of the
      authors of ArcFace and CurricularFace).
    - ``clip``: clips θ + m to [ε, π − ε] and cosθ to ±(1 − ε), without gradient outside (AdaFace).
    - ``none``: cos(θ + m) unchanged, which increases again beyond π (InsightFace).

    Args:
        cosine: (B,) cosθ.
        margin: m in radians, a number or (B,).
        beyond_pi: the rule for θ + m > π.
        epsilon: ε of ``clip``, for the angle in radians and for the cosine.

    >>> import torch
    >>> add_angle(torch.tensor([1.0, -1.0]), math.pi / 2, "none").round(decimals=3).abs()
    tensor([0., 0.])
    """
    if beyond_pi == "clip":
        return (arccosine(cosine, epsilon) + margin).clamp(epsilon, math.pi - epsilon).cos()
    rotated = rotate(cosine, margin)
    if beyond_pi == "none":
        return rotated
    margin = _as_tensor(margin, cosine)
    return rotated.where(cosine > -margin.cos(), cosine - margin * margin.sin())


def base_margin(cosine: Tensor, margin: float, base: BaseMargin) -> Tensor:
    """Apply a base margin: cosθ (none), cosθ − m (cosine) or cos(θ + m) (angular)."""
    if base == "none":
        return cosine
    return cosine - margin if base == "cosine" else rotate(cosine, margin)


def _machine_epsilon(cosine: Tensor) -> float:
    import torch

    return torch.finfo(cosine.dtype).eps


def _as_tensor(value: float | Tensor, cosine: Tensor) -> Tensor:
    """The value as a tensor with the dtype and on the device of `cosine`.

    A number is written directly on the device, because a copy would make the host wait.
    """
    return cosine.new_full((), value) if isinstance(value, int | float) else value.to(cosine)
