"""Angles through their cosines, safe at ±1 in value and in gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


BeyondPi = Literal["monotone", "clip", "none"]
"""What becomes of cos(θ + m) where θ + m > π: see `add_angle`."""

BaseMargin = Literal["none", "cosine", "angular"]
"""No margin, CosFace's cosθ − m, or ArcFace's cos(θ + m)."""


def sine(cosine: Tensor) -> Tensor:
    """sin θ ≥ 0 from cos θ; its slope is 0 instead of infinite at the ends.

    >>> import torch
    >>> sine(torch.tensor([0.6, 1.0])) > 0
    tensor([True, True])
    """
    return (1 - cosine.square()).clamp_min(_rounding_unit(cosine)).sqrt()


def arccosine(cosine: Tensor, epsilon: float | None = None) -> Tensor:
    """θ from cos θ clamped to ±(1 − epsilon); epsilon is the dtype's rounding unit by default.

    An epsilon that the dtype rounds away is raised to its smallest step below 1, as the slope at 1
    is infinite.

    >>> import torch
    >>> cosine = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    >>> arccosine(cosine, 1e-4).backward()
    >>> bool(torch.isfinite(cosine.grad))
    True
    """
    unit = _rounding_unit(cosine)
    limit = 1 - (unit if epsilon is None else max(epsilon, unit / 2))
    return cosine.clamp(-limit, limit).arccos()


def above(cosines: Tensor, threshold: Tensor) -> Tensor:
    """(B, K) 1 where a cosine exceeds its sample's threshold (B,), else 0.

    In the cosines' own type: CPUs multiply by it several times faster than they choose by bools.

    >>> import torch
    >>> above(torch.tensor([[0.5, 0.1]]), torch.tensor([0.3]))
    tensor([[1., 0.]])
    """
    import torch

    if torch.compiler.is_compiling():
        return (cosines.detach() > threshold.detach()[:, None]).to(cosines.dtype)
    exceeds = torch.empty_like(cosines, requires_grad=False)
    return torch.gt(cosines.detach(), threshold.detach()[:, None], out=exceeds)


def rotate(cosine: Tensor, angle: float | Tensor) -> Tensor:
    """cos(θ + angle) = cosθ·cos(angle) − sinθ·sin(angle), with nothing special beyond π."""
    angle = _as_tensor(angle, cosine)
    return cosine * angle.cos() - sine(cosine) * angle.sin()


def add_angle(
    cosine: Tensor, margin: float | Tensor, beyond_pi: BeyondPi, epsilon: float = 1e-4
) -> Tensor:
    """cos(θ + margin), with a named rule where θ + margin leaves [0, π].

    - ``monotone``: cosθ − m·sin(π − m) beyond π, so T keeps falling with θ (ArcFace and
      CurricularFace authors' code).
    - ``clip``: θ + m clipped to [ε, π − ε] and cosθ to ±(1 − ε); no gradient outside (AdaFace's).
    - ``none``: cos(θ + m) as it is, rising again beyond π (InsightFace's).

    Args:
        cosine: (B,) cosθ.
        margin: m in radians, one number or (B,).
        beyond_pi: the rule.
        epsilon: ε of ``clip``, in radians.

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
    """f(m, θ): the bare margin function that support vectors are measured against."""
    if base == "none":
        return cosine
    return cosine - margin if base == "cosine" else rotate(cosine, margin)


def _rounding_unit(cosine: Tensor) -> float:
    import torch

    return torch.finfo(cosine.dtype).eps


def _as_tensor(value: float | Tensor, cosine: Tensor) -> Tensor:
    """In the type and on the device of the cosines, and made there: a copy would wait for it."""
    return cosine.new_full((), value) if isinstance(value, int | float) else value.to(cosine)
