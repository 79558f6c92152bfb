"""``margrave pack``: pack images into records, shards or a verification set."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.quantity import quantity


def pack(
    images: Annotated[
        Path, typer.Argument(help="A folder with one subfolder per identity, records, or shards.")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="The folder to write records or shards to, or, with --pairs, the .bin file."
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Write a .bin of these pairs: LFW's pairs.txt, a CSV, or lines 'path path 1' "
            "(1: same person, 0: different people)."
        ),
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Write WebDataset shards in random order.")
    ] = False,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 16384,
    size: Annotated[int, typer.Option(min=16, help="Image side length in pixels.")] = 112,
    fit: Annotated[
        str, typer.Option(help="How to make images square: crop, stretch or pad.")
    ] = "crop",
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Quality of newly encoded JPEG files.")
    ] = 95,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 4,
    allow_outside: Annotated[
        bool, typer.Option(help="Allow --pairs to list files outside the folder IMAGES.")
    ] = False,
) -> None:
    """Write InsightFace's records (train.rec), WebDataset shards, or a verification set (.bin).

    JPEG and PNG files of the right size are packed unchanged; other images are resized and encoded.
    If packing shards is interrupted, run the command again to resume.
    """
    from margrave.cli.console import Console
    from margrave.cli.progress import show_progress
    from margrave.data import open_source, pack_pairs, pack_records, pack_shards
    from margrave.protocols import open_pairs

    console = Console(highlight=False)
    if fit not in ("crop", "stretch", "pad"):
        raise ValueError(f"--fit {fit!r}; choices: crop, stretch, pad")
    settings = {"fit": fit, "quality": quality, "workers": workers}
    with show_progress(console, "packing") as progress:
        if pairs is not None:
            if output.suffix != ".bin":
                raise ValueError(f"{output}: the name of a verification set must end in .bin")
            faces, pair_list = open_pairs(str(images), pairs, allow_outside=allow_outside)
            pack_pairs(faces, pair_list, output, size, progress=progress, **settings)
            message = f"{output} contains {quantity(len(pair_list), 'pair')}"
            # A .bin set is always evaluated with ten folds, or fewer if it has fewer pairs.
            if pair_list.folds != (folds := min(10, len(pair_list))):
                message += (
                    f"; a .bin does not store folds: {pairs} has {pair_list.folds}, but the .bin "
                    f"will be evaluated with {folds}"
                )
        else:
            source = open_source(images, labeled=True)
            if shards:
                settings["images_per_shard"] = images_per_shard
            elif any(output.glob("*.rec")):
                raise ValueError(f"{output} already contains records; choose another folder")
            pack_images = pack_shards if shards else pack_records
            unreadable = pack_images(source, output, size, progress=progress, **settings)
            for reason in unreadable.values():
                console.print(f"left out: {reason}", markup=False)
            message = (
                f"{output} contains {quantity(len(source) - len(unreadable), 'image')}; train with "
                f"--data {output}"
            )
    console.print(message, markup=False, soft_wrap=True)
