"""``margrave export``: write a model as an ONNX file that matches the original."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from margrave.export import Parity, Quantized
    from margrave.protocols import Pairs


def export(
    model: Annotated[Path, typer.Argument(help="A model file or a run's folder.")],
    output: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    faces: Annotated[
        str | None,
        typer.Option(
            help="Compare the exported model with the original on these aligned faces: a folder, "
            "records, …; default: synthetic faces."
        ),
    ] = None,
    number: Annotated[int, typer.Option(min=2, help="Number of faces to compare.")] = 64,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize to 8 bits; needs --pairs.")
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Measure int8 on these pairs: LFW's pairs.txt, a CSV, a .bin set, or, for random "
            "pairs, a folder with a subfolder per identity."
        ),
    ] = None,
    drawn: Annotated[
        int,
        typer.Option(
            min=20, help="Number of random pairs to draw from a folder: a multiple of 20."
        ),
    ] = 1000,
    images: Annotated[
        str | None, typer.Option(help="The images that --pairs lists: a folder, records, …")
    ] = None,
    allowed_loss: Annotated[
        float, typer.Option(min=0, help="Maximum loss of TAR due to int8, in percentage points.")
    ] = 0.5,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Import and run custom code that the model names.")
    ] = False,
) -> None:
    """Write a model as ONNX, with preprocessing and thresholds in the file.

    The exported model is compared with the original on faces and random pixels. No file is written
    if their embeddings differ by more than rounding. With --int8, the loss of TAR is measured on
    your pairs. No file is written if the loss exceeds --allowed-loss; otherwise new thresholds are
    chosen on the pairs.
    """
    from margrave.cli.console import Console
    from margrave.data import open_source
    from margrave.export import export_model

    if not int8 and (pairs is not None or images is not None):
        raise ValueError("--pairs and --images need --int8: add it, or leave them out")
    protocol, source = (None, None) if pairs is None else open_int8_pairs(pairs, images, drawn)
    console = Console(highlight=False)
    result = export_model(
        model,
        output,
        faces=None if faces is None else open_source(faces),
        num_faces=number,
        int8=int8,
        pairs=protocol,
        images=source,
        allowed_loss=allowed_loss,
        trust_code=trust_code,
    )
    console.print(parity_table(result.parity))
    if result.quantized is not None:
        for table in quantized_tables(result.quantized):
            console.print(table)
        for note in quantized_notes(result.quantized):
            console.print(note, markup=False, soft_wrap=True)
    card = result.card
    fars = ", ".join(f"{point.far:g}" for point in card.operating_points) or "none"
    console.print(
        f"{output}: {card.image_size} x {card.image_size} {card.color_order.upper()}, "
        f"(pixel - {card.mean}) / {card.std} for pixels in [0, 1]; thresholds for FAR: {fars}",
        markup=False,
        soft_wrap=True,
    )


def open_int8_pairs(pairs: Path, images: str | None, drawn: int) -> "tuple[Pairs, str | None]":
    """Return the protocol of pairs on which int8 is measured, and the source of its images.

    Args:
        pairs: a list of pairs, a .bin set, or a folder for random pairs.
        images: the images that a list of pairs names; None for a .bin set or a folder.
        drawn: number of random pairs to draw from a folder.

    Raises:
        ValueError: `images` is given although `pairs` is a folder of images.
    """
    from margrave.protocols import Pairs

    if pairs.is_file():
        return Pairs(pairs=pairs), images
    if images is not None:
        raise ValueError(
            f"{pairs} is a folder of images; leave out --images, or give --pairs a list of pairs"
        )
    return Pairs(number=drawn), str(pairs)


def parity_table(results: "Sequence[Parity]") -> "Table":
    """A table of differences: a row per set of images, each followed by a row per threshold."""
    from rich.table import Table

    table = Table("exported and original", "images", "cosine", "norm error", "decisions")
    for result in results:
        table.add_row(
            result.description,
            f"{result.count:,}",
            # The cosine is so close to 1 that only its distance from 1 tells anything.
            f"1 - {1 - result.cosine:.1e}",
            f"{result.norm_error:.1e}",
            "-",
        )
        for decision in result.decisions:
            differing = f"{decision.differing:,} of {decision.pairs:,} differ"
            table.add_row(f"  threshold for FAR {decision.point.far:g}", "", "", "", differing)
    return table


def quantized_tables(quantized: "Quantized") -> "Iterator[Table]":
    """Yield a table of the original's and the int8 model's metrics, and one of the differences."""
    from dataclasses import replace

    from margrave.cli.tables import comparison_table, results_tables

    named_results = (quantized.original, "float32"), (quantized.result, "int8")
    yield from results_tables([replace(result, name=name) for result, name in named_results])
    yield comparison_table(quantized.differences, "float32", "int8")


def quantized_notes(quantized: "Quantized") -> "Iterator[str]":
    """Yield notes on the accuracy that int8 costs, and on its thresholds."""
    yield (
        f"int8 costs at most {max(quantized.loss, 0.0):.2f} percentage points of TAR; calibrated "
        f"on {quantized.calibration_images} of the pairs' images"
    )
    if quantized.points:
        fars = ", ".join(f"{point.far:g}" for point in quantized.points)
        yield f"int8 shifts scores, so new thresholds were chosen on these pairs, for FAR {fars}"
    if quantized.unsupported_fars:
        fars = ", ".join(f"{far:g}" for far in quantized.unsupported_fars)
        yield (
            f"the pairs are too few to choose thresholds for FAR {fars}, so the int8 model has "
            "no thresholds for these FARs; choose thresholds on more images with margrave threshold"
        )
