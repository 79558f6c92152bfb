"""Names and specifications of MobileFaceNets from InsightFace and CurricularFace (face.evoLVe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margrave.models.contract import State
from margrave.models.importers.shapes import count_indices, shape_of

# CurricularFace's name -> Margrave's name; `curricularface_names` returns the reverse mapping.
CONVOLUTIONS = {"conv1": "layers.0", "conv2_dw": "layers.1", "conv_6_sep": "conv_sep"}
BOTTLENECKS = {"conv_23": "layers.2", "conv_34": "layers.4", "conv_45": "layers.6"}
STAGES = {"conv_3": "layers.3", "conv_4": "layers.5", "conv_5": "layers.7"}
PUBLISHED: dict[tuple[tuple[int, ...], int], str] = {
    ((1, 4, 6, 2), 1): "curricular_mbf",
    ((1, 4, 6, 2), 2): "mbf",
    ((2, 8, 12, 4), 4): "mbf_large",
}
"""The published networks: (blocks per stage, width multiplier) -> kind."""


def curricularface_names(state: State) -> dict[str, str]:
    """Each submodule's name in Margrave -> its name in CurricularFace.

    FaceX-Zoo and TreB1eN's InsightFace_Pytorch omit the last layers' prefix ``output_layer.``.
    """
    prefix = "" if "linear.weight" in state else "output_layer."
    names = {
        "features.layers.0.layers.0": f"{prefix}conv_6_dw.conv",
        "features.layers.0.layers.1": f"{prefix}conv_6_dw.bn",
        "features.layers.2": f"{prefix}linear",
        "features.layers.3": f"{prefix}bn",
    }
    for theirs, ours in CONVOLUTIONS.items():
        names |= _convolution_names(ours, theirs)
    for theirs, ours in BOTTLENECKS.items():
        names |= _bottleneck_names(ours, theirs)
    for theirs, ours in STAGES.items():
        for index in range(count_indices(state, f"{theirs}.model.")):
            names |= _bottleneck_names(f"{ours}.layers.{index}", f"{theirs}.model.{index}")
    return names


def _convolution_names(ours: str, theirs: str) -> dict[str, str]:
    parts = enumerate(("conv", "bn", "prelu"))
    return {f"{ours}.layers.{index}": f"{theirs}.{part}" for index, part in parts}


def _bottleneck_names(ours: str, theirs: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for index, part in enumerate(("conv", "conv_dw", "project")):
        names |= _convolution_names(f"{ours}.layers.{index}", f"{theirs}.{part}")
    return names


def infer_specification(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """Infer the backbone specification from a state under Margrave's names.

    `names` maps each submodule's name in Margrave to its name in the project, for error messages.
    """
    stem_channels = shape_of(state, "layers.0.layers.0.weight", 4, names)[0]
    if stem_channels % 64:
        raise ValueError(
            f"the first convolution has {stem_channels} channels, expected a multiple of 64"
        )
    # The second layer is a single convolution or, in larger networks, a stage of blocks.
    is_stage = any(key.startswith("layers.1.layers.0.layers.") for key in state)
    counts = (
        count_indices(state, "layers.1.layers.") if is_stage else 1,
        *(count_indices(state, f"layers.{stage}.layers.") for stage in (3, 5, 7)),
    )
    # The last depthwise convolution covers the whole map, whose sides are 1/16 of the image's.
    sizes = {
        "embedding_size": shape_of(state, "features.layers.2.weight", 2, names)[0],
        "image_size": 16 * shape_of(state, "features.layers.0.layers.0.weight", 4, names)[-1],
    }
    if kind := PUBLISHED.get((counts, stem_channels // 64)):
        return {"kind": kind, **sizes}
    architecture = {"block_counts": list(counts), "width_multiplier": stem_channels // 64}
    return {"kind": "mobilefacenet", **architecture, **sizes}
