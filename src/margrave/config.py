"""A run's full configuration, composed of its components' settings.

YAML files are merged in order; ``--set a.b=c`` overrides all of them. If the ``kind`` of a block
changes, the new block replaces the old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from margrave.backbones import BACKBONES
from margrave.data import SOURCES, Augmentation, Fit
from margrave.files import atomic_write, read_yaml
from margrave.former_names import current_config
from margrave.heads import HEADS
from margrave.losses import LOSSES, Loss
from margrave.losses import create as create_loss
from margrave.recipes import recipe_text
from margrave.registry import checked_settings, explain, settings_schema, suggest
from margrave.settings import Settings
from margrave.training import TrainingSettings

DEFAULTS = {
    "data": {"train": {"kind": "synthetic"}},
    "backbone": {"kind": "iresnet50"},
    "loss": {"kind": "adaface"},
    "head": {"kind": "chunked"},
}
"""The default components of a run."""

SUPPLIED_BY_THE_RUN = {"loss": None, "num_classes": 16, "embedding_size": 1, "num_samples": 16}
"""Head arguments that are not settings, because the run passes them in. These values build a tiny
head that checks the settings; `_checked_head` replaces None with the run's loss."""


class DataSettings(Settings):
    """The training images and their preprocessing."""

    train: dict[str, Any]
    """``{kind: folder, root: …}``, ``{kind: synthetic, …}`` or an import path,
    ``{kind: my_module:MyImages, …}``."""
    image_size: int = Field(default=112, ge=16)
    """Side of the square images that the backbone gets, in pixels."""
    fit: Fit = "crop"
    """How to make a non-square image square."""
    augmentation: dict[str, Any] = Field(default={})
    """Settings of `margrave.data.Augmentation`."""
    cached: bool = False
    """Keep every decoded image in memory."""


class EvaluationSet(Settings):
    """Verification pairs: drawn from labeled images, or listed in a file."""

    images: dict[str, Any] = Field(default={})
    """The source of the images, as in ``data.train``; empty for a .bin file, which has its own."""
    pairs: int = Field(default=1000, ge=20)
    """Number of pairs to draw, half genuine and half impostor; a multiple of 20."""
    pairs_file: str | None = None
    """Read the pairs from this file instead of drawing them: LFW's pairs.txt, a CSV file with
    path_a, path_b and same, lines "path path 1" or "path path 0", or InsightFace's .bin."""
    allow_outside: bool = False
    """Allow ``pairs_file`` to name images outside the image folder."""
    seed: int = 0
    """Seeds the random draw of the pairs."""
    maximum_unreadable: int = Field(default=10, ge=0)
    """Skip the pairs of up to this many unreadable images; with more, the evaluation fails."""

    @property
    def is_bin(self) -> bool:
        """Whether the pairs file also contains the images."""
        return self.pairs_file is not None and self.pairs_file.lower().endswith(".bin")


class EvaluationSettings(Settings):
    """What to evaluate, and when."""

    sets: dict[str, EvaluationSet] = Field(default={})
    every_epochs: int = Field(default=0, ge=0)
    """Epochs between evaluations; 0 evaluates once, at the end."""
    best_by: str | None = None
    """Name of the set that selects the model: the run keeps the model with the highest accuracy on
    this set instead of the last model. Report the accuracy of other sets, because selection makes
    the accuracy on this set optimistic."""
    patience: int | None = Field(default=None, ge=1)
    """End the training after this many evaluations without a higher accuracy on `best_by`."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.best_by is None and self.patience is not None:
            raise ValueError("patience needs best_by: the set whose accuracy must rise")
        if self.best_by is not None and self.best_by not in self.sets:
            choices = suggest(self.best_by, self.sets)
            raise ValueError(f"best_by = {self.best_by!r} is not one of the sets; {choices}")
        if self.best_by is not None and not self.every_epochs:
            raise ValueError("best_by needs every_epochs: the epochs between evaluations")
        return self


class RunConfig(Settings):
    """Everything that determines a run."""

    data: DataSettings
    backbone: dict[str, Any]
    initial_model: str | None = None
    """Initialize the backbone with the weights of this model file."""
    loss: dict[str, Any]
    head: dict[str, Any]
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into `base`; a block whose ``kind`` changes is replaced entirely.

    >>> merge({"loss": {"kind": "arcface", "margin": 0.5}}, {"loss": {"kind": "softmax"}})
    {'loss': {'kind': 'softmax'}}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            same_kind = value.get("kind", old.get("kind")) == old.get("kind")
            value = merge(old, value) if same_kind else value
        merged[key] = value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``["loss.margin=0.4", …]`` into a nested mapping; values are YAML.

    >>> parse_overrides(["loss.kind=arcface", "loss.margin=0.4"])
    {'loss': {'kind': 'arcface', 'margin': 0.4}}
    """
    nested: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {override!r} is not of the form a.b=value")
        *path, last = key.split(".")
        block = nested
        for key_part in path:
            block = block.setdefault(key_part, {})
            if not isinstance(block, dict):
                raise ValueError(f"--set {override!r} contradicts an earlier --set of {key_part!r}")
        block[last] = read_yaml(text, f"--set {override!r}: {text!r}")
    return nested


