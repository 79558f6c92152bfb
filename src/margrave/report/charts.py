"""The charts of a report, as Vega-Lite specifications.

Text and axes take the page's text color (``currentColor``), so a chart works in light mode, in dark
mode and in print. Series colors have a contrast of at least 3 : 1 with the light and the dark
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

Rows = Sequence[Mapping[str, Any]]
Scale = Literal["linear", "log"]

# The colors of series.
COLORS = (
    "#2f7fc1",
    "#c4681a",
    "#2c9461",
    "#c9485b",
    "#8b6fd0",
    "#1d8f9b",
    "#a5703a",
    "#c0569b",
    "#868a1e",
    "#78838d",
)
# The dash patterns of series: lengths of dashes and gaps in turn, in pixels.
DASHES = (
    [1, 0],
    [6, 3],
    [2, 2],
    [8, 3, 2, 3],
    [12, 4],
    [4, 1],
    [1, 3],
    [10, 2, 2, 2],
    [3, 5],
    [7, 1],
)
HEIGHT = 260
"""Default height of a chart in pixels."""
MAX_VALUE = 1e12
"""Charts leave out rows with a number above this in magnitude."""
FONT = "system-ui, sans-serif"


def styled_spec(chart: Any, description: str, height: int | None = HEIGHT) -> dict[str, Any]:
    """The Vega-Lite specification of a chart in the page's style, as wide as its container.

    Args:
        chart: the Altair chart.
        description: the chart in words, for screen readers.
        height: height in pixels; None keeps the chart's own height.
    """
    properties: dict[str, Any] = {"width": "container", "description": description}
    if height is not None:
        properties["height"] = height
    color = "currentColor"
    configured = (
        chart.properties(**properties)
        .configure(
            background="transparent",
            font=FONT,
            padding={"left": 10, "right": 18, "top": 4, "bottom": 4},
            autosize={"type": "fit-x", "contains": "padding"},
        )
        .configure_view(stroke=None)
        # Screen readers read the chart's description, not each mark.
        .configure_mark(aria=False)
        .configure_axis(
            labelColor=color,
            titleColor=color,
            domainColor=color,
            tickColor=color,
            gridColor=color,
            gridOpacity=0.12,
            domainOpacity=0.5,
            tickOpacity=0.5,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelOverlap=True,
            tickCount=6,
        )
        .configure_legend(
            labelColor=color,
            titleColor=color,
            orient="top",
            labelFontSize=12,
            title=None,
            symbolStrokeWidth=2.5,
            symbolSize=240,
            columns=3,
            columnPadding=28,
            labelLimit=260,
        )
        .configure_title(color=color, fontSize=13, anchor="start", fontWeight="normal")
    )
    spec = configured.to_dict()
    spec.pop("$schema", None)
    return spec


def series_color(names: Sequence[str], *, legend: bool = True) -> Any:
    """The color encoding of series; the series `names` get ``COLORS`` in order."""
    scale = alt.Scale(domain=list(names), range=list(_repeat_to(COLORS, len(names))))
    return alt.Color("series:N", scale=scale, legend=alt.Legend() if legend else None)


def series_dash(names: Sequence[str]) -> Any:
    """The dash encoding of series, which distinguishes them without color."""
    scale = alt.Scale(domain=list(names), range=list(_repeat_to(DASHES, len(names))))
    return alt.StrokeDash("series:N", scale=scale, legend=alt.Legend())


def lines(
    rows: Rows,
    x: str,
    y: str,
    *,
    description: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    x_domain: tuple[float, float] | None = None,
    y_domain: tuple[float, float] | None = None,
    y_format: str | None = None,
    x_format: str | None = None,
    points: bool = False,
    vertical: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One line per series, with a band if rows have ``low`` and ``high``.

    Args:
        rows: mappings with ``series``, ``x``, ``y``, and optionally ``low`` and ``high``.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        description: the chart in words, for screen readers.
        x_scale: the horizontal scale.
        y_scale: the vertical scale.
        x_domain: limits of the horizontal axis.
        y_domain: limits of the vertical axis.
        y_format: d3 format of the vertical axis's labels.
        x_format: d3 format of the horizontal axis's labels.
        points: also draw each row as a point.
        vertical: label -> x value of each vertical line to draw.
    """
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    several = len(names) > 1
    data = alt.Data(values=_finite_rows(rows))
    x_axis = alt.X(
        "x:Q",
        title=x,
        scale=_scale(x_scale, x_domain),
        axis=alt.Axis(format=x_format) if x_format else alt.Axis(),
    )
    y_axis = alt.Y(
        "y:Q",
        title=y,
        scale=_scale(y_scale, y_domain),
        axis=alt.Axis(format=y_format) if y_format else alt.Axis(),
    )
    encoding: dict[str, Any] = {"x": x_axis, "y": y_axis}
    encoding["color"] = series_color(names) if several else alt.value(COLORS[0])
    order = alt.Order("x:Q")
    tooltip = [
        *([alt.Tooltip("series:N", title=" ")] if several else []),
        alt.Tooltip("x:Q", title=x, format=x_format or ".4~g"),
        alt.Tooltip("y:Q", title=y, format=y_format or ".4~g"),
    ]
    dash = {"strokeDash": series_dash(names)} if several else {}
    layers = []
    if any("low" in row for row in rows):
        band = {"x": x_axis, "y": alt.Y("low:Q", title=y), "y2": "high:Q"}
        layers.append(
            alt.Chart(data)
            .mark_area(opacity=0.16, clip=True)
            .encode(**band, color=encoding["color"])
        )
    base = alt.Chart(data)
    line = base.mark_line(strokeWidth=2.2, clip=True)
    layers.append(line.encode(**encoding, **dash, order=order, tooltip=tooltip))
    if points:
        marks = base.mark_point(filled=True, size=45, opacity=1)
        layers.append(marks.encode(**encoding, tooltip=tooltip))
    if vertical:
        layers += _vertical_lines(vertical, _scale(x_scale, x_domain))
    return styled_spec(alt.layer(*layers), description)


