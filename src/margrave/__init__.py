"""Face recognition with adaptive margins: train, evaluate and use face-embedding models.

    import margrave

    model = margrave.load_model("model.safetensors")
    first, second = model.embed(["a.jpg", "b.jpg"])
    margrave.similarity(first, second)

The public names are imported on first use, so ``import margrave`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from margrave import heads, losses
    from margrave.evaluation import (
        evaluate_all_to_all,
        evaluate_identification,
        evaluate_open_set,
        evaluate_pairs,
        pool_templates,
        read_results,
        similarity,
        write_results,
    )
    from margrave.heads import ChunkedHead, DenseHead, ShardedHead
    from margrave.inference import Embedder, Features, FeatureStore, embed_features, embed_to_store
    from margrave.inference import load_embedder as load_model
    from margrave.losses import compose
    from margrave.matching import Matcher
    from margrave.protocols import evaluate

from margrave.version import __version__

__all__ = [
    "ChunkedHead",
    "DenseHead",
    "Embedder",
    "FeatureStore",
    "Features",
    "Matcher",
    "ShardedHead",
    "__version__",
    "compose",
    "embed_features",
    "embed_to_store",
    "evaluate",
    "evaluate_all_to_all",
    "evaluate_identification",
    "evaluate_open_set",
    "evaluate_pairs",
    "heads",
    "load_model",
    "losses",
    "pool_templates",
    "read_results",
    "similarity",
    "write_results",
]

# Public packages, and the module of every other public name. ``module:attribute`` gives the name
# within the module where it differs.
_PACKAGES = ("heads", "losses")
_MODULES = {
    "load_model": "inference:load_embedder",
    "compose": "losses",
    "Matcher": "matching",
    "evaluate": "protocols",
    **dict.fromkeys(("ChunkedHead", "DenseHead", "ShardedHead"), "heads"),
    **dict.fromkeys(
        ("Embedder", "Features", "FeatureStore", "embed_features", "embed_to_store"), "inference"
    ),
    **dict.fromkeys(
        (
            "evaluate_all_to_all",
            "evaluate_identification",
            "evaluate_open_set",
            "evaluate_pairs",
            "pool_templates",
            "read_results",
            "similarity",
            "write_results",
        ),
        "evaluation",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"margrave.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'margrave' has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    value = getattr(importlib.import_module(f"margrave.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
