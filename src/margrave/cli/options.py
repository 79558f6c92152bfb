"""Helpers shared by several commands: parse options, open features, print and write results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from margrave.cli.console import Console
    from margrave.evaluation import Result
    from margrave.images import ReadableImages
    from margrave.inference import FeatureStore

FITS = ("crop", "stretch", "pad")
"""The ways to make an image square, choices of --fit."""


def parse_numbers(option: str, text: str) -> list[float]:
    """Parse numbers separated by commas.

    >>> parse_numbers("--far", "1e-4, 0.01")
    [0.0001, 0.01]
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}; give numbers separated by commas") from None


def check_fit(fit: str | None) -> Any:
    """Return the value of --fit after checking it; None means the fit used in training.

    >>> check_fit("pad")
    'pad'
    """
    if fit not in (*FITS, None):
        raise ValueError(f"--fit {fit!r}; choices: {', '.join(FITS)}")
    return fit


def warn_about_photos(
    console: Console, images: ReadableImages, size: int, remedy: str = "margrave align"
) -> None:
    """Warn if the images look like whole photos, because models need aligned crops.

    Args:
        console: the console to print to.
        images: the images to embed.
        size: side length of the crops that the model needs, in pixels.
        remedy: the option or command that aligns photos.
    """
    from margrave.inference import look_like_photos

    if look_like_photos(images, size):
        console.print(
            "warning: the images look like photos, not aligned face crops; align them with "
            f"{remedy}",
            style="yellow",
            soft_wrap=True,
        )


def open_features(console: Console, features: Path, verify: bool = True) -> FeatureStore:
    """Open stored features; with `verify`, check their checksums first."""
    from margrave.cli.progress import show_progress
    from margrave.inference import FeatureStore

    with show_progress(console, "checking features") as progress:
        return FeatureStore(features, verify=verify, progress=progress)


def show_results(console: Console, results: Sequence[Result]) -> None:
    """Print tables of results, then notes on them, then the images that were left out."""
    from margrave.cli.tables import result_notes, results_tables

    for table in results_tables(results):
        console.print(table)
    for note in result_notes(results):
        console.print(note, markup=False, soft_wrap=True)
    for result in results:
        for reason in result.unreadable.values():
            console.print(f"left out: {reason}", markup=False)


def write_output(console: Console, output: Path | None, results: Sequence[Result]) -> None:
    """Write results to the file of --output; do nothing if the option is not given."""
    from margrave.evaluation import write_results

    if output is not None:
        write_results(output, results)
        console.print(f"results are in {output}", markup=False, soft_wrap=True)


def check_page_path(output: Path) -> None:
    """Check, before anything is computed, that --output can name an HTML file."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output} must end in .html")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; give the name of a file")


def print_page_path(console: Console, output: Path) -> None:
    """Print the path and size of an HTML page that was written."""
    size = output.stat().st_size / 1e6
    console.print(f"{output} ({size:.1f} MB); open it in a browser", markup=False, soft_wrap=True)
