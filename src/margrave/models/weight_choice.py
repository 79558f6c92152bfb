"""Chooses the network's weights among the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margrave.files import listed
from margrave.models.prefixes import strip_prefixes

# Keys under which training programs usually save the weights.
USUAL_KEYS = (
    "state_dict",
    "net_state_dict",
    "model_state_dict",
    "state_dict_backbone",
    "model",
    "backbone",
    "net",
    "network",
)
# A key with one of these words holds an exponential moving average of the weights.
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)([._]|$)", re.IGNORECASE)
# A key that contains one of these holds something else that trainers save: an optimizer, a head, …
NOT_A_NETWORK = re.compile(
    r"optim|sched|scaler|head|softmax_fc|criterion|(^|[._])loss", re.IGNORECASE
)
# Counters of profilers (thop) and of torch's AveragedModel, which are not part of a network.
COUNTERS = ("total_ops", "total_params", "n_averaged")
MAX_DEPTH = 2
"""Maximum nesting depth of state dicts in a file."""


def direct_tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors that are direct entries of a file's mapping, by name."""
    # Not mapping.items(), because a file can set that attribute.
    return {
        key: value.detach()
        for key, value in dict.items(mapping)  # type: ignore[arg-type]
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _states(
    content: dict[Any, Any], place: str = "", depth: int = 0, visited: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted path, tensors) of each state dict in a file; repeated ones only once."""
    visited = {id(content)} if visited is None else visited
    tensors = direct_tensors(content)
    # If all tensors are scalars, they are values such as a temperature, not a network.
    if any(value.dim() for value in tensors.values()):
        yield place, tensors
    if depth == MAX_DEPTH:
        return
    for key, value in dict.items(content):
        if isinstance(key, str) and isinstance(value, dict) and id(value) not in visited:
            visited.add(id(value))
            yield from _states(value, f"{place}.{key}" if place else key, depth + 1, visited)


def choose_weights(
    content: dict[Any, Any], path: Path, key: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the weights in a file's content; also return notes on what was chosen or left out."""
    states = dict(_states(content))
    notes = []
    if counters := [name for state in states.values() for name in state if _is_counter(name)]:
        notes.append(f"{len(counters)} counters left out: {listed(counters)}")
        if "n_averaged" in counters:
            notes.append("used moving averages (torch's AveragedModel), not the plain weights")
    states = {
        place: {name: value for name, value in state.items() if not _is_counter(name)}
        for place, state in states.items()
    }
    if key is not None:
        return _under_key(states, path, key), notes
    if not states:
        keys = ", ".join(map(str, list(dict.keys(content))[:8])) or "nothing"
        is_network = "_modules" in getattr(content, "__dict__", {})
        hint = (
            "; it is a pickled network: save and read its state_dict() instead"
            if is_network
            else ""
        )
        raise ValueError(f"{path}: contains no tensors; found {keys}{hint}")
    for place, state in list(states.items()):
        states |= {
            f"{place}.{prefix}".lstrip("."): part
            for prefix, part in _averages_within(state).items()
        }
    networks = {place: state for place, state in states.items() if not NOT_A_NETWORK.search(place)}
    networks = networks or states
    averaged = {place: state for place, state in networks.items() if AVERAGED.search(place)}
    plain = {place: state for place, state in networks.items() if place not in averaged}
    if not averaged:
        return dict(plain[_only(plain, path)]), notes
    place = _only(averaged, path)
    average = strip_prefixes(averaged[place])
    notes.append(f"used moving averages (EMA) from {place}; choose other weights with --key")
    for weights in plain.values():
        unaveraged = strip_prefixes(
            {
                name: value
                for name, value in weights.items()
                if not AVERAGED.search(name.partition(".")[0])
            }
        )
        # Averages often cover only parameters, without the batch norms' statistics.
        if average.keys() < unaveraged.keys():
            missing = [name for name in unaveraged if name not in average]
            notes.append(f"taken from the plain weights, as not averaged: {listed(missing)}")
            return {**unaveraged, **average}, notes
    return dict(averaged[place]), notes


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _averages_within(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Moving averages in the same state dict as the weights: prefix -> tensors."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, _, rest = name.partition(".")
        if rest and AVERAGED.search(prefix):
            parts.setdefault(prefix, {})[rest] = value
    return parts


def _under_key(states: Mapping[str, dict[str, Tensor]], path: Path, key: str) -> dict[str, Tensor]:
    if key in states:
        return dict(states[key])
    for state in states.values():
        inner = {
            name.removeprefix(f"{key}."): value
            for name, value in state.items()
            if name.startswith(f"{key}.")
        }
        if inner:
            return inner
    raise ValueError(f"{path}: no weights under {key!r}; {_choices(states)}")


def _only(states: Mapping[str, dict[str, Tensor]], path: Path) -> str:
    """The path of the network; an error if several different ones qualify.

    States under usual keys are preferred to all others.
    """
    if len(states) == 1:
        return next(iter(states))
    usual = [place for place in states if place.rpartition(".")[2] in USUAL_KEYS]
    largest = max(len(state) for state in states.values())
    # A state with far fewer tensors than the largest is no network, but perhaps a table or a mean.
    networks = [place for place in usual or states if 4 * len(states[place]) >= largest]
    first, *others = networks
    if not all(_same(states[first], states[other]) for other in others):
        raise ValueError(
            f"{path}: contains several networks; choose one with --key (key=): {_choices(states)}"
        )
    return first


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two states are the same network; some trainers save a network twice."""
    one, other = strip_prefixes(first), strip_prefixes(second)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _choices(states: Mapping[str, dict[str, Tensor]]) -> str:
    choices = [f"{place or '(top)'} ({len(state)} tensors)" for place, state in states.items()]
    return f"choices: {listed(choices)}"
