"""``margrave embed``: features once, for every protocol."""

from pathlib import Path
from typing import Annotated

import typer


def embed(
    model: Annotated[Path, typer.Argument(help="A model file, a run's folder, or an .onnx file.")],
    images: Annotated[
        str,
        typer.Argument(help="A folder of identities, records, shards, a .bin, or loose images."),
    ],
    features: Annotated[Path, typer.Argument(help="The folder to write; gone on with if begun.")],
    unlabelled: Annotated[
        bool, typer.Option(help="Images of nobody known, in whatever folders below IMAGES.")
    ] = False,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="IJB's name_5pts_score.txt: align the photos as they are read."),
    ] = None,
    flips: Annotated[bool, typer.Option(help="Embed mirror images too, for flip fusion.")] = True,
    fit: Annotated[
        str | None, typer.Option(help="crop, stretch or pad to a square; else as in training.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; else CUDA if there.")] = None,
    maximum_unreadable: Annotated[
        int, typer.Option(min=0, help="Unreadable images that may be left out.")
    ] = 0,
    trust_code: Annotated[
        bool, typer.Option(help="Import a network of somebody's own that the model names.")
    ] = False,
) -> None:
    """Write embeddings, norms, mirror images' embeddings and names into a checksummed folder."""
    from dataclasses import replace

    from margrave.cli.console import Console
    from margrave.cli.progress import counted
    from margrave.inference import embed_to_store, load_embedder, open_landmarked

    console = Console(highlight=False)
    if fit not in ("crop", "stretch", "pad", None):
        raise ValueError(f"--fit {fit!r}; choices: crop, stretch, pad")
    embedder = load_embedder(model, fit=fit, device=device, trust_code=trust_code)
    embedder = replace(embedder, batch_size=batch_size)
    if landmarks is not None:
        faces = open_landmarked(images, landmarks, embedder.card.image_size)
    else:
        faces = _open(images, unlabelled)
    with counted(console, "embedding") as progress:
        store = embed_to_store(
            embedder,
            faces,
            features,
            model=str(model),
            source=Path(images).name,
            flips=flips,
            maximum_unreadable=maximum_unreadable,
            progress=progress,
        )
    for reason in store.unreadable.values():
        console.print(f"left out: {reason}", markup=False)
    card = store.card
    console.print(
        f"{len(store):,} images, {store.embeddings.shape[1]} numbers each, in {features}\n"
        f"prepared as {card.image_size} x {card.image_size} {card.colour_order.upper()}, "
        f"(pixel - {card.mean}) / {card.deviation}, fit {embedder.fit}",
        markup=False,
    )


def _open(images: str, unlabelled: bool):
    from margrave.data import ImageFiles, image_paths, open_images, read_pairs_bin, recognise

    if images.lower().endswith(".bin"):
        return read_pairs_bin(images)[1]
    spec = recognise(images)
    if not unlabelled:
        try:
            return open_images(spec)
        except ValueError as error:
            if spec["kind"] != "folder":
                raise
            raise ValueError(f"{error}; images of one person or of nobody: --unlabelled") from error
    if spec["kind"] != "folder" or not Path(images).is_dir():
        raise ValueError(f"--unlabelled {images}: give a folder of images")
    paths = image_paths(images)
    if not paths:
        raise ValueError(
            f"{images} and the folders below hold no images; check the folder (links to folders "
            "are not followed)"
        )
    return ImageFiles(images, paths)
