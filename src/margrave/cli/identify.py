"""``margrave identify``: search a gallery for faces."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margrave.cli.matching import (
    GALLERY,
    AlignedOption,
    DetectorOption,
    DeviceOption,
    FarOption,
    FloorOption,
    GalleryOption,
    JsonOption,
    ModelOption,
    TrustOption,
    UncheckedOption,
)
from margrave.quantity import quantity

if TYPE_CHECKING:
    from margrave.faces import Detection


def identify(
    images: Annotated[list[Path], typer.Argument(help="One or more photos.")],
    gallery: GalleryOption = GALLERY,
    model: ModelOption = "baseline",
    face: Annotated[
        str,
        typer.Option(
            help="Which face to use if a photo shows several: auto (the largest; refuse the photo "
            "if another is nearly as large), largest, or all."
        ),
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, help="Number of candidates to show per face.")] = 3,
    fpir: Annotated[
        float | None,
        typer.Option(help="Choose the threshold for this false positive identification rate."),
    ] = None,
    far: FarOption = None,
    yunet: DetectorOption = None,
    aligned: AlignedOption = False,
    unchecked: UncheckedOption = False,
    quality_floor: FloorOption = 0.5,
    device: DeviceOption = None,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a gallery for faces; exit status 3 if nobody is identified."""
    import json

    from rich.table import Table
    from rich.text import Text

    from margrave.cli.console import Console
    from margrave.cli.matching import alignment_options, gallery_key
    from margrave.matching import Matcher, Refused

    console = Console(highlight=False)
    matcher = Matcher.load(
        model,
        gallery,
        far=far,
        quality_floor=quality_floor,
        device=device,
        key=gallery_key(),
        trust_code=trust_code,
        **alignment_options(yunet, aligned, unchecked),
    )
    if fpir is None:
        # Fail before any photo is read if the model has no threshold.
        matcher.operating_point()
    any_identified = False
    table = Table("image", "face center", "person", "cosine", "other candidates")
    # Wrap the columns image, person and other candidates instead of cutting long names.
    for column in (0, 2, 4):
        table.columns[column].overflow = "fold"
    results = []
    refusals = []
    for image in images:
        try:
            identifications = matcher.identify(image, top_k=top, fpir=fpir, which=face)  # pyright: ignore[reportArgumentType]
        except Refused as error:
            # Continue with the other photos, and report the refused ones at the end.
            refusals.append(str(error))
            continue
        for number, result in enumerate(identifications, 1):
            any_identified |= result.person is not None
            results.append(result)
            candidate_texts = [
                f"{candidate.name} {candidate.similarity:.3f}" for candidate in result.candidates
            ]
            if as_json:
                record = {
                    "image": str(image),
                    "face": number,
                    "person": result.person,
                    "candidates": [
                        [candidate.name, candidate.similarity] for candidate in result.candidates
                    ],
                    "threshold": result.threshold,
                    "far": result.far,
                    "fpir": result.fpir,
                    "quality": result.face.quality,
                    "box": _rounded_box(result.face.detection),
                }
                typer.echo(json.dumps(record, ensure_ascii=False))
            best = result.candidates[0] if result.candidates else None
            # For an unknown person, the best candidate is listed with the others.
            table.add_row(
                Text("/".join(image.parts[-2:])),
                _center_text(result.face.detection) or str(number),
                Text(result.person or "unknown"),
                "-" if best is None else f"{best.similarity:.3f}",
                Text(", ".join(candidate_texts[1:] if result.person else candidate_texts)),
            )
    if not as_json and results:
        console.print(table)
        # The threshold, FAR and FPIR are the same for all results.
        last = results[-1]
        console.print(
            f"threshold {last.threshold:.4f} (FAR {last.far:g} per comparison): with "
            f"{quantity(last.people, 'person')} in the gallery, about {100 * last.fpir:.2g} % of "
            "people who are not enrolled are identified as someone",
            markup=False,
            soft_wrap=True,
        )
    if refusals:
        raise ValueError("\n".join(refusals))
    raise typer.Exit(0 if any_identified else 3)


def _rounded_box(detection: "Detection | None") -> list[int] | None:
    """Left, top, right and bottom of a face in pixels; None for an aligned crop."""
    return None if detection is None else [round(float(edge)) for edge in detection.box]


def _center_text(detection: "Detection | None") -> str:
    """The face's center as ``x, y`` in pixels; empty for an aligned crop."""
    if detection is None:
        return ""
    left, top, right, bottom = detection.box
    return f"{(left + right) / 2:.0f}, {(top + bottom) / 2:.0f}"
