"""NormFace: softmax over cosines, without a margin."""

from __future__ import annotations

from dataclasses import dataclass

from margrave.losses.contract import LOSSES, Loss


@LOSSES.register("normface")
@dataclass(frozen=True, kw_only=True)
class NormFace(Loss):
    """Softmax over scaled cosines.

    T = cosθ_y, N_j = cosθ_j.

    Source: NormFace, arXiv 1704.06369; ``FC`` of xiaoboCASIA/SV-X-Softmax ``fc_layers.py``.

    >>> NormFace(scale=0)
    Traceback (most recent call last):
        ...
    ValueError: NormFace.scale = 0 must be above 0
    """