def read_config(
    recipes: Sequence[str | Mapping[str, Any]], overrides: Mapping[str, Any]
) -> RunConfig:
    """Merge recipes and overrides, check every key and value, and fill in defaults.

    Head settings that are not given stay out of the configuration, except ``products``.

    Args:
        recipes: recipe names, files or blocks of settings; later ones override earlier ones.
        overrides: settings that override every recipe.

    Raises:
        ValueError: invalid YAML, an unknown key (the nearest is suggested), or an invalid value.

    >>> read_config([], {"loss": {"kind": "arcface"}}).loss["margin"]
    0.5
    """
    # Start from the defaults, so that a recipe can change a default component without repeating
    # its kind.
    merged: dict[str, Any] = dict(DEFAULTS)
    for recipe in recipes:
        merged = merge(merged, recipe if isinstance(recipe, Mapping) else read_recipe(recipe))
    return resolve(merge(merged, overrides))


def read_recipe(recipe: str) -> dict[str, Any]:
    """The settings of one recipe or file, not validated; former setting names become current ones.

    Raises:
        ValueError: there is no such recipe or file, or it is not a mapping of settings.

    >>> read_recipe("demo")["backbone"]["kind"]
    'iresnet'
    """
    block = read_yaml(recipe_text(recipe), recipe) or {}
    if not isinstance(block, dict):
        raise ValueError(f"{recipe} contains a {type(block).__name__}, not a mapping of settings")
    return current_config(block)


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """Validate a configuration and fill in the components' defaults."""
    try:
        config = RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(explain(error, RunConfig, "the configuration")) from None
    data = config.data
    if data.train.get("kind") == "folder" and not data.train.get("root"):
        raise ValueError("no training images: give --data FOLDER, or set data.train.root")
    augmentation = checked_settings(Augmentation, data.augmentation, "data.augmentation")
    loss = LOSSES.validate(config.loss)
    # Building augmentation and loss checks their value ranges now, not after minutes of reading
    # images.
    Augmentation(**augmentation)
    built_loss = create_loss(loss)
    sets = {
        name: evaluation_set.model_copy(update={"images": _checked_images(evaluation_set, name)})
        for name, evaluation_set in config.evaluation.sets.items()
    }
    return config.model_copy(
        update={
            "data": data.model_copy(
                update={"train": SOURCES.validate(data.train), "augmentation": augmentation}
            ),
            "backbone": _checked_backbone(config.backbone, data.image_size),
            "loss": loss,
            "head": _checked_head(config.head, built_loss),
            "evaluation": config.evaluation.model_copy(update={"sets": sets}),
        }
    )


def _checked_backbone(spec: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Validate the backbone's settings; its image size defaults to ``data.image_size``."""
    spec = dict(spec)
    kind = spec.get("kind")
    if isinstance(kind, str) and "image_size" in settings_schema(BACKBONES.get(kind)).model_fields:
        spec.setdefault("image_size", image_size)
    if spec.get("image_size", image_size) != image_size:
        raise ValueError(
            f"backbone.image_size = {spec['image_size']} but data.image_size = {image_size}; "
            "set only data.image_size"
        )
    return BACKBONES.validate(spec)


def _checked_images(evaluation_set: EvaluationSet, name: str) -> dict[str, Any]:
    """Validate the image source of an evaluation set; returns {} for a .bin file."""
    if evaluation_set.is_bin:
        if evaluation_set.images:
            raise ValueError(
                f"evaluation.sets.{name}: a .bin file contains its images; remove 'images'"
            )
        return {}
    if not evaluation_set.images:
        raise ValueError(f"evaluation.sets.{name}.images is missing; give the source of the images")
    try:
        return SOURCES.validate(evaluation_set.images)
    except ValueError as error:
        raise ValueError(f"evaluation.sets.{name}.images: {error}") from None


def _checked_head(spec: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """Validate the head's settings and convert them to their types.

    The only default added is that of ``products``. Run folders and studies therefore contain the
    other settings only if they were given.
    """
    kind = str(spec.get("kind"))
    head = HEADS.get(kind)
    place = f"head {kind!r}"
    fields = set(settings_schema(head).model_fields)
    settings = fields - SUPPLIED_BY_THE_RUN.keys()
    for key in set(spec) - settings - {"kind"}:
        raise ValueError(f"{place} has no setting {key!r}; {suggest(key, settings)}")
    supplied = {
        name: value
        for name, value in (SUPPLIED_BY_THE_RUN | {"loss": loss}).items()
        if name in fields
    }
    given = {name: value for name, value in spec.items() if name != "kind"}
    checked = checked_settings(head, supplied | given, place)
    if kind in HEADS:
        # Building a tiny head checks the settings' ranges. A head given by import path may need the
        # run's real arguments, so it is not built here.
        try:
            with torch.random.fork_rng(devices=[]):
                head(**checked)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    # A head built in Python defaults to float32 matrix products. A run defaults to the precision
    # that is fastest on its machine.
    automatic = {"products": "auto"} if "products" in settings else {}
    return automatic | {name: checked.get(name, value) for name, value in spec.items()}


def flat_settings(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings into one dict whose keys are full dotted names.

    >>> flat_settings({"loss": {"kind": "arcface", "margin": 0.5}, "seeds": 5})
    {'loss.kind': 'arcface', 'loss.margin': 0.5, 'seeds': 5}
    """
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in flat_settings(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def save_config(config: RunConfig, path: Path) -> None:
    """Write a resolved configuration to a YAML file."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_yaml(config))


def to_yaml(config: RunConfig) -> str:
    """Format a configuration as YAML that `read_config` can read."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
