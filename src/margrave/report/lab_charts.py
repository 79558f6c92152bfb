"""The margin lab's charts; the page's script fills them with rows."""

from __future__ import annotations

from typing import Any

import altair as alt

from margrave.report.charts import COLORS, DASHES, styled_spec

SLOTS = 4
"""Number of losses that the lab shows at once."""


def lab_charts() -> dict[str, Any]:
    """The charts' Vega-Lite specs by name, and the colors of the lab's slots.

    A slot is one of the losses shown at once. Each spec reads the data set ``rows``. T and N are
    the modified cosines of the target and of the negatives.
    """
    specs = {
        "target": _lines("θ_y in degrees", "T", (0, 180)),
        "negatives": _lines("θ_j in degrees", "N", (0, 180)),
        "boundary": _lines("θ_y in degrees", "θ_j in degrees", (0, 120)),
        "gradient": _lines("θ_y in degrees", "gradient scale", (0, 120)),
        "map": _heat_map(),
    }
    return {"specs": specs, "colors": list(COLORS[:SLOTS])}


def _lines(x_title: str, y_title: str, x_domain: tuple[int, int]) -> dict[str, Any]:
    slots = list(range(1, SLOTS + 1))
    color = alt.Scale(domain=slots, range=list(COLORS[:SLOTS]))
    dash = alt.Scale(domain=slots, range=list(DASHES[:SLOTS]))
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .mark_line(strokeWidth=2.4, clip=True)
        .encode(
            x=alt.X("angle:Q", title=x_title, scale=alt.Scale(domain=list(x_domain), nice=False)),
            y=alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False)),
            color=alt.Color("slot:N", scale=color, legend=None),
            strokeDash=alt.StrokeDash("slot:N", scale=dash, legend=None),
            order=alt.Order("angle:Q"),
            tooltip=[
                alt.Tooltip("loss:N", title="loss"),
                alt.Tooltip("angle:Q", title=x_title, format=".1f"),
                alt.Tooltip("value:Q", title=y_title, format=".3f"),
            ],
        )
    )
    return styled_spec(chart, f"{y_title} against {x_title} for the chosen losses")


def _heat_map() -> dict[str, Any]:
    """Gradient scale by θ_y (horizontal) and by the steps of one slider (vertical)."""
    scale = alt.Scale(scheme="viridis")
    legend = alt.Legend(title="gradient scale", gradientLength=160)
    degrees = alt.Axis(values=list(range(0, 121, 20)), labelAngle=0)
    order = alt.EncodingSortField("order", order="descending")
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .mark_rect()
        .encode(
            x=alt.X("angle:O", title="θ_y in degrees", axis=degrees),
            y=alt.Y("step:N", title=None, sort=order),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            # Without strokes, thin gaps show between the rectangles.
            stroke=alt.Stroke("value:Q", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("what:N", title="varied"),
                alt.Tooltip("step:N", title="value"),
                alt.Tooltip("angle:O", title="θ_y in degrees"),
                alt.Tooltip("value:Q", title="gradient scale", format=".3f"),
            ],
        )
    )
    description = "Gradient scale of the first chosen loss, by θ_y and by the steps of one slider"
    return styled_spec(chart, description, height=180)
