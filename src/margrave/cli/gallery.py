"""``margrave gallery``: manage a gallery."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.cli.matching import (
    GALLERY,
    KEY_VARIABLE,
    DeviceOption,
    ModelOption,
    TrustOption,
    gallery_key,
)
from margrave.cli.quick import QuickCommand, QuickGroup
from margrave.quantity import quantity

app = typer.Typer(
    cls=QuickGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Manage a gallery: list, export, import, re-embed, verify erasure.",
)

GalleryArgument = Annotated[
    str,
    typer.Argument(help="A gallery file, or milvus://host:port/name."),
]


@app.command(cls=QuickCommand)
def stats(gallery: GalleryArgument = GALLERY) -> None:
    """Show a gallery's size and the model of its vectors."""
    from rich.table import Table
    from rich.text import Text

    from margrave.cli.console import Console
    from margrave.gallery import open_gallery

    with open_gallery(gallery, key=gallery_key()) as opened:
        counts, card = opened.stats(), opened.card
    table = Table(show_header=False)
    properties = {
        "people": f"{counts.people:,}",
        "images": f"{counts.images:,} ({counts.crops:,} kept as crops)",
        # `card.weights` is the digest of the weights; 12 of its digits are enough here.
        "model": f"{card.model} ({card.weights[:12]})",
        "vectors": f"{card.dimension} dimensions, {'float16' if card.half else 'float32'}",
        "fusion": card.fusion,
        "thresholds": ", ".join(
            f"{point['threshold']:.4f} (FAR {point['far']:g})" for point in card.thresholds
        )
        or "none",
        "size": "unknown" if counts.bytes is None else f"{counts.bytes / 1e6:,.1f} MB",
        "encrypted": "yes" if counts.encrypted else "no",
    }
    for name, value in properties.items():
        table.add_row(name, Text(value))
    Console(highlight=False).print(table)


@app.command("list", cls=QuickCommand)
def list_people(gallery: GalleryArgument = GALLERY) -> None:
    """List all people in a gallery, one per line: number of images, date of enrollment, name."""
    from margrave.gallery import open_gallery

    with open_gallery(gallery, key=gallery_key()) as opened:
        typer.echo("images\tenrolled\tname")
        for person in opened.people():
            typer.echo(f"{person.images}\t{person.enrolled}\t{person.name}")


@app.command("export", cls=QuickCommand)
def export(
    gallery: GalleryArgument,
    folder: Annotated[
        Path, typer.Argument(help="The folder to write; its files are not encrypted.")
    ],
) -> None:
    """Export all people to a folder of plain files with checksums."""
    from margrave.cli.console import Console
    from margrave.cli.progress import show_progress
    from margrave.gallery import export_gallery, open_gallery

    console = Console(highlight=False)
    with (
        open_gallery(gallery, key=gallery_key()) as opened,
        show_progress(console, "exporting") as progress,
    ):
        count = export_gallery(opened, folder, progress)
    console.print(f"exported {quantity(count, 'person')} to {folder}", markup=False)


@app.command("import", cls=QuickCommand)
def import_people(
    folder: Annotated[Path, typer.Argument(help="A folder written by margrave gallery export.")],
    gallery: GalleryArgument,
) -> None:
    """Import all people of an export into a gallery; create the gallery if it does not exist."""
    from margrave.cli.console import Console
    from margrave.gallery import (
        NoGallery,
        create_gallery,
        open_gallery,
        read_exported_card,
        read_exported_people,
    )

    card = read_exported_card(folder)
    try:
        opened = open_gallery(gallery, card=card, key=gallery_key())
    except NoGallery:
        opened = create_gallery(gallery, card, key=gallery_key())
    with opened:
        count = opened.restore(read_exported_people(folder))
    Console(highlight=False).print(
        f"imported {quantity(count, 'person')} into {gallery}", markup=False
    )


@app.command("re-embed", cls=QuickCommand)
def re_embed(
    gallery: GalleryArgument,
    target: Annotated[str, typer.Argument(help="The gallery to create for the new model.")],
    model: ModelOption = "baseline",
    device: DeviceOption = None,
    trust_code: TrustOption = False,
) -> None:
    """Create a new gallery for another model from the crops that a gallery keeps.

    People without kept crops are listed and must be enrolled again; exit status 3 if there are any.
    """
    from margrave.cli.console import Console
    from margrave.cli.progress import show_progress
    from margrave.matching import re_embed as run

    console = Console(highlight=False)
    with show_progress(console, "embedding") as progress:
        num_people, missing = run(
            gallery,
            target,
            model,
            key=gallery_key(),
            device=device,
            trust_code=trust_code,
            progress=progress,
        )
    console.print(f"{target} contains {quantity(num_people, 'person')}", markup=False)
    for name in missing:
        console.print(f"{name} has no kept crops; enroll the person again", markup=False)
    raise typer.Exit(3 if missing else 0)


@app.command("verify-erasure", cls=QuickCommand)
def verify_erasure(
    gallery: GalleryArgument,
    name: Annotated[
        list[str] | None, typer.Option(help="Also search for this name; repeatable.")
    ] = None,
) -> None:
    """Search a gallery for remaining data of forgotten people; exit status 3 if any may remain."""
    from margrave.gallery import open_gallery

    with open_gallery(gallery, key=gallery_key()) as opened:
        check = opened.verify_erasure([text.encode() for text in name or ()])
    for finding in check.findings:
        typer.echo(finding)
    typer.echo("no data remains" if check.complete else "data remains or may remain")
    raise typer.Exit(0 if check.complete else 3)


@app.command("new-key", cls=QuickCommand)
def new_key() -> None:
    """Print a random key for an encrypted gallery; store it separately from the gallery."""
    from margrave.gallery import new_key as random_key

    typer.echo(random_key())
    typer.echo(f"set {KEY_VARIABLE} to this key; without it the gallery cannot be read", err=True)
