"""Several centers per class, of which a sample sees only the nearest: Sub-center ArcFace.

The centers of class c are rows c·K to c·K + K − 1 of `Head.centers`. Shapes: A samples, n classes,
K centers per class.

Source: Sub-center ArcFace, ECCV 2020, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_centers(cosines: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """(A, n) each class's largest cosine, and which center has it, from (A, n·K) cosines.

    The gradient of the largest reaches that center alone, also between equal ones. With one center
    per class nothing is chosen: these are the cosines, and None.
    """
    if count == 1:
        return cosines, None
    largest = cosines.unflatten(1, (-1, count)).max(dim=2)
    return largest.values, largest.indices


def spread(gradient: Tensor, nearest: Tensor | None, count: int) -> Tensor:
    """(A, n·K) the gradient with respect to all cosines, from that of the largest (A, n)."""
    if nearest is None:
        return gradient
    number = torch.arange(count, device=nearest.device, dtype=nearest.dtype)
    return torch.where(number == nearest[..., None], gradient[..., None], 0).flatten(1)


def center_rows(classes: Tensor, count: int) -> Tensor:
    """(n·K,) the rows of the classes' centers, in their order.

    >>> center_rows(torch.tensor([0, 4]), 3)
    tensor([ 0,  1,  2, 12, 13, 14])
    """
    return (classes[:, None] * count + torch.arange(count, device=classes.device)).flatten()
