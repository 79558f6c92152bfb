"""Whose weights are these, and how do they read here?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from margrave.checkpoints import iresnet_names, mobilefacenet_names, vit_names
from margrave.checkpoints.contract import Imported, State, rename
from margrave.checkpoints.head_weights import head_weight
from margrave.checkpoints.reading import strip_prefixes

ColourOrder = Literal["rgb", "bgr"]
Names = Mapping[str, str]

HEAD_PREFIXES = ("head.", "classifier.", "partial_fc.")
# CVLface puts its networks under this name.
WRAPPER = "net."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One project's way of naming one family of networks.

    Attributes:
        name: the layout's.
        signs: patterns, each of which begins some key of every such file.
        settings: the backbone specification from tensors under our names.
        names: the file's name of each submodule by ours; none where they are the same.
        first_convolution: our key of the weight that reads the colours.
        colour_order: that the network was trained with.
    """

    name: str
    signs: tuple[str, ...]
    settings: Callable[[State, Names], dict[str, Any]]
    names: Callable[[State], dict[str, str]] = lambda _state: {}
    first_convolution: str = "conv1.weight"
    colour_order: ColourOrder = "rgb"


LAYOUTS = (
    Layout(
        name="insightface_iresnet",
        signs=(r"(net\.)?layer[1-4]\.\d+\.prelu\.weight",),
        settings=iresnet_names.insightface_settings,
    ),
    Layout(
        name="adaface_ir",
        signs=(r"body\.\d+\.res_layer\.2\.running_mean",),
        names=iresnet_names.adaface_names,
        settings=iresnet_names.adaface_settings,
        colour_order="bgr",
    ),
    Layout(
        name="cvlface_ir",
        signs=(r"net\.body\.\d+\.res_layer\.2\.running_mean",),
        names=iresnet_names.adaface_names,
        settings=iresnet_names.adaface_settings,
    ),
    Layout(
        name="curricularface_ir",
        signs=(r"(net\.)?body\.\d+\.res_layer\.4\.running_mean",),
        names=iresnet_names.curricularface_names,
        settings=iresnet_names.curricularface_settings,
    ),
    Layout(
        name="insightface_mobilefacenet",
        signs=(r"(net\.)?conv_sep\.layers\.",),
        settings=mobilefacenet_names.settings,
        first_convolution="layers.0.layers.0.weight",
    ),
    Layout(
        name="curricularface_mobilefacenet",
        signs=(r"(net\.)?conv_6_sep\.",),
        names=mobilefacenet_names.curricularface_names,
        settings=mobilefacenet_names.settings,
        first_convolution="layers.0.layers.0.weight",
    ),
    Layout(
        name="insightface_vit",
        signs=(r"(net\.)?blocks\.\d+\.attn\.qkv\.", r"(net\.)?feature\.[0-3]\."),
        settings=vit_names.settings,
        first_convolution="patch_embed.proj.weight",
    ),
)


def recognise(state: State) -> str:
    """Name of the layout whose keys these are.

    AdaFace's names mean BGR weights (``adaface_ir``), the same under CVLface's ``net.`` RGB ones
    (``cvlface_ir``). CurricularFace's are face.evoLVe's too.

    Raises:
        ValueError: none, listing the layouts and some of the keys found.

    >>> import torch
    >>> recognise({"body.0.res_layer.2.running_mean": torch.zeros(64)})
    'adaface_ir'
    """
    return _layout_of(strip_prefixes(state)).name


def convert(state: State, colour_order: ColourOrder | None = None) -> Imported:
    """Another project's weights in Margrave's form: our names, RGB, an inferred specification.

    Depth, widths, gates, embedding size and image size are read from keys and shapes. BGR weights
    get the input channels of their first convolution reversed. Give what this returns to
    ``backbones.create`` and :func:`margrave.checkpoints.load_strictly`, which names every missing
    key, unexpected key and wrong shape.

    Args:
        state: from :func:`margrave.checkpoints.read_checkpoint`.
        colour_order: that the weights expect, where it is not the layout's own.

    Raises:
        ValueError: an unknown layout or colour order, or a tensor missing or out of shape from
            which a setting is read.
    """
    if colour_order not in (None, "rgb", "bgr"):
        raise ValueError(f"colour_order = {colour_order!r}, must be 'rgb' or 'bgr'")
    state = strip_prefixes(state)
    layout = _layout_of(state)
    bare = strip_prefixes(state, (WRAPPER,))
    network = {key: bare[key] for key in bare if not key.startswith(HEAD_PREFIXES)}
    head = {key: bare[key] for key in bare if key.startswith(HEAD_PREFIXES)}

    names = layout.names(network)
    network = rename(network, names)
    settings = layout.settings(network, names)
    notes = []
    if (colour_order or layout.colour_order) == "bgr":
        _reverse_colours(network, layout.first_convolution)
        notes.append("expected BGR: folded into the first convolution, so it now takes RGB")
    if layout.name in ("adaface_ir", "cvlface_ir") and colour_order is None:
        notes.append(
            f"{layout.colour_order.upper()} is assumed from the names; "
            "give colour_order if the file's own settings say otherwise"
        )
    if settings["kind"] == "vit":
        notes.append("8 attention heads are assumed: no shape shows their number")
    centres = None
    if any(tensor.dim() == 2 for tensor in head.values()):
        centres = head_weight(head, settings["embedding_size"])
    if left_out := [key for key, tensor in head.items() if tensor.dim() != 2]:
        notes.append(f"left out of the head: {', '.join(left_out)}")
    return Imported(
        layout=layout.name,
        backbone=settings,
        state=network,
        notes=tuple(notes),
        head_weight=centres,
        names=names,
    )


def _layout_of(state: State) -> Layout:
    for layout in LAYOUTS:
        if all(any(re.match(sign, key) for key in state) for sign in layout.signs):
            return layout
    raise ValueError(
        f"unknown layout; known ones: {', '.join(layout.name for layout in LAYOUTS)}; "
        f"found keys {', '.join(list(state)[:6]) or 'none'}"
    )


def _reverse_colours(network: dict[str, Tensor], key: str) -> None:
    weight = network.get(key)
    # A weight of another shape is left for load_strictly to name.
    if weight is not None and weight.dim() == 4 and weight.shape[1] == 3:
        network[key] = weight.flip(1)
