"""``margrave doctor``: find faults in data, a model or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margrave.cli import checkpoint_options

if TYPE_CHECKING:
    from rich.console import Console

    from margrave.doctor import Finding


def doctor(
    source: Annotated[
        str,
        typer.Argument(
            help="A data set (folder, records, shards, .bin), a model, a checkpoint, or a run."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="With a model: labeled faces, to test color order and normalization."),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            "--detector",
            "--yunet",
            help="With images or a run: check alignment with this YuNet file; default: MTCNN (pip "
            "extra align).",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=40, help="Examine at most this many images, from random identities.")
    ] = 20_000,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that read images.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Import and run custom code that a model or run names."),
    ] = False,
    key: checkpoint_options.Key = None,
    layout: checkpoint_options.Layout = None,
    backbone: checkpoint_options.Backbone = None,
    color_order: checkpoint_options.ColorOrder = None,
    mean: checkpoint_options.Mean = None,
    std: checkpoint_options.Std = None,
    image_size: checkpoint_options.ImageSize = None,
    output: checkpoint_options.Output = None,
) -> None:
    """List faults, worst first, each with a remedy; exit status 1 if any is serious.

    Models, checkpoints and verification sets are recognized by their content; only damaged files
    are recognized by their extensions.
    """
    from margrave.cli.console import Console
    from margrave.cli.progress import show_progress
    from margrave.data import open_source, read_pairs_bin
    from margrave.doctor import (
        available_detector,
        examine_images,
        examine_model,
        examine_pairs,
        examine_run,
    )

    console = Console(highlight=False, stderr=as_json)
    path = Path(source)
    kind = _detect_kind(path)
    model_options = {
        "--data": data,
        "--key": key,
        "--layout": layout,
        "--backbone": backbone,
        "--color-order": color_order,
        "--mean": mean,
        "--std": std,
        "--image-size": image_size,
        "--output": output,
    }
    _refuse_unused_options(kind, model_options, detector)
    with show_progress(console, "examining") as progress:
        if kind == "model":
            options = checkpoint_options.import_options(
                key, layout, backbone, color_order, mean, std, image_size=image_size, output=output
            )
            faces = open_source(data, labeled=True) if data else None
            # At most 400 pairs of faces are compared, or fewer with a small --images.
            findings = examine_model(path, faces, min(images, 400), trust_code, progress, options)
        else:
            face_detector = available_detector(detector)
            if kind == "run":
                # The second argument limits the images examined in each set. Evaluation images are
                # compared with up to ten times as many training images, so pass a tenth of --images
                # to keep that number within --images.
                findings = examine_run(
                    path, images // 10, workers, trust_code, progress, face_detector
                )
            elif kind == "pairs":
                pairs, packed_images = read_pairs_bin(path)
                findings = examine_pairs(packed_images, pairs, workers, progress, face_detector)
            else:
                faces = open_source(source, labeled=True)
                findings = examine_images(faces, images, workers, progress, detector=face_detector)
    serious = [finding for finding in findings if finding.severity == "serious"]
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        _print_findings(console, findings)
        summary = f"{len(serious)} serious" if serious else "nothing serious found"
        unchecked = [
            finding.fault.removesuffix("_not_checked").replace("_", " ")
            for finding in findings
            if finding.severity == "unchecked"
        ]
        console.print(summary + (f"; not checked: {', '.join(unchecked)}" if unchecked else ""))
    if serious:
        raise typer.Exit(1)


MODEL_EXTENSIONS = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx", ".tar")
"""Extensions by which damaged model files and checkpoints are recognized."""


def _detect_kind(path: Path) -> str:
    """Detect what a path contains: ``run``, ``model``, ``pairs`` or ``images``.

    Files are recognized by their content if possible, otherwise by their extension.

    Raises:
        ValueError: the file is none of these.
    """
    from margrave.files import file_kind
    from margrave.runs import RunFolder

    if RunFolder(path).is_run():
        return "run"
    if RunFolder(path).model.is_file():
        return "model"
    if not path.is_file():
        return "images"
    content, extension = file_kind(path), path.suffix.lower()
    if content in ("safetensors", "checkpoint", "onnx"):
        return "model"
    if content == "records" or extension == ".rec":
        return "images"
    # A damaged file cannot be recognized by its content, so use its extension.
    if extension in MODEL_EXTENSIONS:
        return "model"
    if content == "pickle" or extension == ".bin":
        return "pairs"
    raise ValueError(
        f"{path} is not a model, a checkpoint, a verification set or a record file; give one of "
        "these, a folder of images, or a run's folder"
    )


def _refuse_unused_options(
    kind: str, model_options: dict[str, object], detector: Path | None
) -> None:
    """Refuse options that a source of this kind does not use."""
    if kind == "model":
        if detector is not None:
            raise ValueError(
                "--detector belongs to a data set, a verification set or a run, but the source is "
                "a model; leave out --detector"
            )
        return
    if given := [option for option, value in model_options.items() if value is not None]:
        description = {"run": "run", "pairs": "verification set", "images": "data set"}[kind]
        listed, verb = ", ".join(given), "belongs" if len(given) == 1 else "belong"
        raise ValueError(
            f"{listed} {verb} to a model, but the source is a {description}; leave out {listed}"
        )


def _print_findings(console: Console, findings: list[Finding]) -> None:
    """Print each finding with its severity, examples and remedy."""
    from rich.markup import escape

    colors = {"serious": "bold red", "warning": "yellow", "unchecked": "cyan", "note": "dim"}
    for finding in findings:
        color = colors[finding.severity]
        console.print(
            f"[{color}]{finding.severity}[/] [bold]{finding.fault}[/]: {escape(finding.message)}",
            soft_wrap=True,
        )
        for example in finding.examples:
            console.print(f"    {escape(example)}", soft_wrap=True)
        if finding.remedy != "none needed":
            console.print(f"  -> {escape(finding.remedy)}", soft_wrap=True)
