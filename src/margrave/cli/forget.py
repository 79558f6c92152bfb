"""``margrave forget``: remove a person from a gallery."""

from typing import Annotated

import typer

from margrave.cli.matching import GALLERY, GalleryOption


def forget(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    gallery: GalleryOption = GALLERY,
) -> None:
    """Remove a person from a gallery and report whether every byte was erased.

    Exit status 3 if bytes are left for now.
    """
    from margrave.cli.console import Console
    from margrave.cli.matching import gallery_key
    from margrave.gallery import open_gallery

    with open_gallery(gallery, key=gallery_key()) as opened:
        done = opened.forget(name)
    state = "erased" if done.erased else "no longer searchable"
    Console(highlight=False).print(
        f"{done.name}: {state}; {done.explanation}", markup=False, soft_wrap=True
    )
    raise typer.Exit(0 if done.erased else 3)
