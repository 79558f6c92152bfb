"""Margin losses as pure functions of cosines; each is registered in its own file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from margrave.losses.adacos import AdaCos
from margrave.losses.adaface import AdaFace
from margrave.losses.arcface import ArcFace
from margrave.losses.combined import Combined
from margrave.losses.compose import Composed, compose
from margrave.losses.contract import LOSSES, Context, Loss, SigmoidTerms
from margrave.losses.cosface import CosFace
from margrave.losses.curricularface import CurricularFace
from margrave.losses.elasticface import ElasticFace
from margrave.losses.focal import Focal
from margrave.losses.hard_mining import HardMining
from margrave.losses.kappaface import KappaFace
from margrave.losses.magface import MagFace
from margrave.losses.mv_softmax import MVSoftmax
from margrave.losses.normface import NormFace
from margrave.losses.softmax import Softmax
from margrave.losses.sphereface import SphereFace
from margrave.losses.sphereface2 import SphereFace2
from margrave.losses.sphereface_r import SphereFaceR
from margrave.losses.sv_softmax import SVSoftmax
from margrave.losses.uniface import UniFace
from margrave.registry import import_path, texts_in

__all__ = [
    "LOSSES",
    "AdaCos",
    "AdaFace",
    "ArcFace",
    "Combined",
    "Composed",
    "Context",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "Focal",
    "HardMining",
    "KappaFace",
    "Loss",
    "MVSoftmax",
    "MagFace",
    "NormFace",
    "SVSoftmax",
    "SigmoidTerms",
    "Softmax",
    "SphereFace",
    "SphereFace2",
    "SphereFaceR",
    "UniFace",
    "compose",
    "create",
    "spec_at_scale",
]

# Import every module of this package, so that each loss registers itself.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def create(spec: Mapping[str, Any]) -> Loss:
    """Create the loss that ``{"kind": name, **hyperparameters}`` describes.

    Raises:
        ValueError: see `Registry.create`; or the kind is not a loss; or a hyperparameter names a
            statistic by a path that `margrave.registry.names_from_file` forbids.

    >>> create({"kind": "arcface", "margin": 0.3}).margin
    0.3
    """
    # A missing kind is reported by `LOSSES.create` below.
    loss_class = LOSSES.get(spec["kind"]) if isinstance(spec.get("kind"), str) else Loss
    if not (isinstance(loss_class, type) and issubclass(loss_class, Loss)):
        raise ValueError(
            f"{spec['kind']!r} is not a subclass of margrave.losses.Loss; derive your class from "
            "Loss"
        )
    loss: Loss = LOSSES.create(spec)
    # A statistic that the loss's code names is as trusted as that code. A statistic that a
    # hyperparameter names is only as trusted as the file with the hyperparameters, so import_path
    # checks whether this file may name code.
    for name in loss.needs.keys() & set(texts_in(spec)):
        if ":" in name:
            import_path(name)
    return loss


def spec_at_scale(kind: str, reference: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of the loss `kind`, with the scale of the reference loss if comparable.

    The right scale depends on the number of classes and the length of training. A loss that
    replaces the reference loss therefore takes over its scale. The scales of softmax and of losses
    that adapt their scale are not comparable with others; such losses keep their default.

    >>> spec_at_scale("cosface", {"kind": "arcface", "scale": 16})
    {'kind': 'cosface', 'scale': 16}
    >>> spec_at_scale("softmax", {"kind": "arcface", "scale": 16})
    {'kind': 'softmax'}
    """
    classes = [LOSSES.get(name) for name in (kind, str(reference["kind"]))]
    comparable = all(
        isinstance(loss_class, type)
        and issubclass(loss_class, Loss)
        and loss_class.normalized
        and not loss_class.contains_scale
        for loss_class in classes
    )
    return {"kind": kind} | (
        {"scale": reference["scale"]} if comparable and "scale" in reference else {}
    )
