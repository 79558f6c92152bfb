"""Detects the layout of other projects' weights and converts them to Margrave's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from margrave.models.contract import Checkpoint, Imported, State
from margrave.models.head_weights import head_weight
from margrave.models.importers.contract import HEAD_PREFIXES, LAYOUTS, Importer, create_importer
from margrave.models.importers.shapes import rename
from margrave.models.pixel_statistics import (
    ColorOrder,
    PixelStatistic,
    check_pixel_statistics,
    to_rgb,
)
from margrave.models.prefixes import strip_prefixes


def detect_layout(state: State) -> str:
    """Detect the layout of a state dict from its keys.

    AdaFace's names mean BGR weights (``adaface_ir``); the same names with CVLface's prefix
    ``net.`` mean RGB weights (``cvlface_ir``). face.evoLVe uses CurricularFace's names, so its
    networks get CurricularFace's layouts.

    Raises:
        ValueError: no layout matches, or several do; the message lists them.

    >>> import torch
    >>> detect_layout({"body.0.res_layer.2.running_mean": torch.zeros(64)})
    'adaface_ir'
    """
    checkpoint = _strip_wrappers(state)
    matching = {
        name: LAYOUTS.get(name) for name in LAYOUTS if create_importer(name).matches(checkpoint)
    }
    # If both an importer and its subclass match, keep only the subclass.
    layouts = [
        name
        for name, importer_class in matching.items()
        if not any(
            issubclass(other_class, importer_class)
            for other_class in matching.values()
            if other_class is not importer_class
        )
    ]
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        raise ValueError(
            f"the keys match several layouts: {', '.join(layouts)}; choose one with --layout "
            "(layout=)"
        )
    raise ValueError(
        f"unknown layout; known layouts: {', '.join(LAYOUTS)}; "
        f"found keys: {', '.join(list(checkpoint)[:6]) or 'none'}"
    )


def _strip_wrappers(state: State) -> Checkpoint:
    """Remove wrapper prefixes from a state dict's keys, and return it as a `Checkpoint`."""
    if isinstance(state, Checkpoint):
        return Checkpoint(strip_prefixes(state), state.raw_keys, state.other_keys, state.notes)
    return Checkpoint(strip_prefixes(state), raw_keys=state)


def convert(
    state: State,
    color_order: ColorOrder | None = None,
    mean: PixelStatistic | None = None,
    std: PixelStatistic | None = None,
    layout: str | None = None,
) -> Imported:
    """Convert another project's weights to Margrave's names and RGB, and infer the backbone.

    The backbone's settings, such as depth and widths, are inferred from the tensors' keys and
    shapes. For BGR weights, the input channels of the first convolution are reversed. Pass the
    result's ``backbone`` to ``backbones.create`` and its ``state`` to
    :func:`margrave.models.load_strictly`, which reports every missing key, unexpected key and wrong
    shape.

    Args:
        state: the tensors from :func:`margrave.models.read_checkpoint`.
        color_order: the color order that the weights expect; None takes the layout's.
        mean: mean for pixels in [0, 1], one number or three in the weights' color order; None takes
            the layout's.
        std: standard deviation, like `mean`.
        layout: a registered name or an import path such as ``my_module:MyImporter``; None detects
            the layout from the keys.

    Raises:
        ValueError: the layout or color order is unknown, mean or std is above 1 (for pixels in
            [0, 255]), or a tensor that determines a setting is missing or has a wrong shape.
    """
    if color_order not in (None, "rgb", "bgr"):
        raise ValueError(f"color_order = {color_order!r}, must be 'rgb' or 'bgr'")
    check_pixel_statistics(mean=mean, std=std)
    checkpoint = _strip_wrappers(state)
    layout = layout or detect_layout(checkpoint)
    importer = create_importer(layout)
    network, head = importer.split(checkpoint)
    names = importer.names(network)
    network = rename(network, names)
    backbone = importer.backbone(network, names)
    notes = list(checkpoint.notes)
    order = color_order or importer.color_order
    if order == "bgr":
        _reverse_colors(network, importer.first_convolution)
        notes.append("the weights expected BGR; the first convolution was changed to take RGB")
    if None in (color_order, mean, std):
        notes.append(_assumption_note(importer, color_order, mean, std))
    notes += importer.assumptions(backbone)
    centers = None
    # Class centers are a matrix, and only the embedding size tells which of its dimensions is D.
    if any(tensor.dim() == 2 for tensor in head.values()) and "embedding_size" in backbone:
        centers = head_weight(head, backbone["embedding_size"])
    left_out = [key for key, tensor in head.items() if centers is None or tensor.dim() != 2]
    if left_out:
        notes.append(f"tensors of the head left out: {', '.join(left_out)}")
    return Imported(
        layout=layout,
        backbone=backbone,
        state=network,
        notes=tuple(notes),
        head_weight=centers,
        names=names,
        mean=to_rgb(importer.mean if mean is None else mean, order),
        std=to_rgb(importer.std if std is None else std, order),
        color_order=order,
    )


