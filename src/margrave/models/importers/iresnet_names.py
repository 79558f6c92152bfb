"""Names and specifications of IResNets from InsightFace, AdaFace and CurricularFace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margrave.models.contract import State
from margrave.models.importers.shapes import count_indices, shape_of, square_side

# Margrave's names of the modules in a block's residual branch, in order. AdaFace and CurricularFace
# number these modules instead.
BASIC = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")
BOTTLENECK = (*BASIC, "prelu2", "conv3", "bn4")
WITHOUT_MIDDLE_NORM = ("bn1", "conv1", "prelu", "conv2", "bn3")

# Output channels per stage of the published networks.
USUAL_CHANNELS = (64, 128, 256, 512)
BOTTLENECK_CHANNELS = (256, 512, 1024, 2048)
# Block counts per stage of each published network -> the depth in its name. AdaFace and
# CurricularFace use 101 for the network that InsightFace calls 100.
INSIGHTFACE_DEPTHS = {
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 34,
    (3, 4, 14, 3): 50,
    (3, 13, 30, 3): 100,
    (6, 26, 60, 6): 200,
}
ADAFACE_DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (3, 4, 14, 3): 50, (3, 13, 30, 3): 101}
ADAFACE_BOTTLENECK_DEPTHS = {(3, 8, 36, 3): 152, (3, 24, 36, 3): 200}
CURRICULARFACE_DEPTHS = {(3, 4, 14, 3): 50, (3, 13, 30, 3): 101, (3, 8, 36, 3): 152}


def adaface_names(state: State) -> dict[str, str]:
    """Each submodule's name in Margrave -> its name in AdaFace."""
    # A basic block has no module 7: its modules have the numbers 0 to 5.
    branch = BOTTLENECK if any(".res_layer.7." in key for key in state) else BASIC
    return _body_names(state, branch, gate="se_block")


def curricularface_names(state: State) -> dict[str, str]:
    """Each submodule's name in Margrave -> its name in CurricularFace and face.evoLVe."""
    return _body_names(state, WITHOUT_MIDDLE_NORM, gate="5")


def _body_names(state: State, branch: tuple[str, ...], gate: str) -> dict[str, str]:
    """Each submodule's name in Margrave -> its name in the project.

    Args:
        state: the tensors under the project's names.
        branch: Margrave's names of the modules in a residual branch, in order.
        gate: the project's name of the squeeze-and-excitation module in a branch.
    """
    names = {
        "conv1": "input_layer.0",
        "bn1": "input_layer.1",
        "prelu": "input_layer.2",
        "bn2": "output_layer.0",
        "fc": "output_layer.3",
        "features": "output_layer.4",
    }
    for stage, (start, end) in enumerate(_stages(state), 1):
        for index in range(start, end):
            ours, theirs = f"layer{stage}.{index - start}", f"body.{index}"
            names |= {
                f"{ours}.{module}": f"{theirs}.res_layer.{position}"
                for position, module in enumerate(branch)
            }
            # A block without a gate or a shortcut has no tensors under these names.
            names[f"{ours}.gate.reduce"] = f"{theirs}.res_layer.{gate}.fc1"
            names[f"{ours}.gate.expand"] = f"{theirs}.res_layer.{gate}.fc2"
            names[f"{ours}.downsample.0"] = f"{theirs}.shortcut_layer.0"
            names[f"{ours}.downsample.1"] = f"{theirs}.shortcut_layer.1"
    return names


def _stages(state: State) -> list[tuple[int, int]]:
    """The block indices (start, end) of each stage, end exclusive.

    A stage starts at block 0 and at each block whose shortcut has a convolution.
    """
    num_blocks = count_indices(state, "body.")
    starts = {0} | {
        index for index in range(num_blocks) if f"body.{index}.shortcut_layer.0.weight" in state
    }
    if len(starts) != 4:
        raise ValueError(
            f"found {len(starts)} stages, starting at blocks {sorted(starts)} of {num_blocks}, "
            "expected 4; the first blocks of stages 2 to 4 must have a shortcut_layer.0.weight"
        )
    return list(zip(sorted(starts), [*sorted(starts)[1:], num_blocks], strict=True))


