"""The margin lab's tables: each loss's curves, computed by the loss's own code.

The page interpolates linearly between tabulated points, and its sliders move in tabulated steps.
The points are chosen so that the interpolated cosine errs by less than ``TOLERANCE``. The exception
is one step of the angle grid around a discontinuity of the curve.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np

from margrave.losses import LOSSES, Loss, create
from margrave.progress import Progress
from margrave.report.loss_curves import (
    CONTEXTS,
    GRADIENT_DEGREES,
    STEPS,
    TARGET_ANGLE,
    TARGET_DEGREES,
    Axis,
    boundary_degrees,
    gradient_scales,
    grid_cosines,
    modified_negatives,
    modified_targets,
)

TOLERANCE = 1e-3
MAX_PARAMETERS = 2
"""Largest number of hyperparameters per loss that get a slider."""
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""A slider's steps, as multiples of the hyperparameter's value."""
NO_SLIDER = ("scale", "straight_through", "ignore_negatives_above", "epsilon")
"""Hyperparameters that never get a slider."""
MIN_EFFECT = 1e-3
"""A hyperparameter that changes no curve by more than this gets no slider."""


def lab_tables(
    losses: Mapping[str, Mapping[str, Any] | Loss] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Tabulate losses for the margin lab; losses that the lab cannot draw are left out.

    Args:
        losses: losses or their settings, by name; by default all registered losses.
        progress: called with (losses done, total).

    Returns:
        The tables that the page's script reads, as values that JSON can hold.

    Raises:
        ValueError: none of the losses can be drawn, or a curve has values that are not finite.
    """
    if losses is None:
        losses = {name: {"kind": name} for name in LOSSES}
    created = {
        name: loss if isinstance(loss, Loss) else create(loss) for name, loss in losses.items()
    }
    shown = {name: loss for name, loss in created.items() if loss.normalized and _is_drawable(loss)}
    if not shown:
        raise ValueError(
            f"none of {', '.join(losses)} can be drawn: the lab shows losses that work on cosines "
            f"and read at most these context values: {', '.join(axis.name for axis in CONTEXTS)}"
        )
    tables = {}
    for done, (name, loss) in enumerate(shown.items(), start=1):
        try:
            with np.errstate(all="ignore"):
                tables[name] = _loss_table(loss)
        except ValueError as error:
            raise ValueError(f"{name} cannot be drawn: {error}") from error
        if progress is not None:
            progress(done, len(shown))
    used_axes = {
        axis_name for loss_table in tables.values() for table in _chart_tables(loss_table)
        for axis_name in table["axes"]
    }  # fmt: skip
    return {
        "steps": STEPS,
        "contexts": [
            _axis_settings(axis) for axis in (*CONTEXTS, TARGET_ANGLE) if axis.name in used_axes
        ],
        "losses": tables,
    }


def _chart_tables(loss_table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables of a loss's four charts, from its `_loss_table`."""
    return [loss_table[name] for name in ("target", "negatives", "boundary", "gradient")]


def _axis_settings(axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "label": axis.label,
        "values": list(axis.values),
        "default": axis.default_index,
    }


def _is_drawable(loss: Loss) -> bool:
    """Whether the lab's context has every value that the loss reads."""
    try:
        modified_targets(loss, np.array([0.5]), {})
        modified_negatives(loss, np.array([0.5]), 60.0, {})
    except ValueError:
        return False
    return True


def _slider_axes(loss: Loss) -> list[Axis]:
    """The axes of the ``MAX_PARAMETERS`` hyperparameters that change the curves most.

    A hyperparameter named ``margin`` comes first, unless it changes nothing.
    """
    coarse_cosines = np.cos(np.linspace(0, math.pi, 91))
    # The defaults, and the smallest and the largest of each context value.
    contexts: list[dict[str, Any]] = [{}]
    contexts += [{axis.name: axis.values[end]} for axis in CONTEXTS for end in (0, -1)]

    def sample_curves(variant: Loss) -> np.ndarray:
        curves = []
        for context in contexts:
            curves.append(modified_targets(variant, coarse_cosines, context))
            curves.append(gradient_scales(variant, context))
            curves += [
                modified_negatives(variant, coarse_cosines, degrees, context)
                for degrees in (30, 60, 90)
            ]
        return np.concatenate(curves)

    reference = sample_curves(loss)
    effects: dict[str, tuple[float, Axis]] = {}
    for axis in _candidate_axes(loss):
        differences = []
        for value in axis.values:
            variant = _variant(loss, {axis.name: value})
            differences.append(
                0.0 if variant is None else abs(sample_curves(variant) - reference).max()
            )
        if max(differences) > MIN_EFFECT:
            effect = math.inf if axis.name == "margin" else max(differences)
            effects[axis.name] = effect, axis
    ordered = sorted(effects.values(), key=lambda item: -item[0])
    return [axis for _, axis in ordered[:MAX_PARAMETERS]]


def _candidate_axes(loss: Loss) -> list[Axis]:
    """An axis for each hyperparameter with at least two valid values."""
    hints = get_type_hints(type(loss))
    axes = []
    for field in fields(loss):
        value, hint = getattr(loss, field.name), hints.get(field.name)
        values: list[Any] = []
        if field.name in NO_SLIDER:
            continue
        if get_origin(hint) is Literal:
            values = list(get_args(hint))
        elif isinstance(value, bool):
            values = [False, True]
        elif isinstance(value, int):
            values = [value - 2, value - 1, value, value + 1, value + 2]
        elif isinstance(value, float):
            values = [round(value * factor, 6) for factor in FACTORS]
            # All multiples of 0 are 0.
            values = values if value else [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        valid = [step for step in values if _variant(loss, {field.name: step}) is not None]
        if value in valid and len(valid) > 1:
            label = field.name.replace("_", " ")
            axes.append(Axis(field.name, label, tuple(valid), valid.index(value)))
    return axes


def _variant(loss: Loss, values: Mapping[str, Any]) -> Loss | None:
    """A copy of the loss with these hyperparameters, or None if it rejects them."""
    settings = {field.name: getattr(loss, field.name) for field in fields(loss)}
    try:
        return type(loss)(**{**settings, **values})
    except ValueError:
        return None


def _loss_table(loss: Loss) -> dict[str, Any]:
    """Tabulate a loss's four charts over the hyperparameters and context values they depend on."""
    parameter_axes = _slider_axes(loss)
    cosines = grid_cosines()
    doc_lines = (type(loss).__doc__ or "").strip().splitlines()

    def target(values: Mapping[str, Any]) -> np.ndarray:
        variant, context = _split_values(loss, parameter_axes, values)
        return modified_targets(variant, cosines, context)

    def negatives(values: Mapping[str, Any]) -> np.ndarray:
        variant, context = _split_values(loss, parameter_axes, values)
        degrees = context.pop("target_angle", TARGET_DEGREES[TARGET_ANGLE.default_index])
        return modified_negatives(variant, cosines, degrees, context)

    def boundary(values: Mapping[str, Any]) -> np.ndarray:
        variant, context = _split_values(loss, parameter_axes, values)
        return boundary_degrees(variant, context)

    def gradient(values: Mapping[str, Any]) -> np.ndarray:
        variant, context = _split_values(loss, parameter_axes, values)
        return gradient_scales(variant, context)

    target_axes = _effective_axes(target, [*parameter_axes, *CONTEXTS])
    negative_axes = _effective_axes(negatives, [*parameter_axes, *CONTEXTS, TARGET_ANGLE])
    # The boundary is tabulated over the axes that change T or N.
    row_axes = [
        axis
        for axis in (*parameter_axes, *CONTEXTS)
        if axis in target_axes or axis in negative_axes
    ]
    # A hyperparameter of the cross entropy, such as focal's gamma, changes only the gradient.
    gradient_axes = row_axes + [
        axis for axis in _effective_axes(gradient, parameter_axes) if axis not in row_axes
    ]
    return {
        "title": doc_lines[0] if doc_lines else "",
        "parameters": [_axis_settings(axis) for axis in parameter_axes],
        "target": _curve_table(target, target_axes),
        "negatives": _curve_table(negatives, negative_axes),
        "boundary": _row_table(boundary, row_axes),
        "gradient": _row_table(gradient, gradient_axes) | {"degrees": list(GRADIENT_DEGREES)},
    }


def _split_values(
    loss: Loss, parameter_axes: Sequence[Axis], values: Mapping[str, Any]
) -> tuple[Loss, dict[str, Any]]:
    """The loss with the hyperparameters among these axis values, and the other (context) values."""
    names = {axis.name for axis in parameter_axes}
    variant = _variant(loss, {name: value for name, value in values.items() if name in names})
    context = {name: value for name, value in values.items() if name not in names}
    # Hyperparameters that are valid alone may be invalid together; then none is applied.
    return (loss if variant is None else variant), context


def _effective_axes(
    curve: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]
) -> list[Axis]:
    """The axes that change a curve, at the defaults or with one other axis at either end."""
    tried_values = [
        {axis.values[0], axis.values[axis.default_index], axis.values[-1]} for axis in axes
    ]
    effective = []
    for index, axis in enumerate(axes):
        other_indices = [other for other in range(len(axes)) if other != index]
        settings: list[dict[str, Any]] = [{}]
        settings += [
            {axes[other].name: value} for other in other_indices for value in tried_values[other]
        ]
        if any(
            abs(curve({**setting, axis.name: value}) - curve(setting)).max() > 1e-9
            for setting in settings
            for value in axis.values
        ):
            effective.append(axis)
    return effective


def _combinations(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    names = [axis.name for axis in axes]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def _curve_table(
    curve: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]
) -> dict[str, Any]:
    """One curve per combination of the axes' values, at the points that interpolation needs."""
    curves = [curve(combination) for combination in _combinations(axes)]
    # The rest of the tolerance is for angles between grid points and for rounding to 16 bits.
    nodes = [sparse_nodes(values, TOLERANCE / 3) for values in curves]
    node_values = np.concatenate(
        [values[indices] for values, indices in zip(curves, nodes, strict=True)]
    )
    return {
        "axes": [axis.name for axis in axes],
        "lengths": [len(indices) for indices in nodes],
        "nodes": _encode(np.concatenate(nodes), "<u2"),
        **_quantized(node_values),
    }


def _row_table(
    row: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]
) -> dict[str, Any]:
    """One row per combination of the axes' values; all rows have the same length."""
    values = np.stack([row(combination) for combination in _combinations(axes)])
    names = [axis.name for axis in axes]
    return {"axes": names, "length": values.shape[1], **_quantized(values.ravel())}