def _vertical_lines(positions: Mapping[str, float], scale: Any) -> list[Any]:
    # The labels are at four heights in turn, so that neighbors do not overlap.
    data = alt.Data(
        values=[
            {"label": label, "at": value, "pixels_from_top": 2 + 14 * (index % 4)}
            for index, (label, value) in enumerate(positions.items())
        ]
    )
    # With an empty title in this layer, the axis shows the title of the other layers.
    x = alt.X("at:Q", title="", scale=scale)
    rule = alt.Chart(data).mark_rule(strokeDash=[4, 3], color="currentColor", opacity=0.7)
    text = alt.Chart(data).mark_text(
        align="left", baseline="top", dx=4, fontSize=11, fill="currentColor"
    )
    return [
        rule.encode(x=x),
        text.encode(x=x, y=alt.Y("pixels_from_top:Q", scale=None, axis=None), text="label:N"),
    ]


def histogram(
    rows: Rows, x: str, *, description: str, vertical: Mapping[str, float]
) -> dict[str, Any]:
    """One histogram per series, and vertical lines.

    Args:
        rows: one mapping per bin: ``series``, ``start``, ``end``, and ``share``, the fraction of
            the series' pairs in the bin.
        x: title of the horizontal axis.
        description: the chart in words, for screen readers.
        vertical: label -> x value of each vertical line to draw.
    """
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    data = alt.Data(values=_finite_rows(rows))
    scale = alt.Scale(zero=False, nice=True)
    bars = (
        alt.Chart(data)
        .mark_rect(opacity=0.55)
        .encode(
            x=alt.X("start:Q", title=x, scale=scale),
            x2="end:Q",
            y=alt.Y("share:Q", title="share of pairs", axis=alt.Axis(format="%"), stack=None),
            y2=alt.value(HEIGHT),  # The bottom of the chart: pixels count from the top.
            color=series_color(names),
            tooltip=[
                alt.Tooltip("series:N", title=" "),
                alt.Tooltip("start:Q", title="from", format=".3f"),
                alt.Tooltip("end:Q", title="to", format=".3f"),
                alt.Tooltip("share:Q", title="share", format=".2%"),
            ],
        )
    )
    return styled_spec(alt.layer(bars, *_vertical_lines(vertical, scale)), description)


