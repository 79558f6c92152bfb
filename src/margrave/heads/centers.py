"""Class centers: how they begin, and several per class, of which a sample sees only the nearest.

The centers of class c are rows c·K to c·K + K − 1 of `Head.centers`. Shapes: A samples, n classes,
K centers per class.

Source (several per class): Sub-center ArcFace, ECCV 2020, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from margrave.heads.embeddings import unit_and_norm

SEED_BLOCK = 1024
"""Number of consecutive centers that are initialized from one seed."""
NEGATIVES_BLOCK = 8192
"""Number of classes whose cosines `log_sum_exp_of_negatives` holds at a time."""


def initial_centers(rows: range, embedding_size: int) -> Tensor:
    """(len(rows), D) initial centers of a range of rows, drawn from N(0, 0.01²).

    With the same torch seed, a row gets the same center for any sharding.
    """
    seed = int(torch.randint(2**31, (), device="cpu"))
    centers = torch.empty(len(rows), embedding_size)
    if centers.is_meta:
        return centers
    for block in range(rows.start // SEED_BLOCK, -(-rows.stop // SEED_BLOCK)):
        generator = torch.Generator().manual_seed(seed + block)
        shape = SEED_BLOCK, embedding_size
        block_centers = torch.randn(shape, generator=generator, device="cpu").mul_(0.01)
        first = block * SEED_BLOCK
        start, stop = max(first, rows.start), min(first + SEED_BLOCK, rows.stop)
        centers[start - rows.start : stop - rows.start] = block_centers[
            start - first : stop - first
        ]
    return centers


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


def log_sum_exp_of_negatives(
    unit: Tensor, centers: Tensor, classes: Tensor, positions: Tensor, count: int, scale: Tensor
) -> Tensor:
    """(A,) log Σ_{j≠y} e^{s·cosθ_j} over some classes.

    Args:
        unit: (A, D) x̂.
        centers: (C·K, D) all centers of this rank.
        classes: (n,) the classes to sum over.
        positions: (A,) the targets' positions among these, −1 if a target is not one of them.
        count: K, the number of centers per class.
        scale: () s.
    """
    state = unit.new_full((len(unit),), -torch.inf)
    for start in range(0, len(classes), NEGATIVES_BLOCK):
        rows = center_rows(classes[start : start + NEGATIVES_BLOCK], count)
        logits = (
            scale.to(state) * nearest_centers(unit @ unit_and_norm(centers[rows])[0].T, count)[0]
        )
        columns = torch.arange(start, start + logits.shape[1], device=logits.device)
        logits.masked_fill_(columns == positions[:, None], -torch.inf)
        state = torch.logaddexp(state, torch.logsumexp(logits, dim=1))
    return state
