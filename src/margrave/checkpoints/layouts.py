"""Whose weights are these, and how do they read here?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from margrave.checkpoints import iresnet_names, mobilefacenet_names, vit_names
from margrave.checkpoints.contract import Checkpoint, Imported, Pixels, State, rename
from margrave.checkpoints.head_weights import head_weight
from margrave.checkpoints.reading import strip_prefixes

ColourOrder = Literal["rgb", "bgr"]
Names = Mapping[str, str]

HEAD_PREFIXES = ("head.", "classifier.", "partial_fc.")
# CVLface puts its networks under this name.
WRAPPER = "net."
# MagFace puts its networks under these names, and the head's weight beside them at the top.
MAGFACE = re.compile(r"features\.(?:module\.)?(?=(?:conv1|layer\d|bn\d|prelu|fc|features)\.)")
FACEXZOO_STD = 128 / 255
INSIGHTFACE_SOURCE = "deepinsight/insightface arcface_torch/dataset.py: RGB, mean 0.5, std 0.5"
CURRICULARFACE_SOURCE = "HuangYG123/CurricularFace: images read by PIL, mean 0.5, std 0.5"


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
        mean, deviation: of pixels in [0, 1], likewise.
        source: where that is written.
        evidence: what tells this project's files from others' with the same names.
        shared_with: projects whose files have the same names and cannot be told apart.
    """

    name: str
    signs: tuple[str, ...]
    settings: Callable[[State, Names], dict[str, Any]]
    names: Callable[[State], dict[str, str]] = lambda _state: {}
    first_convolution: str = "conv1.weight"
    colour_order: ColourOrder = "rgb"
    mean: Pixels = 0.5
    deviation: Pixels = 0.5
    source: str
    evidence: Callable[[Checkpoint], bool] = lambda _checkpoint: True
    shared_with: str = ""


def _is_facexzoo(checkpoint: Checkpoint) -> bool:
    """FaceX-Zoo saves backbone and head as one model, with the number of the batch beside it."""
    roots = {key.removeprefix("module.").partition(".")[0] for key in checkpoint.raw_keys}
    return "batch_id" in checkpoint.beside or {"backbone", "head"} <= roots


FACEXZOO: dict[str, Any] = {
    "colour_order": "bgr",
    "deviation": FACEXZOO_STD,
    "source": "JDAI-CV/FaceX-Zoo data_processor/train_dataset.py: cv2.imread, "
    "(image - 127.5) * 0.0078125",
    "evidence": _is_facexzoo,
}

