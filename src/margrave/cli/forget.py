"""``margrave forget``: remove a person from a gallery."""

from typing import Annotated

import typer

from margrave.cli.matching import GALLERY, GalleryOption


def forget(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    gallery: GalleryOption = GALLERY,
) -> None:
    """Remove a person from a gallery and report whether every byte was erased.

    The exit status is 3 if some bytes are not erased yet.
    """
    from margrave.cli.console import Console
    from margrave.cli.matching import gallery_key
    from margrave.gallery import open_gallery

    with open_gallery(gallery, key=gallery_key()) as opened:
        outcome = opened.forget(name)
    outcome_text = "erased" if outcome.erased else "no longer searchable"
    Console(highlight=False).print(
        f"{outcome.name}: {outcome_text}; {outcome.explanation}", markup=False, soft_wrap=True
    )
    raise typer.Exit(0 if outcome.erased else 3)
