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
# A key with one of these words holds a moving average of the weights.
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)([._]|$)", re.IGNORECASE)
# A key with one of these words holds something other than a network, such as an optimizer.
NOT_A_NETWORK = re.compile(
    r"optim|sched|scaler|head|softmax_fc|criterion|(^|[._])loss", re.IGNORECASE
)
# Counters that profilers (thop) and torch's AveragedModel add. They are not part of a network.
COUNTERS = ("total_ops", "total_params", "n_averaged")
MAX_DEPTH = 2
"""Maximum nesting depth of state dicts in a file; 0 is the top level."""


def direct_tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors directly in a mapping, by name; nested mappings are not searched."""
    # Not mapping.items(): a pickle can hide this method behind an attribute named items.
    return {
        key: value.detach()
        for key, value in dict.items(mapping)  # type: ignore[arg-type]
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _iterate_states(
    content: dict[Any, Any], dotted_key: str = "", depth: int = 0, visited: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted key, tensors) of each state dict in a file; each object is visited once."""
    visited = {id(content)} if visited is None else visited
    tensors = direct_tensors(content)
    # A mapping whose tensors are all scalars holds values such as a temperature, not a network.
    if any(value.dim() for value in tensors.values()):
        yield dotted_key, tensors
    if depth == MAX_DEPTH:
        return
    for key, value in dict.items(content):
        if isinstance(key, str) and isinstance(value, dict) and id(value) not in visited:
            visited.add(id(value))
            yield from _iterate_states(
                value, f"{dotted_key}.{key}" if dotted_key else key, depth + 1, visited
            )


def choose_weights(
    content: dict[Any, Any], path: Path, key: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the weights in a file's content.

    Returns:
        the tensors by name, and notes for the user on what was chosen or left out.

    Raises:
        ValueError: there are no tensors, none under `key`, or several networks.
    """
    states = dict(_iterate_states(content))
    notes = []
    if counters := [name for state in states.values() for name in state if _is_counter(name)]:
        notes.append(f"{len(counters)} counters left out: {listed(counters)}")
        if "n_averaged" in counters:
            notes.append("used moving averages (torch's AveragedModel), not the plain weights")
    states = {
        dotted_key: {name: value for name, value in state.items() if not _is_counter(name)}
        for dotted_key, state in states.items()
    }
    if key is not None:
        return _weights_under_key(states, path, key), notes
    if not states:
        keys = ", ".join(map(str, list(dict.keys(content))[:8])) or "none"
        is_network = "_modules" in getattr(content, "__dict__", {})
        hint = (
            "; it is a pickled network: save and read its state_dict() instead"
            if is_network
            else ""
        )
        raise ValueError(f"{path}: contains no tensors; its keys: {keys}{hint}")
    # Moving averages can also be in the state dict of the plain weights, under a prefix.
    for dotted_key, state in list(states.items()):
        states |= {
            f"{dotted_key}.{prefix}".lstrip("."): tensors
            for prefix, tensors in _averages_by_prefix(state).items()
        }
    networks = {
        dotted_key: state
        for dotted_key, state in states.items()
        if not NOT_A_NETWORK.search(dotted_key)
    }
    # If the file contains only a head, choose the head.
    networks = networks or states
    averaged = {
        dotted_key: state for dotted_key, state in networks.items() if AVERAGED.search(dotted_key)
    }
    plain = {
        dotted_key: state for dotted_key, state in networks.items() if dotted_key not in averaged
    }
    if not averaged:
        return dict(plain[_select_network_key(plain, path)]), notes
    dotted_key = _select_network_key(averaged, path)
    average = strip_prefixes(averaged[dotted_key])
    notes.append(f"used moving averages (EMA) from {dotted_key}; choose other weights with --key")
    for state in plain.values():
        without_averages = strip_prefixes(
            {
                name: value
                for name, value in state.items()
                if not AVERAGED.search(name.partition(".")[0])
            }
        )
        # Averages often cover only parameters, not the batch norms' statistics.
        if average.keys() < without_averages.keys():
            missing = [name for name in without_averages if name not in average]
            notes.append(f"not averaged, so taken from the plain weights: {listed(missing)}")
            return {**without_averages, **average}, notes
    return dict(averaged[dotted_key]), notes


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _averages_by_prefix(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Moving averages saved in the same state dict as the plain weights: prefix -> tensors."""
    averages: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, _, name_in_average = name.partition(".")
        if name_in_average and AVERAGED.search(prefix):
            averages.setdefault(prefix, {})[name_in_average] = value
    return averages


def _weights_under_key(
    states: Mapping[str, dict[str, Tensor]], path: Path, key: str
) -> dict[str, Tensor]:
    if key in states:
        return dict(states[key])
    for state in states.values():
        matching = {
            name.removeprefix(f"{key}."): value
            for name, value in state.items()
            if name.startswith(f"{key}.")
        }
        if matching:
            return matching
    raise ValueError(f"{path}: no weights under {key!r}; {_list_choices(states)}")


def _select_network_key(states: Mapping[str, dict[str, Tensor]], path: Path) -> str:
    """The dotted key of the network's state dict; an error if there are several different networks.

    Small state dicts are ignored. Among the others, those under `USUAL_KEYS` are preferred.
    """
    largest = max(len(state) for state in states.values())
    # A state dict with fewer than a quarter as many tensors as the largest is not the network, but
    # for example a lookup table.
    large_keys = [dotted_key for dotted_key, state in states.items() if 4 * len(state) >= largest]
    usual_keys = [
        dotted_key for dotted_key in large_keys if dotted_key.rpartition(".")[2] in USUAL_KEYS
    ]
    first, *others = usual_keys or large_keys
    if not all(_are_equal(states[first], states[other]) for other in others):
        raise ValueError(
            f"{path}: contains several networks; choose one with --key (in Python: key=); "
            f"{_list_choices(states)}"
        )
    return first


def _are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have equal tensors; some trainers save the same network twice."""
    first, second = strip_prefixes(first), strip_prefixes(second)
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


def _list_choices(states: Mapping[str, dict[str, Tensor]]) -> str:
    choices = [
        f"{dotted_key or '(top level)'} ({len(state)} tensors)"
        for dotted_key, state in states.items()
    ]
    return f"choices: {listed(choices)}"
