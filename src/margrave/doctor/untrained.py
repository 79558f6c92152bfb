"""Whether weights were ever trained: what random numbers look like, and what training leaves.

The largest eigenvalue of a matrix of independent random numbers is known beforehand, whatever
their distribution, and training exceeds it within few steps: gradients are sums of few outer
products. Scales and shifts of normalisation layers begin at exactly 1 and 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from margrave.doctor.findings import Finding

SMALLEST_SIDE = 8
"""Of a matrix: smaller ones say little."""
MOST_ROWS = 8192
MOST_COLUMNS = 65536
STRUCTURED = 5.0
"""Standard deviations above the expected largest eigenvalue."""
FEW_STRUCTURED = 0.1
"""Of the matrices: constant tables and chance."""
ENOUGH_MATRICES, ENOUGH_NORMS = 3, 2
UNTOUCHED = 1e-5


@dataclass(frozen=True, kw_only=True)
class TrainingEvidence:
    """What weights show of their training.

    Attributes:
        matrices: how many are large enough to tell.
        structured: how many of them are no independent random numbers.
        norms: normalisation layers with scale and shift.
        untouched: how many of them are at 1 and 0.
        statistics: batch norms with running statistics.
        unused: how many of them are at mean 0 and variance 1.
    """

    matrices: int
    structured: int
    norms: int
    untouched: int
    statistics: int
    unused: int

    @property
    def random_matrices(self) -> bool:
        """Whether all weights are as independent random numbers."""
        return (
            self.matrices >= ENOUGH_MATRICES and self.structured <= FEW_STRUCTURED * self.matrices
        )

    @property
    def untrained(self) -> bool | None:
        """Whether no training has left a trace; None where nothing shows it."""
        if self.matrices >= ENOUGH_MATRICES:
            return self.random_matrices
        if self.structured or self.norms < ENOUGH_NORMS:
            return False if self.structured else None
        return self.untouched == self.norms


def training_evidence(state: Mapping[str, Tensor]) -> TrainingEvidence:
    """What a network's tensors show of its training."""
    scores = [score for value in state.values() if (score := eigenvalue_score(value)) is not None]
    norms = [key.removesuffix(".weight") for key in state if _is_norm(state, key)]
    untouched = [
        name
        for name in norms
        if bool(((state[f"{name}.weight"] - 1).abs() <= UNTOUCHED).all())
        and bool((state[f"{name}.bias"].abs() <= UNTOUCHED).all())
    ]
    statistics = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    unused = [
        name
        for name in statistics
        if bool((state[f"{name}running_var"] == 1).all())
        and not bool(state.get(f"{name}running_mean", torch.zeros(1)).any())
    ]
    return TrainingEvidence(
        matrices=len(scores),
        structured=sum(score > STRUCTURED for score in scores),
        norms=len(norms),
        untouched=len(untouched),
        statistics=len(statistics),
        unused=len(unused),
    )


def _is_norm(state: Mapping[str, Tensor], key: str) -> bool:
    weight, bias = state[key], state.get(f"{key.removesuffix('.weight')}.bias")
    return (
        key.endswith(".weight")
        and weight.dim() == 1
        and weight.numel() > 1
        and bias is not None
        and bias.shape == weight.shape
    )


def eigenvalue_score(weight: Tensor) -> float | None:
    """How far a matrix's largest eigenvalue is above that of independent random numbers.

    In standard deviations; about -2 for random numbers, and at most 3 in all matrices of all
    registered backbones. Rows are brought to one length first, so scales (of folded batch norms)
    do not matter. None for small, constant or damaged matrices.

    Source: Johnstone, On the distribution of the largest eigenvalue in principal components
    analysis (2001), for mean and scale.

    >>> eigenvalue_score(torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0))) < 3
    True
    >>> eigenvalue_score(torch.arange(4096.0).sin().reshape(64, 64)) > 5
    True
    """
    if weight.dim() < 2 or not (weight.is_floating_point() or weight.dtype == torch.int8):
        return None
    matrix = weight.detach().reshape(len(weight), -1)[:MOST_ROWS, :MOST_COLUMNS].float()
    if min(matrix.shape) < SMALLEST_SIDE or not bool(torch.isfinite(matrix).all()):
        return None
    matrix = matrix - matrix.mean()
    lengths = matrix.norm(dim=1, keepdim=True)
    matrix = matrix[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
    rows, columns = matrix.shape if matrix.numel() else (0, 0)
    if min(rows, columns) < SMALLEST_SIDE or float(matrix.std(dim=0).max()) == 0:
        return None
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    largest = float(torch.linalg.eigvalsh(gram.double())[-1]) * columns
    roots = (rows - 1) ** 0.5 + columns**0.5
    scale = roots * ((rows - 1) ** -0.5 + columns**-0.5) ** (1 / 3)
    return (largest - roots**2) / scale


def check_training(state: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Weights as they were drawn at the beginning, or that it cannot be told."""
    evidence = training_evidence(state)
    if evidence.untrained is None:
        yield Finding(
            fault="training_not_checked",
            severity="unchecked",
            said="whether it was trained is not checked, because it has too few weights that show "
            f"it ({evidence.matrices} matrices, {evidence.norms} normalisation layers)",
            remedy="try it on labelled faces: margrave doctor MODEL --data FACES",
            share=0.0,
        )
    if not evidence.untrained:
        return
    observations = []
    if evidence.matrices:
        observations.append(
            f"{evidence.matrices - evidence.structured} of {evidence.matrices} weight matrices are "
            "independent random numbers"
        )
    if evidence.untouched:
        observations.append(
            f"{evidence.untouched} of {evidence.norms} normalisation layers have the scale 1 and "
            "shift 0 that they begin with"
        )
    if evidence.unused:
        observations.append(
            f"{evidence.unused} of {evidence.statistics} batch norms have never seen an image"
        )
    yield Finding(
        fault="untrained_weights",
        severity="serious",
        said=f"the network was never trained, or hardly: {'; '.join(observations)}",
        remedy="export the trained model, not the freshly built one; check that the checkpoint was "
        "loaded into it (strict=True) before it was saved",
        figures={
            "matrices": evidence.matrices,
            "structured": evidence.structured,
            "norms": evidence.norms,
            "untouched_norms": evidence.untouched,
            "unused_statistics": evidence.unused,
        },
    )
