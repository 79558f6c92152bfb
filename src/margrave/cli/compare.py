"""``margrave compare``: test which of two models is better on the same pairs."""

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
            help="The first model's features, its results (margrave evaluate pairs), or its run "
            "folder."
        ),
    ],
    second: Annotated[Path, typer.Argument(help="The same for the second model.")],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            help="The pairs, required for features: LFW's pairs.txt, a CSV, lines 'path path 1' "
            "(0: different people), or a .bin set."
        ),
    ] = None,
    far: Annotated[
        str, typer.Option(help="Compare TAR at these FARs, separated by commas.")
    ] = "1e-2,1e-3",
    resamples: Annotated[int, typer.Option(min=2, help="Number of bootstrap replicates.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results to this file.")
    ] = None,
) -> None:
    """Compare two models on the same pairs: differences with intervals and p-values."""
    from margrave.cli.console import Console
    from margrave.cli.options import parse_numbers, write_output
    from margrave.protocols import compare_results

    console = Console(highlight=False)
    targets = parse_numbers("--far", far)
    first_results = _pair_results(console, first, pairs)
    second_results = _pair_results(console, second, pairs)
    common = [name for name in first_results if name in second_results]
    if not common and len(first_results) == len(second_results) == 1:
        # Each model has results on one set of pairs. Compare them even if the sets' names differ.
        matched = [(*first_results.values(), *second_results.values())]
    else:
        matched = [(first_results[name], second_results[name]) for name in common]
    if not matched:
        raise ValueError(
            f"{first} ({', '.join(first_results)}) and {second} ({', '.join(second_results)}) have "
            "no set of pairs in common; evaluate both models on the same pairs"
        )
    comparisons = [compare_results(a, b, targets, resamples) for a, b in matched]
    for (a, b), comparison in zip(matched, comparisons, strict=True):
        if a.scores == b.scores:
            console.print(
                f"{comparison.name}: both models give every pair the same score; there is nothing "
                "to compare"
            )
        else:
            _print_comparison(console, comparison, str(first), str(second))
    write_output(console, output, comparisons)


def _print_comparison(console: "Console", result: "Result", first: str, second: str) -> None:
    """Print the table of one comparison and explain how to read it."""
    from margrave.cli.tables import comparison_table

    console.print(comparison_table(result, first, second))
    console.print(
        "Difference: second model minus first, in percentage points (AUC: on its scale from 0 "
        "to 1). p value: how often equally good models differ by at least this much. More "
        "pairs: how many more pairs would make a difference of this size significant at 5 %. The "
        f"table contains {len(result.figures)} tests: decide by the metric that you chose "
        "beforehand.",
        soft_wrap=True,
    )
    if any(figure.too_few for figure in result.figures):
        console.print(
            "* too few impostor pairs: they allow fewer than ten false accepts at this FAR; where "
            "they allow none, there is no p value",
            soft_wrap=True,
        )


def _pair_results(console: "Console", path: Path, pairs: Path | None) -> "dict[str, Result]":
    """A model's results on pairs, with the pairs' scores.

    Args:
        console: shows the progress of reading features.
        path: features, results, or a run's folder.
        pairs: the pairs on which features are evaluated; None for results and runs.

    Returns:
        name of each set of pairs -> result.

    Raises:
        ValueError: the path contains none of these, or `pairs` is missing or superfluous.
    """
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
                "evaluate both models with margrave evaluate pairs, and compare the results"
            )
    if is_results(path):
        if pairs is not None:
            raise ValueError(
                f"{path} contains results, for which the pairs are already scored; leave out PAIRS"
            )
        with_scores = (result for result in read_results(path) if result.scores is not None)
        results = {result.name: result for result in with_scores}
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
