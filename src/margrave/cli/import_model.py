"""``margrave import``: other projects' weights."""

from pathlib import Path
from typing import Annotated, Any

import typer


def import_model(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pth, .pt, .ckpt, .safetensors or .onnx file.")
    ],
    model: Annotated[
        Path,
        typer.Argument(help="The model file to write: .safetensors, or .onnx for an .onnx file."),
    ],
    colour_order: Annotated[
        str | None,
        typer.Option(help="rgb or bgr, where the network was trained unlike its project's others."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of pixels in [0, 1], one number or three with commas, in the order "
            "of --colour-order; by default the project's."
        ),
    ] = None,
    deviation: Annotated[
        str | None,
        typer.Option(
            "--std", "--deviation", help="Standard deviation of pixels in [0, 1], likewise."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images, where the model leaves it open: ONNX, --backbone."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Where the weights are, if a checkpoint holds several networks."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The network, for weights of no known layout: my_module:Net, a name, or "
            "'{kind: vit, width: 256}'."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="ONNX: the output that is the embedding, among several.")
    ] = None,
) -> None:
    """Turn a checkpoint of a known project into a model file.

    Known are InsightFace, AdaFace, CVLface, CurricularFace, face.evoLVe, FaceX-Zoo and MagFace.

    The layout is recognised, networks trained on BGR take RGB afterwards, nothing in the file is
    executed, and whatever does not fit is named. An ONNX model is copied, and how its images are
    prepared is written beside it. --backbone names the network for weights of no known layout.
    """
    import torch

    from margrave import backbones
    from margrave.checkpoints import (
        ModelCard,
        adopt,
        convert,
        load_strictly,
        read_checkpoint,
        save_model,
    )
    from margrave.cli.console import Console
    from margrave.files import is_onnx
    from margrave.inference import Embedder
    from margrave.inference.onnx_model import import_onnx

    onnx = is_onnx(checkpoint)
    ending = ".onnx" if onnx else ".safetensors"
    if model.suffix != ending:
        raise ValueError(f"{model}: a model file ends in {ending}")
    if colour_order not in (None, "rgb", "bgr"):
        raise ValueError(f"--colour-order {colour_order!r}; choices: rgb, bgr")
    if model.exists():
        raise ValueError(f"{model} exists already: remove it, or choose another name")
    console = Console(highlight=False)
    if onnx and (key or backbone):
        raise ValueError("--key and --backbone are for checkpoints, not for ONNX models")
    if onnx:
        network, card = import_onnx(
            checkpoint,
            model,
            mean=numbers_or_none("--mean", mean),
            deviation=numbers_or_none("--std", deviation),
            colour_order=colour_order,
            image_size=image_size,
            output=output,
        )
        console.print(
            f"ONNX -> {model}: {card.image_size} x {card.image_size} {card.colour_order.upper()}, "
            f"(pixel - {card.mean}) / {card.deviation}",
            markup=False,
        )
        if network.one_at_a_time:
            console.print(
                "  images go through it one at a time, because its batch is fixed in the graph; "
                "export it for any batch to embed faster",
                markup=False,
            )
        return
    if output or (image_size and not backbone):
        raise ValueError("--image-size (without --backbone) and --output are for ONNX models")
    state = read_checkpoint(checkpoint, key)
    means, stds = numbers_or_none("--mean", mean), numbers_or_none("--std", deviation)
    if backbone:
        spec = specification(backbone, image_size)
        network = backbones.create(spec)
        imported = adopt(state, network, spec, colour_order, means, stds)
    else:
        try:
            imported = convert(state, colour_order, means, stds)
        except ValueError as error:
            raise ValueError(
                f"{checkpoint}: {error} (a run's model.safetensors needs no import; weights of "
                "another network: --backbone my_module:Net)"
            ) from error
        network = backbones.create_for(imported.state, imported.backbone, str(checkpoint))
    load_strictly(network, imported.state, str(checkpoint), imported.names)
    card = ModelCard(
        backbone=imported.backbone,
        image_size=imported.backbone.get("image_size", image_size or 112),
        mean=imported.mean,
        deviation=imported.deviation,
        source=f"{imported.layout}, imported from {checkpoint.name}",
    )
    if backbone:
        # Nobody has tried this network yet.
        Embedder(network, card).embed(torch.zeros(2, 3, card.image_size, card.image_size).byte())
    save_model(model, network.state_dict(), card)
    console.print(f"{imported.layout} -> {model}", markup=False)
    for note in imported.notes:
        console.print(f"  {note}", markup=False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    console.print(
        f"  {imported.backbone['kind']}, {parameters:,} parameters, RGB input, "
        f"(pixel - {card.mean}) / {card.deviation}",
        markup=False,
    )


def numbers_or_none(option: str, given: str | None) -> float | tuple[float, float, float] | None:
    """One number or three with commas; None where the option is not given."""
    if given is None:
        return None
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise ValueError(f"{option} {given!r}; give one number, or three with commas")
    return values[0] if len(values) == 1 else (values[0], values[1], values[2])


def specification(given: str, image_size: int | None) -> dict[str, Any]:
    """What --backbone names: a kind alone, or a mapping with settings."""
    from margrave import backbones
    from margrave.files import read_yaml
    from margrave.registry import settings_schema

    spec = read_yaml(given, "--backbone") if given.lstrip().startswith("{") else {"kind": given}
    if not isinstance(spec, dict) or not isinstance(kind := spec.get("kind"), str):
        raise ValueError(f"--backbone {given!r}; give a name, or '{{kind: NAME, setting: value}}'")
    takes_size = "image_size" in settings_schema(backbones.BACKBONES.get(kind)).model_fields
    return {"image_size": image_size, **spec} if image_size and takes_size else spec
