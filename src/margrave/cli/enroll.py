"""``margrave enroll``: add a person to a gallery."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.cli.matching import (
    GALLERY,
    AlignedOption,
    DetectorOption,
    DeviceOption,
    FloorOption,
    GalleryOption,
    ModelOption,
    TrustOption,
    UncheckedOption,
)
from margrave.quantity import quantity


def enroll(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    images: Annotated[list[Path], typer.Argument(help="One or more photos of the person.")],
    gallery: GalleryOption = GALLERY,
    model: ModelOption = "baseline",
    yunet: DetectorOption = None,
    aligned: AlignedOption = False,
    unchecked: UncheckedOption = False,
    add: Annotated[bool, typer.Option("--add", help="Add images to an enrolled person.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an enrolled person.")] = False,
    allow_similar: Annotated[
        bool,
        typer.Option(
            "--allow-similar",
            help="Accept photos that seem to show different people, and a face that is already "
            "enrolled under another name.",
        ),
    ] = False,
    largest: Annotated[
        bool,
        typer.Option(
            "--largest",
            help="Use each photo's largest face, even if other faces are similar in size.",
        ),
    ] = False,
    keep_images: Annotated[
        bool,
        typer.Option(
            "--keep-images",
            help="When creating the gallery: keep crops, which margrave gallery re-embed needs.",
        ),
    ] = False,
    quality_floor: FloorOption = 0.5,
    device: DeviceOption = None,
    trust_code: TrustOption = False,
) -> None:
    """Enroll a person with photos; create the gallery if it does not exist.

    A new gallery is encrypted if MARGRAVE_GALLERY_KEY is set.
    """
    from margrave.cli.console import Console
    from margrave.cli.matching import alignment_options, gallery_key, quality_text
    from margrave.matching import Matcher

    console = Console(highlight=False)
    matcher = Matcher.load(
        model,
        gallery,
        create=True,
        keep_images=keep_images,
        quality_floor=quality_floor,
        device=device,
        key=gallery_key(),
        trust_code=trust_code,
        **alignment_options(yunet, aligned, unchecked),
    )
    enrolled = matcher.enroll(
        name, images, add=add, replace=replace, allow_similar=allow_similar, largest=largest
    )
    for face in enrolled.faces:
        console.print(f"{face.image}: {quality_text(face)}", markup=False, soft_wrap=True)
    most_similar = enrolled.most_similar
    similar_text = ""
    if most_similar is not None:
        similar_text = (
            f"; most similar other person: {most_similar.name}, "
            f"cosine {most_similar.similarity:.3f}"
        )
    assert matcher.gallery is not None
    num_people = len(matcher.gallery)
    console.print(
        f"{enrolled.person.name} is enrolled in {gallery} with "
        f"{quantity(enrolled.person.images, 'image')}{similar_text} "
        f"({quantity(num_people, 'person')} in the gallery)",
        markup=False,
        soft_wrap=True,
    )
