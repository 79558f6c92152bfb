"""Checks whether weights were trained, or are still random.

For a matrix X of independent random numbers of any distribution, the expected largest eigenvalue of
X·Xᵀ is known. Training raises the largest eigenvalue above it within a few steps, because each
gradient is a sum of few outer products.

The scales and shifts of normalization layers are exactly 1 and 0 before training; training changes
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from margrave.doctor.findings import Finding

MIN_MATRIX_SIDE = 8
"""Matrices with fewer rows or columns are not tested, because they show little."""
MAX_ROWS = 8192
MAX_COLUMNS = 65536
"""Maximum numbers of rows and columns of a tested matrix; larger matrices are cropped."""
MIN_TRAINED_SCORE = 5.0
"""Score above which a matrix counts as not random; see `eigenvalue_score`."""
MAX_STRUCTURED_SHARE = 0.1
"""Maximum share of non-random matrices, such as precomputed tables, in an untrained network."""
MIN_MATRICES, MIN_NORMS = 3, 2
"""Minimum numbers of matrices and of normalization layers for a verdict."""
INITIAL_TOLERANCE = 1e-5
"""Maximum deviation of scales from 1 and of shifts from 0 that counts as the initial value."""


@dataclass(frozen=True, kw_only=True)
class TrainingEvidence:
    """Signs of training in a network's weights.

    Attributes:
        matrices: number of weight matrices that are large enough to test.
        structured_matrices: number of tested matrices that do not look like independent random
            numbers.
        norms: number of normalization layers with scale and shift.
        untouched_norms: number of normalization layers that still have their initial scale 1 and
            shift 0.
        batch_norms: number of batch norms with running statistics.
        unused_batch_norms: number of batch norms that still have their initial mean 0 and variance
            1.
    """

    matrices: int
    structured_matrices: int
    norms: int
    untouched_norms: int
    batch_norms: int
    unused_batch_norms: int

    @property
    def looks_random(self) -> bool:
        """Whether the weight matrices look random; False if there are too few of them to tell."""
        return (
            self.matrices >= MIN_MATRICES
            and self.structured_matrices <= MAX_STRUCTURED_SHARE * self.matrices
        )

    @property
    def untrained(self) -> bool | None:
        """Whether the weights show no sign of training; None if this cannot be decided."""
        if self.matrices >= MIN_MATRICES:
            return self.looks_random
        if self.structured_matrices:
            return False
        if self.norms < MIN_NORMS:
            return None
        return self.untouched_norms == self.norms


def training_evidence(state: Mapping[str, Tensor]) -> TrainingEvidence:
    """Count the signs of training in a network's state dict."""
    scores = [score for tensor in state.values() if (score := eigenvalue_score(tensor)) is not None]
    norms = [key.removesuffix(".weight") for key in state if _is_norm(state, key)]
    untouched = [
        name
        for name in norms
        if bool(((state[f"{name}.weight"] - 1).abs() <= INITIAL_TOLERANCE).all())
        and bool((state[f"{name}.bias"].abs() <= INITIAL_TOLERANCE).all())
    ]
    batch_norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    unused = [
        prefix
        for prefix in batch_norms
        if bool((state[f"{prefix}running_var"] == 1).all())
        and not bool(state.get(f"{prefix}running_mean", torch.zeros(1)).any())
    ]
    return TrainingEvidence(
        matrices=len(scores),
        structured_matrices=sum(score > MIN_TRAINED_SCORE for score in scores),
        norms=len(norms),
        untouched_norms=len(untouched),
        batch_norms=len(batch_norms),
        unused_batch_norms=len(unused),
    )


def _is_norm(state: Mapping[str, Tensor], key: str) -> bool:
    """Whether a tensor is the scale of a normalization layer that also has a shift."""
    weight, bias = state[key], state.get(f"{key.removesuffix('.weight')}.bias")
    return (
        key.endswith(".weight")
        and weight.dim() == 1
        and weight.numel() > 1
        and bias is not None
        and bias.shape == weight.shape
    )


