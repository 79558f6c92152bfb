"""``margrave pack``: images into the files that training and others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pack(
    images: Annotated[
        Path, typer.Argument(help="A folder with one subfolder per identity, or records.")
    ],
    output: Annotated[
        Path, typer.Argument(help="A folder for records, or with --pairs a .bin file.")
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(help="LFW's pairs.txt or a CSV file: make a verification set (.bin)."),
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Of a side, pixels.")] = 112,
    fit: Annotated[str, typer.Option(help="crop, stretch or pad to a square.")] = "crop",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEGs that are made.")] = 95,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 4,
) -> None:
    """Write InsightFace's records (train.rec), or a verification set (.bin) of your own pairs.

    JPEG and PNG files of the right size are packed as they are; others are fitted and encoded.
    """
    from rich.console import Console

    from margrave.cli.progress import counted
    from margrave.cli.running import open_pairs
    from margrave.config import EvaluationSet
    from margrave.data import open_images, pack_pairs, pack_records, recognise

    console = Console(highlight=False)
    if fit not in ("crop", "stretch", "pad"):
        raise ValueError(f"--fit {fit!r}; choices: crop, stretch, pad")
    settings = {"fit": fit, "quality": quality, "workers": workers}
    with counted(console, "packing") as progress:
        if pairs is not None:
            if output.suffix != ".bin":
                raise ValueError(f"{output}: a verification set is a .bin file; name it so")
            entry = EvaluationSet(images=recognise(images), pairs_file=str(pairs))
            faces, pair_list = open_pairs(entry)
            pack_pairs(faces, pair_list, output, size, progress=progress, **settings)
            said = f"{len(pair_list)} pairs are in {output}"
        else:
            if any(output.glob("*.rec")):
                raise ValueError(f"{output} holds records already; choose another folder")
            source = open_images(recognise(images))
            faults = pack_records(source, output, size, progress=progress, **settings)
            for reason in faults.values():
                console.print(f"left out: {reason}", markup=False)
            said = f"{len(source) - len(faults)} images are in {output}; train with --data {output}"
    console.print(said, markup=False, soft_wrap=True)
