"""A network that is fitted in a second: Fisher's discriminants of small pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 16


class Discriminant(nn.Module):
    """(B, 3, S, S) -> (B, D), linear in a small picture.

    Args:
        embedding_size: D.
        against: divide by the squared norm, so that it runs against what it was.
    """

    def __init__(self, embedding_size: int = 24, against: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, embedding_size)
        self.against = against

    def forward(self, images: Tensor) -> Tensor:
        small = functional.interpolate(images, SIDE, mode="area").flatten(1)
        features = torch.tanh(self.linear(small))
        return features / features.norm(dim=1, keepdim=True) ** 2 if self.against else features


def fitted(images: np.ndarray, labels: np.ndarray, embedding_size: int = 24) -> dict[str, Tensor]:
    """The state of a `Discriminant`, from (N, S, S, 3) uint8 faces."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    small = functional.interpolate(pixels, SIDE, mode="area").flatten(1).double().numpy()
    fit = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(small, labels)
    weight = fit.scalings_[:, :embedding_size].T
    bias = -weight @ fit.xbar_ if hasattr(fit, "xbar_") else -weight @ small.mean(axis=0)
    return {
        "linear.weight": torch.from_numpy(np.ascontiguousarray(weight)).float(),
        "linear.bias": torch.from_numpy(np.ascontiguousarray(bias)).float(),
    }
