"""``margrave align``: photos into the crops that embedders are trained on."""

from pathlib import Path
from typing import Annotated

import typer


def align(
    photos: Annotated[Path, typer.Argument(help="A folder of photos, with folders below or not.")],
    crops: Annotated[Path, typer.Argument(help="Where the crops go, in the same folders.")],
    yunet: Annotated[
        Path | None, typer.Option(help="YuNet's ONNX file; else MTCNN (extra align) searches.")
    ] = None,
    every_face: Annotated[
        bool, typer.Option("--every-face", help="All faces of a photo, not the largest alone.")
    ] = False,
    size: Annotated[int, typer.Option(min=16, help="Of a crop's side, pixels.")] = 112,
    minimum_face: Annotated[
        int, typer.Option(min=1, help="Narrower faces are rejected, pixels.")
    ] = 24,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Find faces, turn them upright and crop them by ArcFace's five-point template.

    Rejected photos are listed with the reason; called again, it goes on where it stopped.
    """
    import csv

    from margrave.cli.console import Console
    from margrave.cli.progress import counted
    from margrave.data import ImageFiles
    from margrave.files import atomic_write
    from margrave.inference import AlignmentSettings, align_photos
    from margrave.report import contact_sheet

    console = Console(highlight=False)
    settings = AlignmentSettings(
        detector="mtcnn" if yunet is None else "yunet",
        model=None if yunet is None else str(yunet),
        every_face=every_face,
        size=size,
        minimum_face=minimum_face,
    )
    with counted(console, "aligning") as progress:
        found = align_photos(photos, crops, settings, workers=workers, progress=progress)
    rejected = [one for one in found if one.rejected]
    with (
        atomic_write(crops / "rejected.csv") as temporary,
        # Names of photos need not be text.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["photo", "reason"])
        writer.writerows((one.photo, one.rejected) for one in rejected)
    written = [crop for one in found for crop in one.crops]
    console.print(
        f"{len(written)} faces of {len(found) - len(rejected)} photos are in {crops}", markup=False
    )
    for one in rejected[:10]:
        console.print(f"rejected: {one.photo}: {one.rejected}", markup=False, soft_wrap=True)
    if len(rejected) > 10:
        console.print(f"and {len(rejected) - 10} more, in {crops / 'rejected.csv'}", markup=False)
    if written:
        shown = ImageFiles(crops, written[:120])
        faces = [shown.read(index) for index in range(len(shown))]
        rows = [faces[start : start + 12] for start in range(0, len(faces), 12)]
        # Beside the crops, so that whoever trains on them does not take it for one.
        sheet = crops.resolve().with_name(f"{crops.resolve().name}_contact_sheet.png")
        contact_sheet(rows, sheet)
        console.print(f"look at them: {sheet}", markup=False, soft_wrap=True)
