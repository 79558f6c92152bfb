"""``margrave compare``: which of two models is better, and whether that is significant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from margrave.cli.console import Console
    from margrave.evaluation import Result


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            help="The first model's features, results of margrave evaluate pairs, or run folder."
        ),
    ],
    second: Annotated[Path, typer.Argument(help="The second model's features or results.")],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            help="For features: LFW's pairs.txt, a CSV, lines 'path path 1', or a .bin set."
        ),
    ] = None,
    far: Annotated[
        str, typer.Option(help="Compare TAR at these FARs, separated by commas.")
    ] = "1e-2,1e-3",
    resamples: Annotated[int, typer.Option(min=2, help="Bootstrap replicates.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results to this file.")
    ] = None,
) -> None:
    """Compare two models on the same pairs: differences with intervals and p-values."""
    from margrave.cli.console import Console
    from margrave.cli.options import numbers, write_output
    from margrave.protocols import compare_results

    console = Console(highlight=False)
    targets = numbers("--far", far)
    one, other = _pair_results(console, first, pairs), _pair_results(console, second, pairs)
    shared = [name for name in one if name in other]
    if not shared and len(one) == len(other) == 1:
        results = [(*one.values(), *other.values())]
    else:
        results = [(one[name], other[name]) for name in shared]
    if not results:
        raise ValueError(
            f"{first} and {second} have no set of pairs in common: {', '.join(one)} and "
            f"{', '.join(other)}"
        )
    compared = [compare_results(a, b, targets, resamples) for a, b in results]
    for (a, b), result in zip(results, compared, strict=True):
        if a.scores == b.scores:
            console.print(
                f"{result.name}: both models give every pair the same score; there is nothing to "
                "compare"
            )
        else:
            _show(console, result, str(first), str(second))
    write_output(console, output, compared)


def _show(console: "Console", result: "Result", first: str, second: str) -> None:
    """Print the table of one comparison and how to read it."""
    from margrave.cli.tables import comparison_table

    console.print(comparison_table(result, first, second))
    console.print(
        "Differences: second minus first model, in percentage points (AUC as a share). p value: "
        "how often equally good models differ by at least as much. More pairs: the number needed "
        "to make a difference of this size significant at 5 %. These are "
        f"{len(result.figures)} tests: decide by the metric that you chose beforehand.",
        soft_wrap=True,
    )
    if any(figure.too_few for figure in result.figures):
        console.print(
            "* too few impostor pairs: they allow fewer than ten false accepts at this FAR, or "
            "none if there is no p value",
            soft_wrap=True,
        )


def _pair_results(console: "Console", path: Path, pairs: Path | None) -> "dict[str, Result]":
    """Results with scores, by the name of their set of pairs."""
    from margrave.cli.options import open_features
    from margrave.evaluation import is_results, read_results
    from margrave.inference import is_feature_store
    from margrave.protocols import EvaluationOptions, evaluate
    from margrave.runs import RunFolder

    if RunFolder(path).is_run():
        path = RunFolder(path).results
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: the run is not finished, or has no evaluation.sets; "
                "compare results of margrave evaluate pairs instead"
            )
    if is_results(path):
        if pairs is not None:
            raise ValueError(f"{path} contains results, which need no PAIRS; leave out PAIRS")
        results = {each.name: each for each in read_results(path) if each.scores is not None}
        if not results:
            raise ValueError(
                f"{path} contains no scores of pairs; evaluate the pairs again with this version "
                "of Margrave, or compare features"
            )
        return results
    if not is_feature_store(path):
        raise ValueError(
            f"{path} contains neither features nor results; create them with margrave embed or "
            "margrave evaluate pairs --output"
            if path.exists()
            else f"{path}: no such file or folder"
        )
    if pairs is None:
        raise ValueError(
            f"{path} contains features, which need a set of pairs: margrave compare FIRST SECOND "
            "PAIRS"
        )
    features = open_features(console, path)
    results = evaluate("pairs", features, EvaluationOptions(resamples=0), pairs=pairs)
    return {result.name: result for result in results}
