"""A study's sections, one per condition: losses with intervals, and their differences."""

from __future__ import annotations

from margrave.evaluation import Figure, Result
from margrave.evaluation.figure_text import figure_interval_text, p_value_text, value_text
from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Table, Text


def study_section(result: Result) -> Section:
    """One condition: verdict, claims, losses from best to worst, and all differences of losses."""
    metric = str(result.settings.get("metric", "accuracy"))
    losses = {
        str(figure.at["loss"]): figure
        for figure in result.figures
        if figure.metric == metric and "loss" in figure.at and not figure.stratum
    }
    verdict, *claims = result.notes or ("",)
    blocks: list[Block] = [Text(verdict, "verdict")] if verdict else []
    blocks += [Text(claim) for claim in claims]
    seed_values = result.curves.get(f"{metric} by seed", {})
    chart = charts.ranges(
        [
            {"name": loss, "x": figure.value, "low": (figure.interval or [figure.value] * 2)[0],
             "high": (figure.interval or [figure.value] * 2)[1]}
            for loss, figure in losses.items() if figure.value is not None
        ],
        metric,
        x_format=".1%" if metric != "AUC" else None,
        ticks=[
            {"name": loss, "x": value} for loss, values in seed_values.items() for value in values
        ],
        description=f"{metric} of each loss: " + ", ".join(
            f"{loss} {value_text(figure)}" for loss, figure in losses.items()
        ),
    )  # fmt: skip
    caption = (
        f"Mean {metric} over {result.counts.get('seeds', 0)} seeds with its 95 % interval over "
        "seeds and identities; ticks are single seeds. Losses share seeds and identities, so "
        "even losses with overlapping intervals may differ significantly: see the table of "
        "differences below."
    )
    blocks += [Chart(caption, chart), _losses_table(result, losses, metric)]
    blocks += [_differences_table(result, metric)]
    if (parts_table := _parts_table(result)) is not None:
        blocks.append(parts_table)
    return Section(result.name, blocks)


def _losses_table(result: Result, losses: dict[str, Figure], metric: str) -> Table:
    other_metrics = list(
        dict.fromkeys(
            (figure.metric, tuple(item for item in figure.at.items() if item[0] != "loss"))
            for figure in result.figures
            if "loss" in figure.at and figure.metric != metric and not figure.stratum
        )
    )
    columns = ["loss", metric, "95 % interval", "std over seeds"]
    columns += [Figure(metric=name, value=None, at=dict(at)).label for name, at in other_metrics]
    rows = []
    for loss, figure in losses.items():
        std = figure.details.get("std over seeds")
        row = [loss, value_text(figure), figure_interval_text(figure)]
        row.append("-" if std is None else value_text(figure, std))
        for name, at in other_metrics:
            point = {**dict(at), "loss": loss}
            matches = [
                other for other in result.figures if (other.metric, other.at) == (name, point)
            ]
            row.append(value_text(matches[0]) if matches else "-")
        rows.append(row)
    return Table("Losses from best to worst; means over seeds", columns, rows)


def _differences_table(result: Result, metric: str) -> Table:
    rows = []
    for figure in result.figures:
        if (
            figure.metric != f"difference in {metric}"
            or not {"first", "second"} <= figure.at.keys()
        ):
            continue
        details = figure.details
        adjusted, smallest = details.get("adjusted_p_value"), details.get("smallest_detectable")
        rows.append(
            [
                f"{figure.at['second']} over {figure.at['first']}",
                value_text(figure),
                figure_interval_text(figure),
                p_value_text(adjusted),
                "-" if smallest is None else value_text(figure, smallest),
            ]
        )
    # A difference is second − first, so each row names the second loss first. `compare_seeds`
    # negates the differences of error rates, so positive values are improvements.
    columns = ["improvement", metric, "95 % interval", "corrected p", "smallest detectable"]
    caption = (
        "Differences between all pairs of losses; positive values mean that the first-named loss "
        "is better; p-values with Holm's correction"
    )
    return Table(caption, columns, rows)


def _parts_table(result: Result) -> Table | None:
    """Accuracy in parts of the data (strata), one row per loss; None if there are no strata."""
    # Loss -> stratum -> figure.
    figures: dict[str, dict[str, Figure]] = {}
    for figure in result.figures:
        if figure.stratum and "loss" in figure.at:
            figures.setdefault(str(figure.at["loss"]), {})[figure.stratum] = figure
    if not figures:
        return None
    strata = list(dict.fromkeys(name for by_stratum in figures.values() for name in by_stratum))
    rows = [
        [loss, *(value_text(by_stratum[name]) if name in by_stratum else "-" for name in strata)]
        for loss, by_stratum in figures.items()
    ]
    caption = "Accuracy in parts of the data: means over seeds, not tested for significance"
    return Table(caption, ["loss", *strata], rows)
