"""``margrave threshold``: choose operating points by FAR and save them in the model."""

from pathlib import Path
from typing import Annotated

import typer


def threshold(
    model: Annotated[Path, typer.Argument(help="A model file, a run's folder, or an .onnx file.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="The model's features of labeled images (margrave embed), or its results "
            "(margrave evaluate all-to-all, or pairs)."
        ),
    ],
    far: Annotated[
        str | None,
        typer.Option(
            help="False accept rates (FARs), separated by commas; default: 1e-4 if the "
            "source is features, all FARs in it if it is results."
        ),
    ] = None,
    distractors: Annotated[
        Path | None,
        typer.Option(
            help="Features of distractors, which add impostor pairs and so allow smaller FARs."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=2, help="Number of bootstrap replicates for the intervals.")
    ] = 1000,
    save: Annotated[bool, typer.Option(help="Save the thresholds in the model.")] = True,
) -> None:
    """Choose the cosine above which two faces are accepted as the same person."""
    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.options import open_features, parse_numbers
    from margrave.cli.progress import show_progress
    from margrave.evaluation import is_results, read_results
    from margrave.evaluation.figure_text import interval_text, percent
    from margrave.protocols import (
        EvaluationOptions,
        check_features_match_model,
        choose_operating_points,
        measure_reference,
        points_of_result,
        save_operating_points,
    )

    console = Console(highlight=False)
    targets = None if far is None else parse_numbers("--far", far)
    reference = None
    if is_results(source):
        if distractors is not None:
            raise ValueError(
                f"--distractors needs features, but {source} contains results; leave out "
                "--distractors"
            )
        results = read_results(source)
        result = next((each for each in results if each.protocol == "all-to-all"), results[0])
        check_features_match_model(model, result.origin, f"the results in {source}")
        points = points_of_result(result, targets)
    else:
        features = open_features(console, source)
        check_features_match_model(model, features.origin, f"the features in {source}")
        distractor_features = None if distractors is None else open_features(console, distractors)
        with show_progress(console, "comparing") as progress:
            options = EvaluationOptions(resamples=resamples, progress=progress)
            points = choose_operating_points(
                features, targets or [1e-4], distractor_features, options
            )
        reference = measure_reference(features)
    table = Table("FAR", "cosine threshold", "95 % interval", "TAR %", "95 % interval")
    for point in points:
        interval = point.threshold_interval
        table.add_row(
            f"{point.far:g}",
            f"{point.threshold:.4f}",
            "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            percent(point.true_accept_rate),
            interval_text(point.true_accept_interval),
        )
    console.print(table)
    impostor_text = f"{points[0].impostors:,} impostor pairs"
    if distractors is not None:
        impostor_text += f", including pairs with the distractors in {distractors}"
    console.print(
        f"measured on {points[0].measured_on}; {impostor_text}", markup=False, soft_wrap=True
    )
    if reference is not None and reference.calibration is not None:
        calibration = reference.calibration
        console.print(
            f"evidence: ln(likelihood ratio) = {calibration.slope:.2f} x cosine "
            f"{calibration.offset:+.2f}, fitted on {calibration.people} identities; Cllr on the "
            f"other identities is {calibration.cllr:.3f} bits (minimum {calibration.cllr_min:.3f}; "
            "1 means no information)",
            markup=False,
            soft_wrap=True,
        )
    elif reference is not None:
        console.print(
            "evidence: not calibrated, because too few identities have two images", markup=False
        )
    if save:
        path = save_operating_points(model, points, reference)
        console.print(f"thresholds saved in {path}; margrave verify will use them", markup=False)
