"""``margrave verify``: are these two faces one person?"""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    model: Annotated[Path, typer.Argument(help="A model file, a run's folder, or an .onnx file.")],
    first: Annotated[Path, typer.Argument(help="An aligned crop of a face.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    far: Annotated[
        float | None, typer.Option(help="Which kept threshold; else that of the smallest FAR.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option(help="Import a network of somebody's own that the model names.")
    ] = False,
) -> None:
    """Decide by the threshold kept with the model; exit status 3 if they are two people."""
    from margrave.cli.console import Console
    from margrave.data import decode_image
    from margrave.files import read_bytes
    from margrave.inference import decide, load_embedder

    embedder = load_embedder(model, trust_code=trust_code)
    faces = []
    for path in (first, second):
        try:
            faces.append(decode_image(read_bytes(path), str(path)))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    found = decide(embedder, faces[0], faces[1], far)
    Console(highlight=False).print(
        f"{'one person' if found.same else 'two people'}: cosine {found.cosine:.4f}, threshold "
        f"{found.point.threshold:.4f} (FAR {found.point.far:g}, {found.point.measured_on})",
        markup=False,
    )
    # Errors end with 1, a mistyped command with 2.
    raise typer.Exit(0 if found.same else 3)
