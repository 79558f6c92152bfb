"""``margrave align``: convert photos to the aligned crops that embedders need."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.quantity import quantity


def align(
    photos: Annotated[Path, typer.Argument(help="A folder of photos; subfolders are included.")],
    crops: Annotated[
        Path,
        typer.Argument(
            help="The folder to write the crops to, with the same subfolders as PHOTOS."
        ),
    ],
    yunet: Annotated[
        Path | None,
        typer.Option(help="Detect faces with this YuNet file; default: MTCNN (pip extra align)."),
    ] = None,
    every_face: Annotated[
        bool, typer.Option("--every-face", help="Crop all faces of a photo, not only the largest.")
    ] = False,
    size: Annotated[int, typer.Option(min=16, help="Side length of the crops in pixels.")] = 112,
    minimum_face: Annotated[
        int, typer.Option(min=1, help="Skip faces narrower than this many pixels.")
    ] = 24,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
) -> None:
    """Detect faces and align them to ArcFace's five-point template.

    Photos without a usable face are listed with the reason in rejected.csv, in the folder CROPS. If
    the command was interrupted, run it again to resume.
    """
    import csv

    from margrave.cli.console import Console
    from margrave.cli.progress import show_progress
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
    with show_progress(console, "aligning") as progress:
        results = align_photos(photos, crops, settings, workers=workers, progress=progress)
    # `result.rejected` is the reason, or empty if the photo has crops.
    rejected = [result for result in results if result.rejected]
    with (
        atomic_write(crops / "rejected.csv") as temporary,
        # File names may contain bytes that are not UTF-8.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["photo", "reason"])
        writer.writerows((result.photo, result.rejected) for result in rejected)
    crop_paths = [crop for result in results for crop in result.crops]
    console.print(
        f"{crops} contains {quantity(len(crop_paths), 'face')} from "
        f"{quantity(len(results) - len(rejected), 'photo')}",
        markup=False,
        soft_wrap=True,
    )
    for result in rejected[:10]:
        console.print(f"rejected: {result.photo}: {result.rejected}", markup=False, soft_wrap=True)
    if len(rejected) > 10:
        console.print(
            f"and {len(rejected) - 10} more, listed in {crops / 'rejected.csv'}",
            markup=False,
            soft_wrap=True,
        )
    if crop_paths:
        # The contact sheet shows up to 12 crops of each of the first 10 subfolders, one subfolder
        # per row. A row shows one person if each person has a subfolder.
        by_folder: dict[Path, list[Path]] = {}
        for crop in map(Path, crop_paths):
            by_folder.setdefault(crop.parent, []).append(crop)
        row_paths = [folder_crops[:12] for folder_crops in list(by_folder.values())[:10]]
        images = ImageFiles(crops, [str(crop) for paths in row_paths for crop in paths])
        faces = iter([images.read(index) for index in range(len(images))])
        rows = [[next(faces) for _ in paths] for paths in row_paths]
        # Write the sheet next to the crop folder. If it were inside, training would read it as a
        # crop.
        sheet = crops.resolve().with_name(f"{crops.resolve().name}_contact_sheet.png")
        contact_sheet(rows, sheet)
        console.print(f"check the crops in {sheet}", markup=False, soft_wrap=True)
