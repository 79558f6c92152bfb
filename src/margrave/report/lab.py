"""The margin lab: every loss's curves, tabulated by the loss's own code.

A page interpolates linearly between the tabulated points; its sliders move in the tabulated steps.
Points are chosen so that interpolation errs by less than ``TOLERANCE``, except within the grid's
step of a jump.
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
    negative_cosines,
    target_cosines,
)

TOLERANCE = 1e-3
MAX_PARAMETERS = 2
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
NO_SLIDER = ("scale", "straight_through", "ignore_negatives_above", "epsilon")
MIN_EFFECT = 1e-3
"""A hyperparameter that changes no curve by more than this gets no slider."""


def lab_tables(
    losses: Mapping[str, Mapping[str, Any] | Loss] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Tabulate losses for the lab's page.

    Args:
        losses: the losses by name; by default all registered ones that work on cosines.
        progress: called with (losses done, total).

    Returns:
        What the page's script reads, as plain values.

    Raises:
        ValueError: there are no losses to show, because none works on cosines alone.
    """
    if losses is None:
        losses = {name: {"kind": name} for name in LOSSES}
    created = {
        name: loss if isinstance(loss, Loss) else create(loss) for name, loss in losses.items()
    }
    shown = {name: loss for name, loss in created.items() if loss.normalized and _known(loss)}
    if not shown:
        raise ValueError(
            f"none of {', '.join(losses)} can be drawn: the lab shows losses of cosines whose "
            f"context holds nothing but {', '.join(axis.name for axis in CONTEXTS)}"
        )
    tables = {}
    for done, (name, loss) in enumerate(shown.items(), start=1):
        try:
            with np.errstate(all="ignore"):
                tables[name] = _table(loss)
        except ValueError as error:
            raise ValueError(f"{name} cannot be drawn: {error}") from error
        if progress is not None:
            progress(done, len(shown))
    used = {axis for table in tables.values() for part in _parts(table) for axis in part["axes"]}
    return {
        "steps": STEPS,
        "contexts": [_described(axis) for axis in (*CONTEXTS, TARGET_ANGLE) if axis.name in used],
        "losses": tables,
    }