def ranges(
    rows: Rows,
    x: str,
    *,
    description: str,
    x_format: str | None = None,
    ticks: Rows = (),
) -> dict[str, Any]:
    """One line per name: a point with its interval, and optionally ticks at further values.

    Args:
        rows: mappings with ``name``, ``x``, ``low`` and ``high``; shown in this order.
        x: title of the horizontal axis.
        description: the chart in words, for screen readers.
        x_format: d3 format of the horizontal axis's labels.
        ticks: mappings with ``name`` and ``x``, each drawn as a tick, such as a value per seed.
    """
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    data = alt.Data(values=_finite_rows(rows))
    axis = alt.Axis(format=x_format) if x_format else alt.Axis()
    scale = alt.Scale(zero=False)
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(labelLimit=170, grid=False))
    tooltip = alt.Tooltip("x:Q", title=x, format=x_format or ".4~g")
    layers = [
        alt.Chart(data)
        .mark_rule(strokeWidth=2.5, color=COLORS[0])
        .encode(x=alt.X("low:Q", title=x, scale=scale, axis=axis), x2="high:Q", y=y),
        alt.Chart(data)
        .mark_point(filled=True, size=90, color=COLORS[0], opacity=1)
        .encode(x=alt.X("x:Q"), y=y, tooltip=["name:N", tooltip]),
    ]
    if ticks:
        tick_chart = alt.Chart(alt.Data(values=_finite_rows(ticks)))
        layers.append(
            tick_chart.mark_tick(thickness=1.5, size=12, color="currentColor", opacity=0.6).encode(
                x=alt.X("x:Q"), y=y, tooltip=[tooltip]
            )
        )
    return styled_spec(alt.layer(*layers), description, height=max(80, 30 * len(names)))


def scatter(
    rows: Rows, x: str, y: str, *, description: str, shade: str | None = None
) -> dict[str, Any]:
    """A scatter plot whose points may be colored by a third value.

    Args:
        rows: mappings with ``x``, ``y`` and, if `shade` is given, ``shade``.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        description: the chart in words, for screen readers.
        shade: title of the color legend; None draws all points in one color.
    """
    data = alt.Data(values=_finite_rows(rows))
    encoding: dict[str, Any] = {
        "x": alt.X("x:Q", title=x, scale=alt.Scale(zero=False)),
        "y": alt.Y("y:Q", title=y, scale=alt.Scale(zero=False)),
        "tooltip": [
            alt.Tooltip(f"{name}:Q", title=title, format=".4~g")
            for name, title in (("x", x), ("y", y))
        ],
    }
    if shade is not None:
        # Orange and blue are both visible on the light and on the dark background.
        scale = alt.Scale(range=[COLORS[1], COLORS[0]], interpolate="lab")
        legend = alt.Legend(title=shade, gradientLength=160)
        encoding["color"] = alt.Color("shade:Q", scale=scale, legend=legend)
        encoding["tooltip"].append(alt.Tooltip("shade:Q", title=shade, format=".4~g"))
    else:
        encoding["color"] = alt.value(COLORS[0])
    points = alt.Chart(data).mark_point(filled=True, size=40, opacity=0.75)
    return styled_spec(points.encode(**encoding), description)


def _scale(kind: Scale, domain: tuple[float, float] | None) -> Any:
    options: dict[str, Any] = {"type": kind}
    if domain is not None:
        options |= {"domain": list(domain), "nice": False}
    elif kind == "linear":
        options["zero"] = False
    return alt.Scale(**options)


def _finite_rows(rows: Rows) -> list[dict[str, Any]]:
    """Round floats to five significant digits.

    Rows with a number that is NaN or above ``MAX_VALUE`` in magnitude are left out.
    """
    shown = []
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, int | float)]
        if all(abs(value) <= MAX_VALUE for value in numbers):
            shown.append({name: float(f"{value:.5g}") if isinstance(value, float) else value
                          for name, value in row.items()})  # fmt: skip
    return shown


def _repeat_to(values: Sequence[Any], count: int) -> list[Any]:
    """`count` values; after the last value, the first one follows again."""
    return [values[index % len(values)] for index in range(count)]
