"""A study small enough for tests."""

from __future__ import annotations

from typing import Any

IMAGES = {"kind": "synthetic", "num_identities": 8, "images_per_identity": 6, "image_size": 32}
RUN: dict[str, Any] = {
    "data": {"train": IMAGES, "image_size": 32, "cached": True},
    "backbone": {
        "kind": "iresnet",
        "block_counts": [1, 1, 1, 1],
        "channels": [4, 4, 8, 8],
        "stem_stride": 2,
        "embedding_size": 8,
    },
    "training": {"epochs": 2, "batch_size": 16, "precision": "float32", "log_steps": 1},
    "evaluation": {
        "sets": {
            name: {"images": {**IMAGES, "first_identity": first}, "pairs": 40}
            for name, first in (("test", 100), ("validation", 200))
        }
    },
}
STUDY: dict[str, Any] = {
    "run": RUN,
    "losses": {"arcface": {"kind": "arcface", "scale": 8}, "adaface": {"kind": "adaface"}},
    "seeds": 2,
}
