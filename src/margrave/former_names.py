"""Reads files that Margrave 0.1 wrote: renames settings that had other names then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Former name -> current name, for each kind of settings.
CARD = {"deviation": "std", "colour_order": "color_order"}
BACKBONE = {"initialisation": "initialization"}
AUGMENTATION = {"grey": "gray"}
OPTIMIZER = {
    "second_momentum": "beta2",
    "centres_in_backward": "centers_in_backward",
}


def renamed(block: Any, names: Mapping[str, str]) -> Any:
    """Rename the former keys of a mapping; a value of another type is returned unchanged.

    Raises:
        ValueError: a setting is given under both names.

    >>> renamed({"grey": 0.3}, AUGMENTATION)
    {'gray': 0.3}
    """
    if not isinstance(block, Mapping):
        return block
    for former, name in names.items():
        if former in block and name in block:
            raise ValueError(f"both {name!r} and its former name {former!r} are set; keep {name!r}")
    return {names.get(key, key): value for key, value in block.items()}


def current_card(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the former keys of a model card.

    >>> current_card({"mean": 0.5, "deviation": 0.25})
    {'mean': 0.5, 'std': 0.25}
    """
    card = dict(renamed(fields, CARD))
    if "backbone" in card:
        card["backbone"] = _current_backbone(card["backbone"])
    return card


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the former keys of a run configuration."""
    values = dict(config)
    if "backbone" in values:
        values["backbone"] = _current_backbone(values["backbone"])
    for section, key, names in (
        ("data", "augmentation", AUGMENTATION),
        ("training", "optimizer", OPTIMIZER),
    ):
        settings = values.get(section)
        if isinstance(settings, Mapping) and key in settings:
            values[section] = {**settings, key: renamed(settings[key], names)}
    training = values.get("training")
    # Version 0.1 had the switch `tensorboard`; now TensorBoard is one of the loggers.
    if isinstance(training, Mapping) and isinstance(training.get("tensorboard"), bool):
        settings = {key: value for key, value in training.items() if key != "tensorboard"}
        if training["tensorboard"]:
            settings["loggers"] = [*settings.get("loggers", ()), "tensorboard"]
        values["training"] = settings
    return values


def _current_backbone(spec: Any) -> Any:
    """Rename the former keys of a backbone's settings; those of custom networks stay unchanged."""
    custom = isinstance(spec, Mapping) and ":" in str(spec.get("kind"))
    return spec if custom else renamed(spec, BACKBONE)
