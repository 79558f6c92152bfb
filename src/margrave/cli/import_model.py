"""``margrave import``: convert other projects' weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margrave.cli import checkpoint_options

if TYPE_CHECKING:
    from margrave.cli.console import Console
    from margrave.models import ImportOptions


def import_model(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pth, .pt, .ckpt, .safetensors or .onnx file.")
    ],
    model: Annotated[
        Path,
        typer.Argument(help="The model file to write: .safetensors, or .onnx for an .onnx file."),
    ],
    color_order: checkpoint_options.ColorOrder = None,
    mean: checkpoint_options.Mean = None,
    std: checkpoint_options.Std = None,
    image_size: checkpoint_options.ImageSize = None,
    key: checkpoint_options.Key = None,
    layout: checkpoint_options.Layout = None,
    backbone: checkpoint_options.Backbone = None,
    output: checkpoint_options.Output = None,
) -> None:
    """Convert a checkpoint of another project to a model file.

    Supported: InsightFace, AdaFace, CVLface, CurricularFace, face.evoLVe, FaceX-Zoo and MagFace.

    The layout is detected, and networks trained on BGR are changed to take RGB. No code in the file
    is executed, and every tensor that does not fit is reported. An ONNX model is copied, and its
    preprocessing is written to a file next to it. For weights of an unknown layout, give your own
    importer with --layout, or the network with --backbone.
    """
    from margrave.cli.console import Console
    from margrave.files import is_onnx

    onnx = is_onnx(checkpoint)
    extension = ".onnx" if onnx else ".safetensors"
    if model.suffix != extension:
        raise ValueError(f"{model}: the name of the model file must end in {extension}")
    if model.exists():
        raise ValueError(f"{model} exists already: remove it, or choose another name")
    console = Console(highlight=False)
    options = checkpoint_options.import_options(
        key, layout, backbone, color_order, mean, std, image_size=image_size, output=output
    )
    if onnx:
        _import_onnx(console, checkpoint, model, options)
    else:
        _import_checkpoint(console, checkpoint, model, options)


def _import_onnx(console: Console, source: Path, target: Path, options: ImportOptions) -> None:
    """Copy an ONNX model, write its card, and print the preprocessing."""
    from margrave.models import import_onnx

    if options.key or options.backbone or options.layout:
        raise ValueError("--key, --layout and --backbone cannot be used with ONNX models")
    network, card = import_onnx(
        source,
        target,
        mean=options.mean,
        std=options.std,
        color_order=options.color_order,
        image_size=options.image_size,
        output=options.output,
    )
    console.print(
        f"ONNX -> {target}: {card.image_size} x {card.image_size} {card.color_order.upper()}, "
        f"(pixel - {card.mean}) / {card.std} for pixels in [0, 1]",
        markup=False,
    )
    if network.one_at_a_time:
        console.print(
            "  images are embedded one at a time, because the model has a fixed batch size; export "
            "it with a dynamic batch size for higher speed",
            markup=False,
        )


def _import_checkpoint(
    console: Console, source: Path, target: Path, options: ImportOptions
) -> None:
    """Convert another project's checkpoint to a model file, and print what was converted."""
    import torch

    from margrave.inference import Embedder
    from margrave.models import card_for, load_strictly, network_for, read_checkpoint, save_model

    if options.output or (options.image_size and options.backbone is None):
        raise ValueError(
            "--output, and --image-size without --backbone, can be used only with ONNX models"
        )
    state = read_checkpoint(source, options.key)
    try:
        network, imported = network_for(state, options, str(source))
    except ValueError as error:
        if options.backbone or options.layout:
            raise
        raise ValueError(
            f"{source}: {error} (a run's model.safetensors needs no import; for weights of an "
            "unknown layout, add --backbone my_module:Net)"
        ) from error
    load_strictly(network, imported.state, str(source), imported.names)
    card = card_for(imported, options.image_size, f"{imported.layout}, imported from {source.name}")
    if options.backbone or options.layout:
        # The user chose the network or the importer, so check that the network embeds images.
        pixels = torch.zeros(2, 3, card.image_size, card.image_size).byte()
        Embedder(network, card).embed_pixels(pixels)
    save_model(target, network.state_dict(), card)
    console.print(f"{imported.layout} -> {target}", markup=False)
    for note in imported.notes:
        console.print(f"  {note}", markup=False)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    console.print(
        f"  {imported.backbone['kind']}, {num_parameters:,} parameters, RGB input, "
        f"(pixel - {card.mean}) / {card.std} for pixels in [0, 1]",
        markup=False,
    )