def eigenvalue_score(weight: Tensor) -> float | None:
    """How far the largest eigenvalue of X·Xᵀ exceeds its center for a matrix X of random numbers.

    The unit is the scale of this eigenvalue's distribution for random numbers. The score is
    about -2 for independent random numbers, and at most 3 for every matrix of every registered
    backbone before training. Rows are normalized first, so that their scales (such as those of
    folded batch norms) do not matter.

    Args:
        weight: a weight of any shape, which is reshaped to a matrix with a row per output.

    Returns:
        The score; None if the weight has fewer than two dimensions or is neither float nor int8, or
        if the matrix is small, has equal rows, or contains infinity or NaN.

    Source: Johnstone, On the distribution of the largest eigenvalue in principal components
    analysis (2001), for center and scale.

    >>> eigenvalue_score(torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0))) < 3
    True
    >>> eigenvalue_score(torch.arange(4096.0).sin().reshape(64, 64)) > 5
    True
    """
    # Quantized weights are int8.
    if weight.dim() < 2 or not (weight.is_floating_point() or weight.dtype == torch.int8):
        return None
    matrix = weight.detach().reshape(len(weight), -1)[:MAX_ROWS, :MAX_COLUMNS].float()
    if min(matrix.shape) < MIN_MATRIX_SIDE or not bool(torch.isfinite(matrix).all()):
        return None
    matrix = matrix - matrix.mean()
    row_norms = matrix.norm(dim=1, keepdim=True)
    is_nonzero = row_norms[:, 0] > 0
    matrix = matrix[is_nonzero] / row_norms[is_nonzero]
    rows, columns = matrix.shape if matrix.numel() else (0, 0)
    if min(rows, columns) < MIN_MATRIX_SIDE or float(matrix.std(dim=0).max()) == 0:
        return None
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    # Rows have unit length; this factor gives the entries unit variance, as the formulas assume.
    largest = float(torch.linalg.eigvalsh(gram.double())[-1]) * columns
    roots = (rows - 1) ** 0.5 + columns**0.5
    center, scale = roots**2, roots * ((rows - 1) ** -0.5 + columns**-0.5) ** (1 / 3)
    return (largest - center) / scale


def check_training(state: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Check for weights that were never trained, or report that this cannot be decided."""
    evidence = training_evidence(state)
    if evidence.untrained is None:
        yield Finding(
            fault="training_not_checked",
            severity="unchecked",
            message="whether the network was trained cannot be checked, because it has too few "
            f"suitable weights ({evidence.matrices} matrices, {evidence.norms} normalization "
            "layers)",
            remedy="test it on labeled faces: margrave doctor MODEL --data FACES",
            share=0.0,
        )
    if not evidence.untrained:
        return
    observations = []
    if evidence.matrices:
        observations.append(
            f"{evidence.matrices - evidence.structured_matrices} of {evidence.matrices} weight "
            "matrices are independent random numbers"
        )
    if evidence.untouched_norms:
        observations.append(
            f"{evidence.untouched_norms} of {evidence.norms} normalization layers have their "
            "initial scale 1 and shift 0"
        )
    if evidence.unused_batch_norms:
        observations.append(
            f"{evidence.unused_batch_norms} of {evidence.batch_norms} batch norms have their "
            "initial statistics"
        )
    yield Finding(
        fault="untrained_weights",
        severity="serious",
        message=f"the network is untrained or hardly trained: {'; '.join(observations)}",
        remedy="export the trained model, not a newly created one; check that the trained "
        "weights were loaded (strict=True) before the model was saved",
        figures={
            "matrices": evidence.matrices,
            "structured": evidence.structured_matrices,
            "norms": evidence.norms,
            "untouched_norms": evidence.untouched_norms,
            "unused_statistics": evidence.unused_batch_norms,
        },
    )