def sparse_nodes(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of the values to keep, so that linear interpolation errs by at most `tolerance`.

    >>> sparse_nodes(np.array([0.0, 1.0, 2.0, 2.0, 2.0]), 0.1)
    array([0, 2, 4])
    """
    indices = np.arange(len(values))
    chosen = {0, len(values) - 1}
    pending = [(0, len(values) - 1)]
    while pending:
        low, high = pending.pop()
        if high - low < 2:
            continue
        inside = indices[low + 1 : high]
        line = values[low] + (values[high] - values[low]) * (inside - low) / (high - low)
        error = abs(values[low + 1 : high] - line)
        if error.max() > tolerance:
            worst = low + 1 + int(error.argmax())
            chosen.add(worst)
            pending += [(low, worst), (worst, high)]
    return np.array(sorted(chosen))


def _quantized(values: np.ndarray) -> dict[str, Any]:
    """Values as 16-bit integers in base64, and the factor to multiply the integers by."""
    if not np.isfinite(values).all():
        raise ValueError("its curves are not finite")
    # The integers are at most 32,000, which fits into 16 bits.
    factor = max(float(abs(values).max()), 1e-6) / 32_000
    return {"factor": factor, "numbers": _encode(np.round(values / factor), "<i2")}


def _encode(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def read_curve(table: Mapping[str, Any], index: int) -> np.ndarray:
    """A curve of a table at all grid angles, interpolated as on the page.

    Args:
        table: the table of the chart ``target`` or ``negatives``.
        index: the curve's position among the combinations of the axes' values; the last axis
            varies fastest.
    """
    lengths = cast("list[int]", table["lengths"])
    start = sum(lengths[:index])
    points = slice(start, start + lengths[index])
    nodes = np.frombuffer(base64.b64decode(table["nodes"]), "<u2")[points]
    values = np.frombuffer(base64.b64decode(table["numbers"]), "<i2")[points] * table["factor"]
    return np.interp(np.arange(STEPS + 1), nodes, values)
