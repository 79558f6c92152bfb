"""The whole configuration of a run, composed of the components' own settings.

YAML files are merged in order, then ``--set a.b=c`` on top; a block whose kind changes is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from margrave.backbones import BACKBONES
from margrave.data import SOURCES, Augmentation, Fit
from margrave.files import atomic_write, read_yaml
from margrave.heads import HEADS
from margrave.losses import LOSSES
from margrave.losses import create as create_loss
from margrave.recipes import recipe_text
from margrave.registry import checked_settings, explain, names_from_file, settings_schema, suggest
from margrave.settings import Settings
from margrave.training import TrainingSettings

DEFAULTS = {
    "data": {"train": {"kind": "synthetic"}},
    "backbone": {"kind": "iresnet50"},
    "loss": {"kind": "adaface"},
    "head": {"kind": "chunked"},
}
"""The components of a run that names none."""

SUPPLIED_BY_THE_RUN = {"loss", "num_classes", "embedding_size", "num_samples"}
"""What a head is given rather than configured with."""


class DataSettings(Settings):
    """What is trained on."""

    train: dict[str, Any]
    """``{kind: folder, root: …}``, ``{kind: synthetic, …}`` or an import path."""
    image_size: int = Field(default=112, ge=16)
    fit: Fit = "crop"
    """How an image that is not square becomes so."""
    augmentation: dict[str, Any] = Field(default={})
    """Settings of `margrave.data.Augmentation`."""
    cached: bool = False
    """Keep every decoded image in memory."""


class EvaluationSet(Settings):
    """Pairs to judge by: generated from labels, or listed in a file."""

    images: dict[str, Any] = Field(default={})
    """Where the images come from, as for training; a .bin file brings its own."""
    pairs: int = Field(default=1000, ge=20)
    """How many balanced pairs to draw, a multiple of 20."""
    pairs_file: str | None = None
    """LFW's pairs.txt, a CSV file with path_a, path_b and same, a list of "path path 1", or
    InsightFace's .bin, instead of drawing."""
    allow_outside: bool = False
    """Let a list name images outside of the images' folder."""
    seed: int = 0
    maximum_unreadable: int = Field(default=10, ge=0)
    """Unreadable images whose pairs are left out before the evaluation gives up."""

    @property
    def is_bin(self) -> bool:
        """Whether the pairs' file holds the images too."""
        return self.pairs_file is not None and self.pairs_file.lower().endswith(".bin")


class EvaluationSettings(Settings):
    """What is judged, and when."""

    sets: dict[str, EvaluationSet] = Field(default={})
    every_epochs: int = Field(default=0, ge=0)
    """Epochs between evaluations; 0 for one at the end."""


class RunConfig(Settings):
    """Everything that decides a run."""

    data: DataSettings
    backbone: dict[str, Any]
    initial_model: str | None = None
    """A model file whose weights the backbone begins with."""
    loss: dict[str, Any]
    head: dict[str, Any]
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top; a block whose ``kind`` changes is replaced whole.

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
    """``["loss.margin=0.4", …]`` as a nested mapping; values are read as YAML.

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
        for part in path:
            block = block.setdefault(part, {})
            if not isinstance(block, dict):
                raise ValueError(f"--set {override!r} contradicts an earlier --set of {part!r}")
        block[last] = read_yaml(text, f"--set {override!r}: {text!r}")
    return nested


def read_config(recipes: Sequence[str], overrides: Mapping[str, Any]) -> RunConfig:
    """Merge recipes and overrides, check every key and value, and fill in every default.

    Raises:
        ValueError: a file that is not YAML, an unknown key (naming the nearest), a wrong value.

    >>> read_config([], {"loss": {"kind": "arcface"}}).loss["margin"]
    0.5
    """
    # So that a setting of a default component can be changed without naming the component.
    merged: dict[str, Any] = dict(DEFAULTS)
    for recipe in recipes:
        block = read_yaml(recipe_text(recipe), recipe) or {}
        if not isinstance(block, dict):
            raise ValueError(f"{recipe} holds a {type(block).__name__}, not settings by name")
        merged = merge(merged, block)
    return resolve(merge(merged, overrides))


def read_run_config(
    folder: Path, overrides: Mapping[str, Any] | None = None, trust_code: bool = False
) -> RunConfig:
    """The configuration that a run's folder holds, with overrides on top.

    Args:
        folder: of the run, which may be anybody's.
        overrides: what the user typed.
        trust_code: allow import paths in the file, whose modules are imported and run.

    Raises:
        ValueError: as `read_config`; no run's folder; the file names code without `trust_code`.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run's folder: it holds no config.yaml")
    with names_from_file(path, trust_code, typed=overrides or {}):
        return read_config([str(path)], overrides or {})


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """A checked configuration with the components' own defaults filled in."""
    try:
        config = RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(explain(error, RunConfig, "the configuration")) from None
    data = config.data
    if data.train.get("kind") == "folder" and not data.train.get("root"):
        raise ValueError("no training images: give --data FOLDER, or set data.train.root")
    augmentation = checked_settings(Augmentation, data.augmentation, "data.augmentation")
    loss = LOSSES.validate(config.loss)
    # Built to be thrown away: ranges are checked now, not after minutes of reading images.
    Augmentation(**augmentation)
    create_loss(loss)
    sets = {
        name: entry.model_copy(update={"images": _checked_images(entry, name)})
        for name, entry in config.evaluation.sets.items()
    }
    return config.model_copy(
        update={
            "data": data.model_copy(
                update={"train": SOURCES.validate(data.train), "augmentation": augmentation}
            ),
            "backbone": _checked_backbone(config.backbone, data.image_size),
            "loss": loss,
            "head": _checked_head(config.head),
            "evaluation": config.evaluation.model_copy(update={"sets": sets}),
        }
    )


def _checked_backbone(spec: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The backbone's settings; its image size is the data's unless it says otherwise."""
    spec = dict(spec)
    kind = spec.get("kind")
    if isinstance(kind, str) and "image_size" in settings_schema(BACKBONES.get(kind)).model_fields:
        spec.setdefault("image_size", image_size)
    if spec.get("image_size", image_size) != image_size:
        raise ValueError(
            f"backbone.image_size = {spec['image_size']} but data.image_size = {image_size}; "
            "set the latter alone"
        )
    return BACKBONES.validate(spec)


def _checked_images(entry: EvaluationSet, name: str) -> dict[str, Any]:
    if entry.is_bin:
        if entry.images:
            raise ValueError(
                f"evaluation.sets.{name}: a .bin file brings its images; leave them out"
            )
        return {}
    if not entry.images:
        raise ValueError(f"evaluation.sets.{name}.images: say where the images come from")
    try:
        return SOURCES.validate(entry.images)
    except ValueError as error:
        raise ValueError(f"evaluation.sets.{name}.images: {error}") from None


def _checked_head(spec: Mapping[str, Any]) -> dict[str, Any]:
    kind = HEADS.get(str(spec.get("kind")))
    known = set(settings_schema(kind).model_fields) - SUPPLIED_BY_THE_RUN
    for key in set(spec) - known - {"kind"}:
        raise ValueError(f"head {spec['kind']!r} has no setting {key!r}; {suggest(key, known)}")
    # A head built in Python stays float32 unless asked; a run takes what is fast on its machine.
    return ({"products": "auto"} if "products" in known else {}) | dict(spec)


def save_config(config: RunConfig, path: Path) -> None:
    """Store a resolved configuration with its run."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_yaml(config))


def to_yaml(config: RunConfig) -> str:
    """A configuration as YAML that `read_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
