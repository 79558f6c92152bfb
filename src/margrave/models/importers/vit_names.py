"""Specifications of vision transformers under InsightFace's names, which Margrave uses too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margrave.models.contract import State
from margrave.models.importers.shapes import count_indices, shape_of, square_side

PUBLISHED = {(256, 12): "vit_t", (512, 12): "vit_s", (512, 24): "vit_b", (768, 24): "vit_l"}
"""The published networks: (width, depth) -> kind. All have 8 attention heads, patches of 9 x 9
pixels and MLPs four times as wide as the tokens."""


def infer_specification(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """Infer the backbone specification; no shape shows the attention heads, so 8 are assumed."""
    _, tokens, width = shape_of(state, "pos_embed", 3, names)
    patch_size = shape_of(state, "patch_embed.proj.weight", 4, names)[-1]
    mlp_width = shape_of(state, "blocks.0.mlp.fc1.weight", 2, names)[0]
    depth = count_indices(state, "blocks.")
    side = square_side(tokens, "pos_embed")
    # Patches need not cover the image: 12 patches of 9 pixels cover only 108 of 112 pixels. So 112,
    # the usual size, is assumed if it gives this number of patches.
    image_size = 112 if 112 // patch_size == side else side * patch_size
    embedding_size = shape_of(state, "feature.2.weight", 2, names)[0]
    sizes = {"embedding_size": embedding_size, "image_size": image_size}
    if patch_size == 9 and mlp_width == 4 * width and (width, depth) in PUBLISHED:
        return {"kind": PUBLISHED[width, depth], **sizes}
    architecture = {"width": width, "depth": depth, "patch_size": patch_size, "attention_heads": 8}
    return {"kind": "vit", **architecture, "mlp_ratio": mlp_width / width, **sizes}
