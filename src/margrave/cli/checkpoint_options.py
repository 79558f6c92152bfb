"""Options that describe another project's weight file, shared by import and doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from margrave.models import ImportOptions, pixel_statistics

PANEL = "Properties of the weight file"
"""The heading of these options in the help."""


def _option(description: str) -> Any:
    return typer.Option(rich_help_panel=PANEL, help=description)


ColorOrder = Annotated[
    str | None,
    _option("rgb or bgr, if the network was not trained on its project's usual color order."),
]
Mean = Annotated[
    str | None,
    _option(
        "Mean for pixels in [0, 1]: one number, or three separated by commas in the order of "
        "--color-order; default: the project's."
    ),
]
Std = Annotated[
    str | None,
    _option("Standard deviation for pixels in [0, 1], like --mean."),
]
ImageSize = Annotated[
    int | None,
    _option("Image side length in pixels, if the ONNX model or --backbone accepts any size."),
]
Key = Annotated[
    str | None,
    _option("The key of the weights, if a checkpoint holds several networks."),
]
Layout = Annotated[
    str | None,
    _option(
        "The layout of the weights' names, such as adaface_ir, or my_module:MyImporter for "
        "your own importer; default: detected."
    ),
]
Backbone = Annotated[
    str | None,
    _option(
        "The network, for weights of an unknown layout: my_module:Net, a backbone's name, or "
        "'{kind: vit, width: 256}'."
    ),
]
Output = Annotated[
    str | None,
    _option("The embedding's name, if an ONNX model has several outputs."),
]


def import_options(
    key: str | None,
    layout: str | None,
    backbone: str | None,
    color_order: str | None,
    mean: str | None,
    std: str | None,
    *,
    image_size: int | None,
    output: str | None,
) -> ImportOptions:
    """Parse the options of these names.

    Raises:
        ValueError: an option's value is invalid.
    """
    from margrave.models import ImportOptions

    return ImportOptions(
        key=key,
        layout=layout,
        backbone=_parse_backbone(backbone, image_size) if backbone else None,
        mean=_parse_pixel_statistic("--mean", mean),
        std=_parse_pixel_statistic("--std", std),
        color_order=_check_color_order(color_order),
        image_size=image_size,
        output=output,
    )


def _check_color_order(order: str | None) -> pixel_statistics.ColorOrder | None:
    """Return the value of --color-order after checking that it is ``rgb``, ``bgr`` or None."""
    if order not in (None, "rgb", "bgr"):
        raise ValueError(f"--color-order {order!r}; choices: rgb, bgr")
    return order


def _parse_pixel_statistic(
    option: str, text: str | None
) -> float | tuple[float, float, float] | None:
    """Parse --mean or --std: one number, or three separated by commas; None remains None."""
    if text is None:
        return None
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise ValueError(f"{option} {text!r}; give one number, or three separated by commas")
    return values[0] if len(values) == 1 else (values[0], values[1], values[2])


def _parse_backbone(text: str, image_size: int | None) -> dict[str, Any]:
    """Parse --backbone: a name, or a YAML mapping with settings.

    Args:
        text: the option's value.
        image_size: the image size to set if the network has this setting and `text` does not set
            it; None keeps the network's default.
    """
    from margrave import backbones
    from margrave.files import read_yaml
    from margrave.registry import settings_schema

    spec = read_yaml(text, "--backbone") if text.lstrip().startswith("{") else {"kind": text}
    if not isinstance(spec, dict) or not isinstance(kind := spec.get("kind"), str):
        raise ValueError(f"--backbone {text!r}; give a name, or '{{kind: NAME, setting: value}}'")
    has_size = "image_size" in settings_schema(backbones.BACKBONES.get(kind)).model_fields
    return {"image_size": image_size, **spec} if image_size and has_size else spec
