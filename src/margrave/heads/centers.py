"""Class centers: how they are initialized, and how classes with several centers work.

With M centers per class, a sample's cosine to a class is its cosine to the nearest center of the
class. The centers of class c are rows c·M to c·M + M − 1 of `Head.centers`.

Shapes: A samples, D features, n classes, M centers per class.

Source (several centers per class): Sub-center ArcFace, ECCV 2020, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from margrave.heads.embeddings import unit_and_norm

SEED_BLOCK = 1024
"""Number of consecutive centers that share one random seed for initialization."""
NEGATIVES_BLOCK = 8192
"""Number of classes that `log_sum_exp_of_negatives` processes at a time."""


def initial_centers(rows: range, embedding_size: int) -> Tensor:
    """(len(rows), D) initial centers of a range of rows, drawn from N(0, 0.01²).

    With the same torch seed, a row gets the same center for any sharding.
    """
    seed = int(torch.randint(2**31, (), device="cpu"))
    centers = torch.empty(len(rows), embedding_size)
    if centers.is_meta:  # created under torch.device("meta"): there is nothing to fill
        return centers
    for block in range(rows.start // SEED_BLOCK, -(-rows.stop // SEED_BLOCK)):
        generator = torch.Generator().manual_seed(seed + block)
        shape = SEED_BLOCK, embedding_size
        block_centers = torch.randn(shape, generator=generator, device="cpu").mul_(0.01)
        block_start = block * SEED_BLOCK
        start, stop = max(block_start, rows.start), min(block_start + SEED_BLOCK, rows.stop)
        centers[start - rows.start : stop - rows.start] = block_centers[
            start - block_start : stop - block_start
        ]
    return centers


def nearest_centers(cosines: Tensor, centers_per_class: int) -> tuple[Tensor, Tensor | None]:
    """Each class's largest cosine (A, n) and the nearest center (A, n), from (A, n·M) cosines.

    The nearest center is an index from 0 to M − 1 among the centers of the class. The gradient
    reaches only the nearest center, even if several are equally near. With M = 1, returns the
    cosines unchanged, and None instead of the indices.
    """
    if centers_per_class == 1:
        return cosines, None
    largest = cosines.unflatten(1, (-1, centers_per_class)).max(dim=2)
    return largest.values, largest.indices


def gradient_of_all_cosines(
    gradient: Tensor, nearest: Tensor | None, centers_per_class: int
) -> Tensor:
    """(A, n·M) gradient of all cosines, from the gradient (A, n) of each class's largest cosine.

    `nearest` are the indices that `nearest_centers` returned.
    """
    if nearest is None:
        return gradient
    indices = torch.arange(centers_per_class, device=nearest.device, dtype=nearest.dtype)
    return torch.where(indices == nearest[..., None], gradient[..., None], 0).flatten(1)


def center_rows(classes: Tensor, centers_per_class: int) -> Tensor:
    """(n·M,) rows of the classes' centers, in the order of `classes`.

    >>> center_rows(torch.tensor([0, 4]), 3)
    tensor([ 0,  1,  2, 12, 13, 14])
    """
    offsets = torch.arange(centers_per_class, device=classes.device)
    return (classes[:, None] * centers_per_class + offsets).flatten()


def log_sum_exp_of_negatives(
    unit: Tensor,
    centers: Tensor,
    classes: Tensor,
    positions: Tensor,
    centers_per_class: int,
    scale: Tensor,
) -> Tensor:
    """(A,) log Σ_{j≠y} e^{s·cosθ_j} over the classes in `classes`.

    Args:
        unit: (A, D) x̂.
        centers: (C·M, D) centers of this rank's C classes.
        classes: (n,) the classes to sum over, as indices among the C classes.
        positions: (A,) each target's position in `classes`, −1 if it is not there.
        centers_per_class: M.
        scale: () s.
    """
    log_sum = unit.new_full((len(unit),), -torch.inf)
    for start in range(0, len(classes), NEGATIVES_BLOCK):
        rows = center_rows(classes[start : start + NEGATIVES_BLOCK], centers_per_class)
        unit_centers, _ = unit_and_norm(centers[rows])
        cosines, _ = nearest_centers(unit @ unit_centers.T, centers_per_class)
        logits = scale.to(log_sum) * cosines
        block_positions = torch.arange(start, start + logits.shape[1], device=logits.device)
        logits.masked_fill_(block_positions == positions[:, None], -torch.inf)
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(logits, dim=1))
    return log_sum