def _parts(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [table[name] for name in ("target", "negatives", "boundary", "gradient")]


def _described(axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "label": axis.label,
        "values": list(axis.values),
        "default": axis.default,
    }


def _known(loss: Loss) -> bool:
    """Whether the lab's context has everything that a loss reads."""
    try:
        target_cosines(loss, np.array([0.5]), {})
        negative_cosines(loss, np.array([0.5]), 60.0, {})
    except ValueError:
        return False
    return True


def _parameters(loss: Loss) -> list[Axis]:
    """The hyperparameters that change the curves most, the margin first."""
    coarse = np.cos(np.linspace(0, math.pi, 91))

    def curves(changed: Loss) -> np.ndarray:
        parts = []
        for context in contexts:
            parts += [target_cosines(changed, coarse, context), gradient_scales(changed, context)]
            parts += [
                negative_cosines(changed, coarse, degrees, context) for degrees in (30, 60, 90)
            ]
        return np.concatenate(parts)

    contexts: list[dict[str, Any]] = [{}]
    contexts += [{axis.name: axis.values[end]} for axis in CONTEXTS for end in (0, -1)]
    own = curves(loss)
    effects: dict[str, tuple[float, Axis]] = {}
    for axis in _candidates(loss):
        differences = []
        for value in axis.values:
            changed = _changed(loss, {axis.name: value})
            differences.append(0.0 if changed is None else abs(curves(changed) - own).max())
        if max(differences) > MIN_EFFECT:
            rank = math.inf if axis.name == "margin" else max(differences)
            effects[axis.name] = rank, axis
    ordered = sorted(effects.values(), key=lambda each: -each[0])
    return [axis for _, axis in ordered[:MAX_PARAMETERS]]


def _candidates(loss: Loss) -> list[Axis]:
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
            values = values if value else [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        valid = [each for each in values if _changed(loss, {field.name: each}) is not None]
        if value in valid and len(valid) > 1:
            label = field.name.replace("_", " ")
            axes.append(Axis(field.name, label, tuple(valid), valid.index(value)))
    return axes


def _changed(loss: Loss, values: Mapping[str, Any]) -> Loss | None:
    """The loss with other hyperparameters, or None if it refuses them."""
    settings = {field.name: getattr(loss, field.name) for field in fields(loss)}
    try:
        return type(loss)(**{**settings, **values})
    except ValueError:
        return None


def _table(loss: Loss) -> dict[str, Any]:
    parameters = _parameters(loss)
    cosines = grid_cosines()
    document = (type(loss).__doc__ or "").strip().splitlines()

    def target(values: Mapping[str, Any]) -> np.ndarray:
        changed, context = _split(loss, parameters, values)
        return target_cosines(changed, cosines, context)

    def negatives(values: Mapping[str, Any]) -> np.ndarray:
        changed, context = _split(loss, parameters, values)
        degrees = context.pop("target_angle", TARGET_DEGREES[TARGET_ANGLE.default])
        return negative_cosines(changed, cosines, degrees, context)

    def boundary(values: Mapping[str, Any]) -> np.ndarray:
        changed, context = _split(loss, parameters, values)
        return boundary_degrees(changed, context)

    def gradient(values: Mapping[str, Any]) -> np.ndarray:
        changed, context = _split(loss, parameters, values)
        return gradient_scales(changed, context)

    target_axes = _dependent(target, [*parameters, *CONTEXTS])
    negative_axes = _dependent(negatives, [*parameters, *CONTEXTS, TARGET_ANGLE])
    both = [
        axis for axis in (*parameters, *CONTEXTS) if axis in target_axes or axis in negative_axes
    ]
    return {
        "title": document[0] if document else "",
        "parameters": [_described(axis) for axis in parameters],
        "target": _curves(target, target_axes),
        "negatives": _curves(negatives, negative_axes),
        "boundary": _rows(boundary, both),
        "gradient": _rows(gradient, both) | {"degrees": list(GRADIENT_DEGREES)},
    }


def _split(
    loss: Loss, parameters: Sequence[Axis], values: Mapping[str, Any]
) -> tuple[Loss, dict[str, Any]]:
    """The loss with the chosen hyperparameters, and the chosen context."""
    names = {axis.name for axis in parameters}
    changed = _changed(loss, {name: value for name, value in values.items() if name in names})
    context = {name: value for name, value in values.items() if name not in names}
    # Two values that are allowed alone may contradict each other.
    return (loss if changed is None else changed), context


def _dependent(
    curve: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]
) -> list[Axis]:
    """The axes that change a curve, whichever the other axes' values are."""
    ends = [{axis.values[0], axis.values[axis.default], axis.values[-1]} for axis in axes]
    dependent = []
    for number, axis in enumerate(axes):
        others = [each for each in range(len(axes)) if each != number]
        settings: list[dict[str, Any]] = [{}]
        settings += [{axes[other].name: value} for other in others for value in ends[other]]
        if any(
            abs(curve({**setting, axis.name: value}) - curve(setting)).max() > 1e-9
            for setting in settings
            for value in axis.values
        ):
            dependent.append(axis)
    return dependent


def _combinations(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    names = [axis.name for axis in axes]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def _curves(
    curve: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]
) -> dict[str, Any]:
    """Curves over the grid of angles for all combinations, as few points each as suffice."""
    values = [curve(combination) for combination in _combinations(axes)]
    nodes = [sparse_nodes(each, TOLERANCE / 3) for each in values]
    numbers = np.concatenate([each[own] for each, own in zip(values, nodes, strict=True)])
    return {
        "axes": [axis.name for axis in axes],
        "lengths": [len(each) for each in nodes],
        "nodes": _encode(np.concatenate(nodes), "<u2"),
        **_scaled(numbers),
    }


def _rows(row: Callable[[Mapping[str, Any]], np.ndarray], axes: Sequence[Axis]) -> dict[str, Any]:
    """Equally long rows for all combinations."""
    values = np.stack([row(combination) for combination in _combinations(axes)])
    names = [axis.name for axis in axes]
    return {"axes": names, "length": values.shape[1], **_scaled(values.ravel())}


def sparse_nodes(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices between which linear interpolation errs by at most `tolerance`.

    >>> sparse_nodes(np.array([0.0, 1.0, 2.0, 2.0, 2.0]), 0.1)
    array([0, 2, 4])
    """
    index = np.arange(len(values))
    chosen = {0, len(values) - 1}
    waiting = [(0, len(values) - 1)]
    while waiting:
        low, high = waiting.pop()
        if high - low < 2:
            continue
        inside = index[low + 1 : high]
        line = values[low] + (values[high] - values[low]) * (inside - low) / (high - low)
        error = abs(values[low + 1 : high] - line)
        worst = int(error.argmax())
        if error[worst] > tolerance:
            middle = low + 1 + worst
            chosen.add(middle)
            waiting += [(low, middle), (middle, high)]
    return np.array(sorted(chosen))


def _scaled(values: np.ndarray) -> dict[str, Any]:
    """Numbers as 16-bit integers with a common factor."""
    if not np.isfinite(values).all():
        raise ValueError("its curves are not finite")
    factor = max(float(abs(values).max()), 1e-6) / 32_000
    return {"factor": factor, "numbers": _encode(np.round(values / factor), "<i2")}


def _encode(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def read_curve(part: Mapping[str, Any], number: int) -> np.ndarray:
    """A tabulated curve at all angles of the grid, as the page interpolates it."""
    lengths = cast("list[int]", part["lengths"])
    start = sum(lengths[:number])
    own = slice(start, start + lengths[number])
    nodes = np.frombuffer(base64.b64decode(part["nodes"]), "<u2")[own]
    values = np.frombuffer(base64.b64decode(part["numbers"]), "<i2")[own] * part["factor"]
    return np.interp(np.arange(STEPS + 1), nodes, values)
