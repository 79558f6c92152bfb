"""Helpers of several commands: parsing options, opening features, showing and writing results."""

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


def numbers(option: str, given: str) -> list[float]:
    """Parse numbers separated by commas.

    >>> numbers("--far", "1e-4, 0.01")
    [0.0001, 0.01]
    """
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"{option} {given!r}; give numbers separated by commas") from None


def check_fit(fit: str | None) -> Any:
    """Check a way of making images square; None means the model's own.

    >>> check_fit("pad")
    'pad'
    """
    if fit not in (*FITS, None):
        raise ValueError(f"--fit {fit!r}; choices: {', '.join(FITS)}")
    return fit


def warn_about_photos(
    console: Console, images: ReadableImages, size: int, remedy: str = "margrave align"
) -> None:
    """Warn if a model that needs aligned crops is given whole photos."""
    from margrave.inference import look_like_photos

    if look_like_photos(images, size):
        console.print(
            f"warning: these look like photos, not aligned face crops; align them with {remedy}",
            style="yellow",
            soft_wrap=True,
        )


def open_features(console: Console, features: Path, verify: bool = True) -> FeatureStore:
    """Open a store of features and verify its checksums."""
    from margrave.cli.progress import counted
    from margrave.inference import FeatureStore

    with counted(console, "checking features") as progress:
        return FeatureStore(features, verify=verify, progress=progress)


def show_results(console: Console, results: Sequence[Result]) -> None:
    """Print results as tables, and the images that were left out."""
    from margrave.cli.tables import notes, results_tables

    for table in results_tables(results):
        console.print(table)
    for note in notes(results):
        console.print(note, markup=False, soft_wrap=True)
    for result in results:
        for reason in result.unreadable.values():
            console.print(f"left out: {reason}", markup=False)


def write_output(console: Console, output: Path | None, results: Sequence[Result]) -> None:
    """Write results to a file, if one is given."""
    from margrave.evaluation import write_results

    if output is not None:
        write_results(output, results)
        console.print(f"results are in {output}", markup=False, soft_wrap=True)


def check_page(output: Path) -> None:
    """Refuse a path that no page can be written to, before anything is computed for it."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output} must end in .html")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder")


def show_page(console: Console, output: Path) -> None:
    """Say where a page was written, and how large it is."""
    size = output.stat().st_size / 1e6
    console.print(f"{output} ({size:.1f} MB); open it in a browser", markup=False, soft_wrap=True)
