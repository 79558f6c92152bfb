"""``margrave doctor``: what is wrong with data, a model or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from margrave.doctor import Finding


def doctor(
    patient: Annotated[
        str,
        typer.Argument(
            help="A data set (folder, records, shards, .bin), a model or checkpoint, or a run."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="With a model: labelled faces to try colours and normalisations on."),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            "--detector",
            "--yunet",
            help="YuNet's ONNX file, to check alignment with; default: MTCNN (extra align).",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=40, help="Look at this many images, drawn by identity.")
    ] = 20_000,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Findings as JSON, for programs.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Import and run a model's own network code.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="As for import: where a checkpoint has the weights.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="As for import: the network, for weights of no known layout.")
    ] = None,
    colour_order: Annotated[
        str | None, typer.Option(help="As for import: rgb or bgr, where the file does not say.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="As for import: mean of pixels in [0, 1].")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", help="As for import: their standard deviation.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="As for import: side of the images, where it is left open.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="As for import: an ONNX model's output, among several.")
    ] = None,
) -> None:
    """Findings, the worst first, each with its remedy; exit status 1 if one is serious.

    A file is a model, a checkpoint or a verification set by its content, whatever it is called.
    """
    from margrave.cli.console import Console
    from margrave.cli.import_model import numbers_or_none, specification
    from margrave.cli.progress import counted
    from margrave.data import open_images, read_pairs_bin, recognise
    from margrave.doctor import (
        ImportOptions,
        available_detector,
        examine_images,
        examine_model,
        examine_pairs,
        examine_run,
    )

    if colour_order not in (None, "rgb", "bgr"):
        raise ValueError(f"--colour-order {colour_order!r}; choices: rgb, bgr")
    console = Console(highlight=False, stderr=as_json)
    path = Path(patient)
    with counted(console, "looking") as progress:
        kind = _kind(path)
        if kind == "model":
            options = ImportOptions(
                key=key,
                backbone=specification(backbone, image_size) if backbone else None,
                mean=numbers_or_none("--mean", mean),
                deviation=numbers_or_none("--std", std),
                colour_order="bgr" if colour_order == "bgr" else colour_order and "rgb",
                image_size=image_size,
                output=output,
            )
            path = path / "model.safetensors" if path.is_dir() else path
            faces = open_images(recognise(data)) if data else None
            found = examine_model(path, faces, min(images, 400), trust_code, progress, options)
        else:
            landmarks = available_detector(detector)
            if kind == "run":
                found = examine_run(path, images // 10, workers, trust_code, progress, landmarks)
            elif kind == "pairs":
                pairs, packed = read_pairs_bin(path)
                found = examine_pairs(packed, pairs, workers, progress, landmarks)
            else:
                faces = open_images(recognise(patient))
                found = examine_images(faces, images, workers, progress, detector=landmarks)
    serious = [finding for finding in found if finding.severity == "serious"]
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], indent=1))
    else:
        _show(console, found)
        summary = f"{len(serious)} serious" if serious else "nothing serious found"
        unchecked = [each.fault.split("_")[0] for each in found if each.severity == "unchecked"]
        console.print(summary + (f"; not checked: {', '.join(unchecked)}" if unchecked else ""))
    if serious:
        raise typer.Exit(1)


MODEL_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx", ".tar")


def _kind(path: Path) -> str:
    """``run``, ``model``, ``pairs`` or ``images``, by what lies at the path.

    Raises:
        ValueError: a file that is none of them.
    """
    from margrave.files import file_kind

    if (path / "config.yaml").is_file():
        return "run"
    if (path / "model.safetensors").is_file():
        return "model"
    if not path.is_file():
        return "images"
    kind, ending = file_kind(path), path.suffix.lower()
    if kind in ("safetensors", "checkpoint", "onnx"):
        return "model"
    if kind == "records" or ending == ".rec":
        return "images"
    # Damaged files show nothing of what they were but their names.
    if ending in MODEL_ENDINGS:
        return "model"
    if kind == "pickle" or ending == ".bin":
        return "pairs"
    raise ValueError(
        f"{path}: by its content neither a model, a checkpoint, a verification set nor records; "
        "give one of them, a folder of images, or a run's folder"
    )


def _show(console: Console, found: list[Finding]) -> None:
    from rich.markup import escape

    colours = {"serious": "bold red", "warning": "yellow", "unchecked": "cyan", "note": "dim"}
    for finding in found:
        colour = colours[finding.severity]
        console.print(
            f"[{colour}]{finding.severity}[/] [bold]{finding.fault}[/]: {escape(finding.said)}",
            soft_wrap=True,
        )
        for example in finding.examples:
            console.print(f"    {escape(example)}", soft_wrap=True)
        if finding.remedy != "none needed":
            console.print(f"  -> {escape(finding.remedy)}", soft_wrap=True)
