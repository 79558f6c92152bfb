"""The optimiser, decaying only what should decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from margrave.heads import RowwiseSGD
from margrave.training.settings import OptimizerSettings


def build_optimizer(
    settings: OptimizerSettings, modules: Iterable[nn.Module]
) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters; those of one dimension or none do not decay.

    Where a head samples its classes, SGD touches the rows that took part.

    Raises:
        ValueError: AdamW for a head that samples its classes.

    >>> optimizer = build_optimizer(OptimizerSettings(), [nn.Linear(2, 3), nn.BatchNorm1d(3)])
    >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    [(0.0005, 1), (0.0, 3)]
    """
    modules = list(modules)
    trainable = [
        parameter
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    groups = [
        {
            "params": [parameter for parameter in trainable if parameter.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [parameter for parameter in trainable if parameter.ndim <= 1],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    samples = any(getattr(module, "sample_rate", None) is not None for module in modules)
    if samples and settings.kind != "sgd":
        raise ValueError(
            f"head.sample_rate gives the class centres a sparse gradient, which {settings.kind} "
            "cannot apply; set training.optimizer.kind to sgd, or sample_rate to null"
        )
    if samples:
        return RowwiseSGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    betas = (settings.momentum, settings.second_momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)
