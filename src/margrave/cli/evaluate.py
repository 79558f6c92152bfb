"""``margrave evaluate``: how good a model is on your pairs."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model file, or a run's folder.")],
    images: Annotated[
        Path,
        typer.Argument(help="A folder with one subfolder per identity, records, or a .bin file."),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(help="LFW's pairs.txt, a CSV, or lines of 'path path 1'; else drawn."),
    ] = None,
    number: Annotated[
        int, typer.Option(help="How many balanced pairs to draw, a multiple of 20.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Which pairs are drawn.")] = 0,
    fit: Annotated[
        str | None, typer.Option(help="crop, stretch or pad to a square; else as in training.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; else CUDA if there.")] = None,
    maximum_unreadable: Annotated[
        int, typer.Option(help="Unreadable images whose pairs may be left out.")
    ] = 0,
    allow_outside: Annotated[
        bool, typer.Option(help="Let --pairs name files outside of the images' folder.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option(help="Import a network of somebody's own that the model names.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results as JSON.")
    ] = None,
) -> None:
    """Judge a model by the LFW protocol, with TAR at FAR and 95 % intervals."""
    from margrave.cli.console import Console
    from margrave.cli.progress import counted
    from margrave.cli.running import open_pairs, show, write_json
    from margrave.config import EvaluationSet
    from margrave.data import recognise
    from margrave.inference import load_embedder, verify

    console = Console(highlight=False)
    if fit not in ("crop", "stretch", "pad", None):
        raise ValueError(f"--fit {fit!r}; choices: crop, stretch, pad")
    embedder = load_embedder(model, fit=fit, device=device, trust_code=trust_code)
    if number < 20:
        raise ValueError(f"--number {number}: draw at least 20 pairs, a multiple of 20")
    pairs_file = None if pairs is None else str(pairs)
    if images.suffix.lower() == ".bin":
        if pairs is not None:
            raise ValueError(f"{images} brings its own pairs; leave --pairs out")
        entry = EvaluationSet(pairs_file=str(images))
    else:
        entry = EvaluationSet(
            images=recognise(images),
            pairs=number,
            pairs_file=pairs_file,
            allow_outside=allow_outside,
            seed=seed,
        )
    faces, pair_list = open_pairs(entry)
    with counted(console, "embedding") as progress:
        found = verify(embedder, faces, pair_list, progress, maximum_unreadable=maximum_unreadable)
    for reason in found.unreadable.values():
        console.print(f"left out: {reason}", markup=False)
    judged = {images.resolve().name: found}
    show(console, judged)
    if output is not None:
        write_json(judged, output)
        console.print(f"results are in {output}", markup=False)