def import_for_network(
    state: State,
    network: nn.Module,
    backbone: Mapping[str, Any],
    color_order: ColorOrder | None = None,
    mean: PixelStatistic | None = None,
    std: PixelStatistic | None = None,
) -> Imported:
    """Prepare weights of an unknown layout for a network that the user has specified.

    The keys must be the network's keys, apart from wrapper prefixes. A head that is not part of the
    network is left out. Pass the result's ``state`` to ``load_strictly``.

    Args:
        state: the tensors from :func:`margrave.models.read_checkpoint`.
        network: the network built from `backbone`.
        backbone: the network's specification.
        color_order: the color order that the weights expect; None means RGB.
        mean: mean for pixels in [0, 1], in the weights' color order; None means 0.5.
        std: standard deviation, like `mean`.

    Raises:
        ValueError: two keys are equal without wrapper prefixes, mean or std is above 1 (for pixels
            in [0, 255]), or the weights expect BGR and it is unclear which convolution is the
            first.
    """
    check_pixel_statistics(mean=mean, std=std)
    checkpoint = _strip_wrappers(state)
    expected = network.state_dict()
    # Key without wrapper prefixes -> the network's key.
    full_keys = dict(zip(strip_prefixes(expected), expected, strict=True))
    weights = {full_keys.get(key, key): tensor for key, tensor in checkpoint.items()}
    left_out = [key for key in weights if key not in expected and key.startswith(HEAD_PREFIXES)]
    weights = {key: tensor for key, tensor in weights.items() if key not in left_out}
    notes = [*checkpoint.notes, *([f"head left out: {', '.join(left_out)}"] if left_out else [])]
    order = color_order or "rgb"
    if order == "bgr":
        color_convolutions = [
            key for key, tensor in weights.items() if tensor.dim() == 4 and tensor.shape[1] == 3
        ]
        if len(color_convolutions) != 1:
            raise ValueError(
                f"{len(color_convolutions)} convolutions have three input channels "
                f"({', '.join(color_convolutions[:3])}), so the one to convert from BGR to "
                "RGB is unknown; reverse the first convolution's input channels in the checkpoint "
                "and state --color-order rgb (color_order=)"
            )
        _reverse_colors(weights, color_convolutions[0])
        notes.append(f"the weights expected BGR; {color_convolutions[0]} was changed to take RGB")
    # Assumption -> the value that the user stated instead, or None.
    stated = {"RGB": color_order, "mean 0.5": mean, "std 0.5": std}
    if assumptions := [assumption for assumption, value in stated.items() if value is None]:
        notes.append(
            f"{', '.join(assumptions)} assumed, because the file does not state them; override "
            "with --color-order, --mean, --std"
        )
    return Imported(
        layout="own",
        backbone=dict(backbone),
        state=weights,
        notes=tuple(notes),
        mean=to_rgb(0.5 if mean is None else mean, order),
        std=to_rgb(0.5 if std is None else std, order),
        color_order=order,
    )


def _assumption_note(
    importer: Importer,
    color_order: str | None,
    mean: PixelStatistic | None,
    std: PixelStatistic | None,
) -> str:
    """The note for the user on assumed pixel statistics and the options that override them."""
    # Assumption -> (the option that overrides it, the value that the user stated instead or None).
    stated = {
        importer.color_order.upper(): ("--color-order", color_order),
        f"mean {_format_statistic(importer.mean)}": ("--mean", mean),
        f"std {_format_statistic(importer.std)}": ("--std", std),
    }
    options = {text: option for text, (option, value) in stated.items() if value is None}
    assumptions = list(options)
    several = len(assumptions) > 1
    listed = " and ".join(
        [", ".join(assumptions[:-1]), assumptions[-1]] if several else assumptions
    )
    source = f" ({importer.source})" if importer.source else ""
    shared_names = (
        f"; files of {importer.shared_with} may have the same names" if importer.shared_with else ""
    )
    return (
        f"{listed} {'are' if several else 'is'} assumed from the tensor names{source}"
        f"{shared_names}; override with {', '.join(options.values())}"
    )


def _format_statistic(value: PixelStatistic) -> str:
    numbers = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.4g}" for number in numbers)


def _reverse_colors(network: dict[str, Tensor], key: str) -> None:
    """Replace the convolution weight under this key by one with reversed input channels."""
    weight = network.get(key)
    # load_strictly reports a missing weight and a wrong shape later.
    if weight is not None and weight.dim() == 4 and weight.shape[1] == 3:
        network[key] = weight.flip(1)
