"""Renames the settings in files that Margrave 0.1 wrote to their current names."""

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


def renamed(settings: Any, names: Mapping[str, str]) -> Any:
    """Rename the former keys of settings; anything but a mapping is returned unchanged.

    Args:
        settings: the settings as read from the file.
        names: former name -> current name.

    Raises:
        ValueError: a setting is given under both names.

    >>> renamed({"grey": 0.3}, AUGMENTATION)
    {'gray': 0.3}
    """
    if not isinstance(settings, Mapping):
        return settings
    for former, name in names.items():
        if former in settings and name in settings:
            raise ValueError(f"both {name!r} and its former name {former!r} are set; keep {name!r}")
    return {names.get(key, key): value for key, value in settings.items()}


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
        current = {key: value for key, value in training.items() if key != "tensorboard"}
        if training["tensorboard"]:
            current["loggers"] = [*current.get("loggers", ()), "tensorboard"]
        values["training"] = current
    return values


def _current_backbone(spec: Any) -> Any:
    """Rename the former keys of a backbone's settings; those of custom networks stay unchanged."""
    # The kind of a custom network is its import path, "my_module:MyNetwork".
    is_custom = isinstance(spec, Mapping) and ":" in str(spec.get("kind"))
    return spec if is_custom else renamed(spec, BACKBONE)
