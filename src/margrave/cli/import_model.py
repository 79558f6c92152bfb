"""``margrave import``: other projects' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt, .ckpt or .safetensors file.")],
    model: Annotated[Path, typer.Argument(help="The model file to write (.safetensors).")],
    colour_order: Annotated[
        str | None,
        typer.Option(help="rgb or bgr, if the network was trained unlike its project's others."),
    ] = None,
) -> None:
    """Turn a checkpoint of InsightFace, AdaFace, CVLface or CurricularFace into a model file.

    The layout is recognised, networks trained on BGR take RGB afterwards, nothing in the file is
    executed, and whatever does not fit is named.
    """
    from rich.console import Console

    from margrave import backbones
    from margrave.checkpoints import (
        ModelCard,
        convert,
        load_strictly,
        read_checkpoint,
        save_model,
    )

    if model.suffix != ".safetensors":
        raise ValueError(f"{model}: a model file ends in .safetensors")
    if colour_order not in (None, "rgb", "bgr"):
        raise ValueError(f"--colour-order {colour_order!r}; choices: rgb, bgr")
    if model.exists():
        raise ValueError(f"{model} exists already: remove it, or choose another name")
    state = read_checkpoint(checkpoint)
    try:
        imported = convert(state, colour_order)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint}: {error} (a run's model.safetensors needs no import)"
        ) from error
    backbone = backbones.create(imported.backbone)
    load_strictly(backbone, imported.state, str(checkpoint), imported.names)
    card = ModelCard(
        backbone=imported.backbone,
        image_size=imported.backbone.get("image_size", 112),
        source=f"{imported.layout}, imported from {checkpoint.name}",
    )
    save_model(model, backbone.state_dict(), card)
    console = Console(highlight=False)
    console.print(f"[bold]{imported.layout}[/bold] -> {model}")
    for note in imported.notes:
        console.print(f"  {note}", markup=False)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    console.print(f"  {imported.backbone['kind']}, {parameters:,} parameters, RGB input")
