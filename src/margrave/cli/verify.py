"""``margrave verify``: decide whether two photos show the same person."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.cli.matching import (
    AlignedOption,
    DetectorOption,
    DeviceOption,
    FarOption,
    FloorOption,
    JsonOption,
    ModelOption,
    TrustOption,
    UncheckedOption,
)


def verify(
    images: Annotated[list[Path], typer.Argument(metavar="FIRST SECOND", help="The two photos.")],
    model: ModelOption = "baseline",
    far: FarOption = None,
    face: Annotated[
        str,
        typer.Option(
            help="Which face to use if a photo shows several: auto (the largest; refuse the photo "
            "if another is nearly as large), largest, or all (the most similar pair)."
        ),
    ] = "auto",
    yunet: DetectorOption = None,
    aligned: AlignedOption = False,
    unchecked: UncheckedOption = False,
    quality_floor: FloorOption = 0.5,
    device: DeviceOption = None,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide whether two photos show the same person; exit status 3 if they do not.

    The decision uses a threshold that is saved in the model. To choose one: margrave threshold.
    """
    import json

    from margrave.cli.console import Console
    from margrave.cli.matching import (
        alignment_options,
        verification_record,
        verification_text,
    )
    from margrave.matching import Matcher

    if len(images) != 2:
        hint = ""
        if len(images) == 3 and images[0].suffix in (".safetensors", ".onnx"):
            hint = f": margrave verify {images[1]} {images[2]} --model {images[0]}"
        raise ValueError(f"{len(images)} files given; give two photos{hint}")
    first, second = images
    matcher = Matcher.load(
        model,
        far=far,
        quality_floor=quality_floor,
        device=device,
        trust_code=trust_code,
        **alignment_options(yunet, aligned, unchecked),
    )
    # Fail before any photo is read if the model has no threshold.
    matcher.operating_point()
    result = matcher.verify(first, second, which=face)  # pyright: ignore[reportArgumentType]
    if as_json:
        typer.echo(json.dumps(verification_record(result)))
    else:
        text = verification_text(matcher, result)
        Console(highlight=False).print(text, markup=False, soft_wrap=True)
    # Exit status 3, because 1 means an error and 2 an invalid command line.
    raise typer.Exit(0 if result.same else 3)
