"""``margrave align``: convert photos to the aligned crops that embedders need."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.quantity import quantity


def align(
    photos: Annotated[Path, typer.Argument(help="A folder of photos; subfolders are included.")],
    crops: Annotated[Path, typer.Argument(help="The folder to write, with the same subfolders.")],
    yunet: Annotated[
        Path | None,
        typer.Option(help="Detect faces with this YuNet file; default: MTCNN (pip extra align)."),
    ] = None,
    every_face: Annotated[
        bool, typer.Option("--every-face", help="Crop all faces of a photo, not only the largest.")
    ] = False,
    size: Annotated[int, typer.Option(min=16, help="Side length of the crops in pixels.")] = 112,
    minimum_face: Annotated[
        int, typer.Option(min=1, help="Reject faces narrower than this, in pixels.")
    ] = 24,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
) -> None:
    """Detect faces and align them to ArcFace's five-point template.

    Rejected photos are listed with the reason. Run the command again to resume it.
    """
    import csv

    from margrave.cli.console import Console
    from margrave.cli.progress import counted
    from margrave.data import ImageFiles
    from margrave.faces import AlignmentSettings, align_photos
    from margrave.files import atomic_write
    from margrave.pictures import contact_sheet

    console = Console(highlight=False)
    settings = AlignmentSettings(
        detector="mtcnn" if yunet is None else "yunet",
        model=None if yunet is None else str(yunet),
        every_face=every_face,
        size=size,
        minimum_face=minimum_face,
    )
    with counted(console, "aligning") as progress:
        aligned = align_photos(photos, crops, settings, workers=workers, progress=progress)
    rejected = [photo for photo in aligned if photo.rejected]
    with (
        atomic_write(crops / "rejected.csv") as temporary,
        # Photos' names may contain bytes that are not UTF-8.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["photo", "reason"])
        writer.writerows((photo.photo, photo.rejected) for photo in rejected)
    written = [crop for photo in aligned for crop in photo.crops]
    console.print(
        f"{crops} holds {quantity(len(written), 'face')} of "
        f"{quantity(len(aligned) - len(rejected), 'photo')}",
        markup=False,
        soft_wrap=True,
    )
    for photo in rejected[:10]:
        console.print(f"rejected: {photo.photo}: {photo.rejected}", markup=False, soft_wrap=True)
    if len(rejected) > 10:
        console.print(f"and {len(rejected) - 10} more, in {crops / 'rejected.csv'}", markup=False)
    if written:
        # A row for each of the first folders, which is a person where photos are sorted by person.
        by_folder: dict[Path, list[Path]] = {}
        for crop in map(Path, written):
            by_folder.setdefault(crop.parent, []).append(crop)
        chosen = [crops_of[:12] for crops_of in list(by_folder.values())[:10]]
        images = ImageFiles(crops, [str(crop) for row in chosen for crop in row])
        faces = iter([images.read(index) for index in range(len(images))])
        rows = [[next(faces) for _ in row] for row in chosen]
        # Beside the crops' folder, so that training does not mistake the sheet for a crop.
        sheet = crops.resolve().with_name(f"{crops.resolve().name}_contact_sheet.png")
        contact_sheet(rows, sheet)
        console.print(f"check the crops in {sheet}", markup=False, soft_wrap=True)
