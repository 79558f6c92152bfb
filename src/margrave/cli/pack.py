"""``margrave pack``: images into the files that training and others read."""

from pathlib import Path
from typing import Annotated

import typer


def pack(
    images: Annotated[
        Path, typer.Argument(help="A folder with one subfolder per identity, records, or shards.")
    ],
    output: Annotated[
        Path, typer.Argument(help="A folder for records or shards, or with --pairs a .bin file.")
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(help="LFW's pairs.txt, a CSV, or lines of 'path path 1': make a .bin."),
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="WebDataset shards in random order, not records.")
    ] = False,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Of shards.")] = 16384,
    size: Annotated[int, typer.Option(min=16, help="Of a side, pixels.")] = 112,
    fit: Annotated[str, typer.Option(help="crop, stretch or pad to a square.")] = "crop",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEGs that are made.")] = 95,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 4,
    allow_outside: Annotated[
        bool, typer.Option(help="Let --pairs name files outside of the images' folder.")
    ] = False,
) -> None:
    """Write InsightFace's records (train.rec), WebDataset shards, or a verification set (.bin).

    JPEG and PNG files of the right size are packed as they are; others are fitted and encoded.
    Shards that were interrupted are gone on with.
    """
    from margrave.cli.console import Console
    from margrave.cli.progress import counted
    from margrave.cli.running import open_pairs
    from margrave.config import EvaluationSet
    from margrave.data import open_images, pack_pairs, pack_records, pack_shards, recognise

    console = Console(highlight=False)
    if fit not in ("crop", "stretch", "pad"):
        raise ValueError(f"--fit {fit!r}; choices: crop, stretch, pad")
    settings = {"fit": fit, "quality": quality, "workers": workers}
    with counted(console, "packing") as progress:
        if pairs is not None:
            if output.suffix != ".bin":
                raise ValueError(f"{output}: a verification set is a .bin file; name it so")
            entry = EvaluationSet(
                images=recognise(images), pairs_file=str(pairs), allow_outside=allow_outside
            )
            faces, pair_list = open_pairs(entry)
            pack_pairs(faces, pair_list, output, size, progress=progress, **settings)
            said = f"{len(pair_list)} pairs are in {output}"
            if pair_list.folds != (folds := min(10, len(pair_list))):
                said += f"; a .bin keeps no folds: {pair_list.folds} in {pairs}, {folds} there"
        else:
            source = open_images(recognise(images))
            if shards:
                settings["images_per_shard"] = images_per_shard
            elif any(output.glob("*.rec")):
                raise ValueError(f"{output} holds records already; choose another folder")
            pack_images = pack_shards if shards else pack_records
            faults = pack_images(source, output, size, progress=progress, **settings)
            for reason in faults.values():
                console.print(f"left out: {reason}", markup=False)
            said = f"{len(source) - len(faults)} images are in {output}; train with --data {output}"
    console.print(said, markup=False, soft_wrap=True)
