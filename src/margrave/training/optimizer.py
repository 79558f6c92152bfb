"""Builds the optimizer; weight decay applies only to matrices and kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from margrave.heads import RowwiseSGD
from margrave.training.settings import OptimizerSettings


def build_optimizer(
    settings: OptimizerSettings, modules: Iterable[nn.Module]
) -> torch.optim.Optimizer:
    """Build SGD or AdamW over all trainable parameters; biases and norm layers get no weight decay.

    SGD is `RowwiseSGD`, which has the update rule of torch's SGD but makes no temporary copies of
    millions of class centers. If the head samples classes, `RowwiseSGD` updates only the sampled
    rows.

    Raises:
        ValueError: AdamW is requested for a head that samples its classes.

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
    # A group's key: whether weight decay applies, and the tensor type. FSDP's parameters are
    # DTensors; they need separate groups, because one multi-tensor update cannot mix both types.
    group_keys = dict.fromkeys((p.ndim > 1, type(p.detach())) for p in trainable)
    groups = [
        {
            "params": [p for p in trainable if (p.ndim > 1, type(p.detach())) == key],
            "weight_decay": settings.weight_decay if key[0] else 0.0,
        }
        for key in sorted(group_keys, key=lambda key: not key[0])
    ]
    samples_classes = any(getattr(module, "sample_rate", None) is not None for module in modules)
    if samples_classes and settings.kind != "sgd":
        raise ValueError(
            f"head.sample_rate gives the class centers a sparse gradient, which {settings.kind} "
            "cannot apply; set training.optimizer.kind to sgd, or head.sample_rate to null"
        )
    if settings.kind == "sgd":
        return RowwiseSGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    betas = (settings.momentum, settings.beta2)
    # Like `RowwiseSGD`, fused AdamW makes no temporary copies of the class centers.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