LAYOUTS = (
    Layout(
        name="magface_iresnet",
        signs=(r"features\.(module\.)?layer[1-4]\.\d+\.prelu\.weight",),
        settings=iresnet_names.insightface_settings,
        colour_order="bgr",
        mean=0.0,
        deviation=1.0,
        source="IrvingMeng/MagFace inference/gen_feat.py: cv2.imread, ToTensor, mean 0, std 1",
    ),
    Layout(
        name="facexzoo_ir",
        signs=(r"body\.\d+\.res_layer\.4\.running_mean",),
        names=iresnet_names.curricularface_names,
        settings=iresnet_names.curricularface_settings,
        **FACEXZOO,
    ),
    Layout(
        name="facexzoo_mobilefacenet",
        signs=(r"conv_6_sep\.",),
        names=mobilefacenet_names.curricularface_names,
        settings=mobilefacenet_names.settings,
        first_convolution="layers.0.layers.0.weight",
        **FACEXZOO,
    ),
    Layout(
        name="insightface_iresnet",
        signs=(r"(net\.)?layer[1-4]\.\d+\.prelu\.weight",),
        settings=iresnet_names.insightface_settings,
        source=INSIGHTFACE_SOURCE,
        shared_with="MagFace (BGR in [0, 1]), ElasticFace",
    ),
    Layout(
        name="adaface_ir",
        signs=(r"body\.\d+\.res_layer\.2\.running_mean",),
        names=iresnet_names.adaface_names,
        settings=iresnet_names.adaface_settings,
        colour_order="bgr",
        source="mk-minchul/AdaFace README.md: BGR, mean 0.5, std 0.5",
        shared_with="CVLface (RGB)",
    ),
    Layout(
        name="cvlface_ir",
        signs=(r"net\.body\.\d+\.res_layer\.2\.running_mean",),
        names=iresnet_names.adaface_names,
        settings=iresnet_names.adaface_settings,
        source="mk-minchul/CVLface: RGB, mean 0.5, std 0.5",
        shared_with="AdaFace (BGR)",
    ),
    Layout(
        name="curricularface_ir",
        signs=(r"(net\.)?body\.\d+\.res_layer\.4\.running_mean",),
        names=iresnet_names.curricularface_names,
        settings=iresnet_names.curricularface_settings,
        source=CURRICULARFACE_SOURCE,
        shared_with="face.evoLVe (RGB), FaceX-Zoo (BGR)",
    ),
    Layout(
        name="insightface_mobilefacenet",
        signs=(r"(net\.)?conv_sep\.layers\.",),
        settings=mobilefacenet_names.settings,
        first_convolution="layers.0.layers.0.weight",
        source=INSIGHTFACE_SOURCE,
    ),
    Layout(
        name="curricularface_mobilefacenet",
        signs=(r"(net\.)?conv_6_sep\.",),
        names=mobilefacenet_names.curricularface_names,
        settings=mobilefacenet_names.settings,
        first_convolution="layers.0.layers.0.weight",
        source=CURRICULARFACE_SOURCE,
        shared_with="face.evoLVe (RGB), FaceX-Zoo (BGR)",
    ),
    Layout(
        name="insightface_vit",
        signs=(r"(net\.)?blocks\.\d+\.attn\.qkv\.", r"(net\.)?feature\.[0-3]\."),
        settings=vit_names.settings,
        first_convolution="patch_embed.proj.weight",
        source=INSIGHTFACE_SOURCE,
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
    return _layout_of(_checkpoint(state)).name


def _checkpoint(state: State) -> Checkpoint:
    """The state without wrappers' prefixes, from any reader."""
    if isinstance(state, Checkpoint):
        return Checkpoint(strip_prefixes(state), state.raw_keys, state.beside, state.notes)
    return Checkpoint(strip_prefixes(state), state)


def convert(
    state: State,
    colour_order: ColourOrder | None = None,
    mean: Pixels | None = None,
    deviation: Pixels | None = None,
) -> Imported:
    """Another project's weights in Margrave's form: our names, RGB, an inferred specification.

    Depth, widths, gates, embedding size and image size are read from keys and shapes. BGR weights
    get the input channels of their first convolution reversed. Give what this returns to
    ``backbones.create`` and :func:`margrave.checkpoints.load_strictly`, which names every missing
    key, unexpected key and wrong shape.

    Args:
        state: from :func:`margrave.checkpoints.read_checkpoint`.
        colour_order: that the weights expect, where it is not the layout's own.
        mean: of pixels in [0, 1], likewise; one number, or three in the weights' colour order.
        deviation: likewise.

    Raises:
        ValueError: an unknown layout or colour order, a mean of pixels in [0, 255], or a tensor
            missing or out of shape from which a setting is read.
    """
    if colour_order not in (None, "rgb", "bgr"):
        raise ValueError(f"colour_order = {colour_order!r}, must be 'rgb' or 'bgr'")
    check_pixel_statistics(mean=mean, deviation=deviation)
    checkpoint = _checkpoint(state)
    layout = _layout_of(checkpoint)
    if layout.name == "magface_iresnet":
        bare = _magface_parts(checkpoint)
    else:
        bare = strip_prefixes(checkpoint, (WRAPPER,))
    network = {key: bare[key] for key in bare if not key.startswith(HEAD_PREFIXES)}
    head = {key: bare[key] for key in bare if key.startswith(HEAD_PREFIXES)}

    names = layout.names(network)
    network = rename(network, names)
    settings = layout.settings(network, names)
    notes = list(checkpoint.notes)
    order = colour_order or layout.colour_order
    if order == "bgr":
        _reverse_colours(network, layout.first_convolution)
        notes.append("expected BGR: folded into the first convolution, so it now takes RGB")
    if None in (colour_order, mean, deviation):
        notes.append(_assumption(layout, colour_order, mean, deviation))
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
        mean=_for_rgb(layout.mean if mean is None else mean, order),
        deviation=_for_rgb(layout.deviation if deviation is None else deviation, order),
    )


def adopt(
    state: State,
    network: nn.Module,
    backbone: Mapping[str, Any],
    colour_order: ColourOrder | None = None,
    mean: Pixels | None = None,
    deviation: Pixels | None = None,
) -> Imported:
    """Weights of an unknown layout for a network that the user names.

    Keys are the network's own, whatever wrappers' prefixes either has; heads that the network has
    no place for are left out. Give what this returns to ``load_strictly``.

    Args:
        state: from :func:`margrave.checkpoints.read_checkpoint`.
        network: built from `backbone`.
        backbone: its specification.
        colour_order: that the weights expect, RGB if not stated.
        mean: of pixels in [0, 1], likewise; by default 0.5.
        deviation: likewise.

    Raises:
        ValueError: two keys become one, a mean of pixels in [0, 255], or weights for BGR whose
            first convolution cannot be told.
    """
    check_pixel_statistics(mean=mean, deviation=deviation)
    checkpoint = _checkpoint(state)
    expected = network.state_dict()
    ours = dict(zip(strip_prefixes(expected), expected, strict=True))
    weights = {ours.get(key, key): tensor for key, tensor in checkpoint.items()}
    left_out = [key for key in weights if key not in expected and key.startswith(HEAD_PREFIXES)]
    weights = {key: tensor for key, tensor in weights.items() if key not in left_out}
    notes = [*checkpoint.notes, *([f"head left out: {', '.join(left_out)}"] if left_out else [])]
    order = colour_order or "rgb"
    if order == "bgr":
        first = [key for key, each in weights.items() if each.dim() == 4 and each.shape[1] == 3]
        if len(first) != 1:
            raise ValueError(
                f"{len(first)} convolutions read three channels ({', '.join(first[:3])}), so BGR "
                "cannot be folded into the first; reverse its input channels in the checkpoint"
            )
        _reverse_colours(weights, first[0])
        notes.append(f"expected BGR: folded into {first[0]}, so it now takes RGB")
    assumed = {"RGB": colour_order, "mean 0.5": mean, "std 0.5": deviation}
    if unstated := [name for name, value in assumed.items() if value is None]:
        notes.append(
            f"{', '.join(unstated)} assumed, which nothing in the file shows; "
            "--colour-order, --mean, --std state it"
        )
    return Imported(
        layout="own",
        backbone=dict(backbone),
        state=weights,
        notes=tuple(notes),
        mean=_for_rgb(0.5 if mean is None else mean, order),
        deviation=_for_rgb(0.5 if deviation is None else deviation, order),
    )


def check_pixel_statistics(**given: Pixels | None) -> None:
    """Whether means and standard deviations are of pixels in [0, 1].

    Raises:
        ValueError: they are of pixels in [0, 255].
    """
    for name, value in given.items():
        if value is None:
            continue
        if max(abs(each) for each in (value if isinstance(value, tuple) else (value,))) > 1:
            raise ValueError(
                f"{name} = {value}; state it for pixels in [0, 1]: divide what is said of pixels "
                "in [0, 255] by 255"
            )


def _assumption(
    layout: Layout, colour_order: str | None, mean: Pixels | None, deviation: Pixels | None
) -> str:
    """What was not stated and cannot be read from weights, and what would change it."""
    assumed = {
        layout.colour_order.upper(): ("--colour-order", colour_order),
        f"mean {layout.mean:.4g}": ("--mean", mean),
        f"std {layout.deviation:.4g}": ("--std", deviation),
    }
    unstated = {name: option for name, (option, given) in assumed.items() if given is None}
    names = list(unstated)
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    others = (
        f"; files of {layout.shared_with} can have the same names" if layout.shared_with else ""
    )
    return (
        f"{listed} {'are' if len(names) > 1 else 'is'} assumed from the names "
        f"({layout.source}){others}; {', '.join(unstated.values())} override"
    )


def _for_rgb(value: Pixels, order: ColourOrder) -> Pixels:
    return (value[2], value[1], value[0]) if isinstance(value, tuple) and order == "bgr" else value


def _magface_parts(state: State) -> dict[str, Tensor]:
    """MagFace's network under its own names, and all else as the head's."""
    return {
        MAGFACE.sub("", key, count=1) if MAGFACE.match(key) else f"head.{key}": tensor
        for key, tensor in state.items()
    }


def _layout_of(state: Checkpoint) -> Layout:
    for layout in LAYOUTS:
        signed = all(any(re.match(sign, key) for key in state) for sign in layout.signs)
        if signed and layout.evidence(state):
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
