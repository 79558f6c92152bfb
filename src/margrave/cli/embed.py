"""``margrave embed``: compute features once, for all protocols."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.quantity import quantity


def embed(
    model: Annotated[Path, typer.Argument(help="A model file, a run's folder, or an .onnx file.")],
    images: Annotated[
        str,
        typer.Argument(
            help="One of: a folder with a subfolder per identity; records; shards; a .bin file; a "
            "folder of unlabeled images."
        ),
    ],
    features: Annotated[
        Path, typer.Argument(help="The folder to write; if interrupted, run again to resume.")
    ],
    unlabeled: Annotated[
        bool,
        typer.Option(help="Treat all images in IMAGES and its subfolders as unlabeled."),
    ] = False,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="Align photos by the landmarks in this file: IJB's name_5pts_score.txt."),
    ] = None,
    align: Annotated[
        bool,
        typer.Option("--align", help="Detect and align the largest face of each photo."),
    ] = False,
    yunet: Annotated[
        Path | None,
        typer.Option(
            help="With --align: detect faces with this YuNet file; default: MTCNN (pip extra "
            "align)."
        ),
    ] = None,
    flips: Annotated[bool, typer.Option(help="Also embed flipped images, for flip fusion.")] = True,
    fit: Annotated[
        str | None,
        typer.Option(
            help="How to make images square: crop, stretch or pad; default: as in training."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, …; default: CUDA if available.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Runtime for an .onnx file: onnxruntime (default) or openvino."),
    ] = None,
    maximum_unreadable: Annotated[
        int, typer.Option(min=0, help="Skip at most this many unreadable images.")
    ] = 0,
    trust_code: Annotated[
        bool, typer.Option(help="Import and run custom network code that the model names.")
    ] = False,
) -> None:
    """Embed images once for all protocols; write the features and their checksums to a folder."""
    from dataclasses import replace

    import numpy as np

    from margrave.cli.console import Console
    from margrave.cli.options import check_fit, warn_about_photos
    from margrave.cli.progress import show_progress
    from margrave.data import open_source
    from margrave.faces import AlignedImages, open_landmarked_images
    from margrave.inference import embed_to_store, load_embedder
    from margrave.matching import cropper_for

    console = Console(highlight=False)
    embedder = load_embedder(
        model, fit=check_fit(fit), device=device, trust_code=trust_code, runtime=runtime
    )
    embedder = replace(embedder, batch_size=batch_size)
    card = embedder.card
    if yunet is not None and not align:
        raise ValueError("--yunet needs --align; add --align")
    if landmarks is not None:
        if align:
            raise ValueError("--landmarks already aligns the photos; leave out --align")
        faces = open_landmarked_images(images, landmarks, card.image_size)
    else:
        faces = open_source(images, labeled=False if unlabeled else None)
        if align:
            detector = "mtcnn" if yunet is None else "yunet"
            if card.alignment != "arcface":
                if yunet is not None:
                    raise ValueError(
                        f"{model} needs faces detected and aligned by {card.alignment}; leave out "
                        "--yunet"
                    )
                detector = card.alignment
            face_finder = cropper_for(card, yunet).finder
            assert face_finder is not None  # a cropper without a finder is for aligned images
            faces = AlignedImages(faces, face_finder, card.image_size, detector)
        else:
            remedy = "--align, or beforehand with margrave align"
            warn_about_photos(console, faces, card.image_size, remedy)
    with show_progress(console, "embedding") as progress:
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
    # The label of an unlabeled image is -1.
    identities = len(np.unique(store.labels[store.labels >= 0]))
    label_text = f" of {quantity(identities, 'identity')}" if identities else " without labels"
    console.print(
        f"{quantity(len(store), 'image')}{label_text}, {store.embeddings.shape[1]} features each, "
        f"in {features}\n"
        f"prepared as {card.image_size} x {card.image_size} {card.color_order.upper()}, "
        f"(pixel - {card.mean}) / {card.std} for pixels in [0, 1], fit {embedder.fit}",
        markup=False,
    )
