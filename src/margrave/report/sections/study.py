"""A study's conditions: losses with intervals over seeds and identities, and their differences."""

from __future__ import annotations

from margrave.evaluation import Figure, Result
from margrave.evaluation.figure_text import figure_interval_text, p_value_text, value_text
from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Table, Text


def study_section(result: Result) -> Section:
    """One condition: verdict, claims, the losses from the best, and every difference."""
    metric = str(result.settings.get("metric", "accuracy"))
    losses = {
        str(each.at["loss"]): each
        for each in result.figures
        if each.metric == metric and "loss" in each.at and not each.stratum
    }
    verdict, *claims = result.notes or ("",)
    blocks: list[Block] = [Text(verdict, "verdict")] if verdict else []
    blocks += [Text(claim) for claim in claims]
    seeds = result.curves.get(f"{metric} by seed", {})
    chart = charts.ranges(
        [
            {"name": loss, "x": each.value, "low": (each.interval or [each.value] * 2)[0],
             "high": (each.interval or [each.value] * 2)[1]}
            for loss, each in losses.items() if each.value is not None
        ],
        metric,
        x_format=".1%" if metric != "AUC" else None,
        points=[
            {"name": loss, "x": value} for loss, values in seeds.items() for value in values
        ],
        description=f"{metric} of each loss: " + ", ".join(
            f"{loss} {value_text(each)}" for loss, each in losses.items()
        ),
    )  # fmt: skip
    caption = (
        f"Mean {metric} over {result.counts.get('seeds', 0)} seeds with its 95 % interval over "
        "seeds and identities; ticks are the single seeds. Losses share seeds and identities, so "
        "overlapping intervals do not mean that a difference is chance: see the table below."
    )
    blocks += [Chart(caption, chart), _losses_table(result, losses, metric)]
    blocks += [_differences_table(result, metric)]
    if (parts := _parts_table(result)) is not None:
        blocks.append(parts)
    return Section(result.name, blocks)


def _losses_table(result: Result, losses: dict[str, Figure], metric: str) -> Table:
    others = list(
        dict.fromkeys(
            (each.metric, tuple(item for item in each.at.items() if item[0] != "loss"))
            for each in result.figures
            if "loss" in each.at and each.metric != metric and not each.stratum
        )
    )
    columns = ["loss", metric, "95 % interval", "std over seeds"]
    columns += [Figure(metric=name, value=None, at=dict(at)).label for name, at in others]
    rows = []
    for loss, figure in losses.items():
        std = figure.details.get("std over seeds")
        row = [loss, value_text(figure), figure_interval_text(figure)]
        row.append("-" if std is None else value_text(figure, std))
        for name, at in others:
            point = {**dict(at), "loss": loss}
            known = [each for each in result.figures if (each.metric, each.at) == (name, point)]
            row.append(value_text(known[0]) if known else "-")
        rows.append(row)
    return Table("Losses, from the best; means over seeds", columns, rows)


def _differences_table(result: Result, metric: str) -> Table:
    rows = []
    for each in result.figures:
        if each.metric != f"difference in {metric}" or not {"first", "second"} <= each.at.keys():
            continue
        details = each.details
        adjusted, smallest = details.get("adjusted_p_value"), details.get("smallest_detectable")
        rows.append(
            [
                f"{each.at['second']} − {each.at['first']}",
                value_text(each),
                figure_interval_text(each),
                p_value_text(adjusted),
                "-" if smallest is None else value_text(each, smallest),
            ]
        )
    columns = ["difference", metric, "95 % interval", "p, corrected", "smallest detectable"]
    return Table("Differences of all losses; p values corrected by Holm", columns, rows)


def _parts_table(result: Result) -> Table | None:
    """Accuracy in parts of the data, a row per loss."""
    parts: dict[str, dict[str, Figure]] = {}
    for each in result.figures:
        if each.stratum and "loss" in each.at:
            parts.setdefault(str(each.at["loss"]), {})[each.stratum] = each
    if not parts:
        return None
    strata = list(dict.fromkeys(name for part in parts.values() for name in part))
    rows = [
        [loss, *(value_text(part[name]) if name in part else "-" for name in strata)]
        for loss, part in parts.items()
    ]
    caption = "Accuracy in parts of the data, means over seeds, without tests"
    return Table(caption, ["loss", *strata], rows)