def insightface_specification(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """The backbone specification of weights under InsightFace's names.

    Margrave uses the same names for AdaFace's and CurricularFace's networks. Their first block
    differs from that of InsightFace's networks: its shortcut has no weights, or it has three
    convolutions.
    """
    has_projection = any(key.startswith("layer1.0.downsample.") for key in state)
    if has_projection and "layer1.0.conv3.weight" not in state:
        return _infer_specification(state, names, "iresnet", INSIGHTFACE_DEPTHS, {})
    has_middle_norm = "layer1.0.bn2.weight" in state
    return (adaface_specification if has_middle_norm else curricularface_specification)(
        state, names
    )


def adaface_specification(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """The backbone specification of AdaFace's weights under Margrave's names."""
    has_gates = _has_gates(state)
    is_bottleneck = "layer1.0.conv3.weight" in state
    depths = ADAFACE_BOTTLENECK_DEPTHS if is_bottleneck else ADAFACE_DEPTHS
    options = {
        "block": "bottleneck" if is_bottleneck else "basic",
        "channel_gates": has_gates,
        "shortcut": "subsample",
        "feature_affine": "none",
    }
    return _infer_specification(state, names, "ir_se_" if has_gates else "ir_", depths, options)


def curricularface_specification(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """The specification of CurricularFace's or face.evoLVe's weights under Margrave's names."""
    has_gates = _has_gates(state)
    options = {
        "middle_norm": False,
        "channel_gates": has_gates,
        "shortcut": "subsample",
        "feature_affine": "none",
    }
    prefix = "curricular_ir_se_" if has_gates else "curricular_ir_"
    return _infer_specification(state, names, prefix, CURRICULARFACE_DEPTHS, options)


def _has_gates(state: State) -> bool:
    return any(".gate." in key for key in state)


def _infer_specification(
    state: State,
    names: Mapping[str, str],
    prefix: str,
    depths: Mapping[tuple[int, ...], int],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Infer a backbone specification: a published network by name, any other by its settings.

    Args:
        state: the tensors under Margrave's names.
        names: each submodule's name in Margrave -> its name in the project, for error messages.
        prefix: the beginning of the published networks' names; the depth follows.
        depths: block counts per stage of each published network -> its depth.
        options: settings that all networks of this family share; empty for InsightFace's, which
            have the default settings.
    """
    is_bottleneck = options.get("block") == "bottleneck"
    last_convolution = "conv3" if is_bottleneck else "conv2"
    stages = range(1, 5)
    counts = tuple(count_indices(state, f"layer{stage}.") for stage in stages)
    channels = tuple(
        shape_of(state, f"layer{stage}.0.{last_convolution}.weight", 4, names)[0]
        for stage in stages
    )
    stem_channels = shape_of(state, "conv1.weight", 4, names)[0]
    embedding_size, inputs = shape_of(state, "fc.weight", 2, names)
    tensor_name = f"{names.get('fc', 'fc')}.weight of {inputs} inputs from {channels[-1]} channels"
    positions, remainder = divmod(inputs, channels[-1])
    if remainder:
        raise ValueError(
            f"{tensor_name}: the inputs are not a multiple of the channels, so they do not form a "
            "square map"
        )
    side = square_side(positions, tensor_name)
    # Each of the four stages halves the side length.
    sizes = {"embedding_size": embedding_size, "image_size": 16 * side}
    # The last batch norm, `features`, has a scale and a shift in face.evoLVe, but neither in
    # CurricularFace and AdaFace. InsightFace's networks keep the default.
    affine = {"feature_affine": "full"} if options and "features.weight" in state else {}
    usual = BOTTLENECK_CHANNELS if is_bottleneck else USUAL_CHANNELS
    if counts in depths and channels == usual and stem_channels == 64:
        return {"kind": f"{prefix}{depths[counts]}", **sizes, **affine}
    architecture = {
        "block_counts": list(counts),
        "channels": list(channels),
        "stem_channels": stem_channels,
    }
    return {"kind": "iresnet", **architecture, **options, **affine, **sizes}
