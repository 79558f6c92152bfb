"""What a study trains and compares: its settings, and the cells that follow from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from margrave.config import RunConfig, merge, read_config, read_recipe
from margrave.evaluation import FAR_TARGETS
from margrave.files import read_yaml
from margrave.losses import LOSSES, ArcFace, spec_at_scale
from margrave.losses import create as create_loss
from margrave.recipes import study_text
from margrave.registry import explain, suggest
from margrave.settings import Settings

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+ -]{0,79}")
"""The form of the names of losses and conditions, which are also folder names."""
Metric = Literal["accuracy", "AUC", "EER", "TAR"]


class Claim(Settings):
    """A paper's claim about its loss, tested by one of the study's comparisons."""

    text: str
    """The claim as a sentence."""
    loss: str
    """The loss that the claim is about."""
    over: str
    """The loss that ``loss`` is compared with."""
    condition: str
    """The condition whose comparison tests the claim."""
    helps: bool = True
    """True: the claim is that ``loss`` is better than ``over``; False: that they do not differ."""


class Tuning(Settings):
    """A grid over each loss's hyperparameters, compared on held-out identities."""

    factors: dict[str, list[float]] = Field(min_length=1)
    """Hyperparameter -> factors to multiply each loss's value by; losses without this
    hyperparameter ignore it."""
    seeds: int = Field(default=1, ge=1)
    """Number of seeds per variant; they differ from the seeds of the comparison."""
    validation: str = "validation"
    """The evaluation set on which the best variant is chosen."""


class StudyConfig(Settings):
    """Everything that determines a study."""

    question: str = ""
    run: dict[str, Any] = Field(default={})
    """The settings of every training, as in a recipe."""
    conditions: dict[str, dict[str, Any]] = Field(default={"data": {}}, min_length=1)
    """Condition -> settings that override ``run``, such as other images."""
    losses: dict[str, dict[str, Any]] = Field(min_length=1)
    """The losses by name: ``{kind: …, **hyperparameters}``."""
    seeds: int = Field(default=5, ge=1)
    """Number of trainings of each loss in each condition."""
    first_seed: int = Field(default=0, ge=0)
    metric: Metric = "accuracy"
    """The metric by which losses are compared, chosen before training."""
    far: float = Field(default=0.01, gt=0, lt=1)
    """The FAR at which metric TAR is measured; other metrics ignore it."""
    test: str = "test"
    """The evaluation set on which losses are compared."""
    tuning: Tuning | None = None
    claims: list[Claim] = Field(default=[])
    prepared: dict[str, Any] = Field(default={})
    """Training settings that were chosen on the machine where the study began, such as the number
    of threads; all cells use them."""

    @field_validator("losses", mode="before")
    @classmethod
    def _expand_names(cls, losses: Any) -> Any:
        """Replace losses that are only registered names by settings: ``{kind: name}``."""
        if isinstance(losses, list | tuple):
            losses = {str(name): {"kind": str(name)} for name in losses}
        if isinstance(losses, Mapping):
            losses = {
                name: {"kind": loss} if isinstance(loss, str) else loss
                for name, loss in losses.items()
            }
        return losses

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        for noun, names in (("loss", self.losses), ("condition", self.conditions)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"the {noun}'s name {name!r} cannot be a folder's name; use at most 80 "
                        "letters, digits, spaces and _ . , = + -, and begin with a letter, digit "
                        "or _"
                    )
        for claim in self.claims:
            for noun, name, names in (
                ("loss", claim.loss, self.losses),
                ("loss", claim.over, self.losses),
                ("condition", claim.condition, self.conditions),
            ):
                if name not in names:
                    raise ValueError(
                        f"a claim is about the {noun} {name!r}, which the study does not have; "
                        f"{suggest(name, names)}"
                    )
        if self.metric == "TAR" and self.tuning is not None and self.far not in FAR_TARGETS:
            measured = ", ".join(f"{far:g}" for far in FAR_TARGETS)
            raise ValueError(
                f"far = {self.far:g}, but tuning knows the TAR only at FAR {measured}; choose one "
                "of these, or set tuning to null"
            )
        return self


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        condition: the condition's name.
        loss: the loss's name in the study.
        seed: the seed of the initialization and of the order of the images.
        config: the run's configuration.
    """

    condition: str
    loss: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """The cell's folder within the study: ``condition/loss/seed-0``."""
        return f"{self.condition}/{self.loss}/seed-{self.seed}"


def read_study(
    studies: Sequence[str | Mapping[str, Any]],
    overrides: Mapping[str, Any],
    losses: Sequence[str] | None = None,
) -> StudyConfig:
    """Merge studies and overrides, and check everything that can be checked before training.

    Args:
        studies: names of Margrave's studies, files, or blocks of settings; later ones override
            earlier ones. A block overrides the studies that it ``extends``, and its ``run``
            overrides the ``recipes`` that it names.
        overrides: settings that override all of them.
        losses: compare only these: names of the study's losses, other registered losses, or import
            paths. A registered loss that the study does not have gets the scale of the study's
            ArcFace. Its margin is its default margin, times the ratio of the study's ArcFace margin
            to ArcFace's default margin.

    Returns:
        The study, with all hyperparameters of each loss filled in.

    Raises:
        ValueError: an unknown key or invalid value, in the study or in one of its runs.

    >>> images = {"kind": "synthetic", "num_identities": 50, "image_size": 64}
    >>> run = {"data": {"train": images, "image_size": 64}, "evaluation": {"sets": {"test": {
    ...     "images": {**images, "first_identity": 50}}}}}
    >>> study = read_study([{"run": run, "losses": ["arcface", "adaface"]}], {"seeds": 2})
    >>> [cell.name for cell in cells_of(study)][:2]
    ['data/arcface/seed-0', 'data/adaface/seed-0']
    """
    merged: dict[str, Any] = {}
    for study in studies:
        merged = merge(merged, _block(study))
    merged = merge(merged, overrides)
    for name in ("losses", "conditions"):
        if isinstance(merged.get(name), Mapping):
            # null removes a loss or condition of an extended study.
            merged[name] = {key: value for key, value in merged[name].items() if value is not None}
    if losses is not None:
        study_losses = merged.get("losses")
        study_losses = study_losses if isinstance(study_losses, Mapping) else {}
        # A loss given by its import path gets the name of its class.
        merged["losses"] = {
            name.rpartition(":")[2]: study_losses.get(name) or _like_arcface(name, study_losses)
            for name in losses
        }
        # Claims about losses that are left out are dropped.
        if isinstance(merged.get("claims"), list):
            merged["claims"] = [
                claim
                for claim in merged["claims"]
                # An entry that is not a claim is kept, so that the validation below reports it.
                if not isinstance(claim, Mapping)
                or all(
                    name in merged["losses"]
                    for name in (claim.get("loss"), claim.get("over"))
                    if isinstance(name, str)
                )
            ]
    try:
        config = StudyConfig.model_validate(merged)
    except ValidationError as error:
        raise ValueError(explain(error, StudyConfig, "the study")) from None
    complete = {name: LOSSES.validate(loss) for name, loss in config.losses.items()}
    # Creating a loss checks its hyperparameters.
    for loss in complete.values():
        create_loss(loss)
    config = config.model_copy(update={"losses": complete})
    # Creating a cell checks its run's settings, which are the same for every seed.
    for cell in cells_of(config.model_copy(update={"seeds": 1})):
        sets = cell.config.evaluation.sets
        needed = [config.test, *([config.tuning.validation] if config.tuning else [])]
        for name in needed:
            if name not in sets:
                raise ValueError(
                    f"condition {cell.condition!r} has no evaluation set {name!r}; "
                    f"{suggest(name, sets)}"
                )
    return config


def _like_arcface(kind: str, study_losses: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a loss that the study lacks, with scale and margin adapted to its ArcFace."""
    reference = study_losses.get("arcface")
    if not isinstance(reference, Mapping) or "kind" not in reference or kind not in LOSSES:
        return {"kind": kind}
    spec = spec_at_scale(kind, reference)
    margin = getattr(LOSSES.get(kind)(), "margin", None)
    arcface_margin = reference.get("margin")
    # A default margin of 1 or more multiplies the angle, so ArcFace's ratio does not apply to it.
    if isinstance(margin, float) and margin < 1 and isinstance(arcface_margin, int | float):
        spec["margin"] = round(margin * arcface_margin / ArcFace().margin, 4)
    return spec


def _block(study: str | Mapping[str, Any], extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """A study's settings, merged over the studies that it extends and the recipes that it names.

    Args:
        study: the study's name or file, or a block of settings.
        extending: the studies whose ``extends`` led to `study`, which must not be among them.
    """
    if isinstance(study, Mapping):
        block = dict(study)
    else:
        if study in extending:
            raise ValueError(f"the study {study!r} extends itself; remove it from its 'extends'")
        extending = (*extending, study)
        block = read_yaml(study_text(study), study) or {}
        if not isinstance(block, dict):
            raise ValueError(f"{study} contains a {type(block).__name__}, not a study's settings")
    base: dict[str, Any] = {}
    for name in _names(block.pop("extends", []), "extends"):
        base = merge(base, _block(name, extending))
    for name in _names(block.pop("recipes", []), "recipes"):
        base["run"] = merge(base.get("run", {}), read_recipe(name))
    return merge(base, block)


def _names(value: Any, key: str) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"the study's {key} = {value!r} must be a list of names")
    return value


def cells_of(
    config: StudyConfig,
    losses: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Cell]:
    """Yield the cells seed by seed, so that losses can be compared after the first seeds.

    Args:
        config: the study.
        losses: the losses' settings by name; None uses the study's losses.
        seeds: the seeds; None uses the study's seeds.
    """
    if seeds is None:
        seeds = range(config.first_seed, config.first_seed + config.seeds)
    for seed in seeds:
        for condition, settings in config.conditions.items():
            for name, loss in (config.losses if losses is None else losses).items():
                training = {**config.prepared, "seed": seed}
                run = merge(merge(config.run, settings), {"training": training})
                # Replace, not merge: a recipe may set hyperparameters of another loss.
                run["loss"] = dict(loss)
                yield Cell(condition, name, seed, read_config([run], {}))


def grid_of(config: StudyConfig) -> dict[str, dict[str, dict[str, Any]]]:
    """The variants that tuning tries: loss -> variant's name -> its settings.

    The unchanged loss is the first variant and keeps its name.
    """
    grids: dict[str, dict[str, dict[str, Any]]] = {}
    assert config.tuning is not None
    for name, loss in config.losses.items():
        variants: list[dict[str, Any]] = [{}]
        for field, factors in config.tuning.factors.items():
            if isinstance(loss.get(field), int | float) and loss[field]:
                values = [round(loss[field] * factor, 6) for factor in factors]
                variants = [{**variant, field: value} for variant in variants for value in values]
        grids[name] = {name: dict(loss)}
        for changes in variants:
            if any(loss[field] != value for field, value in changes.items()):
                label = " ".join(f"{field}={value:g}" for field, value in changes.items())
                grids[name][f"{name} {label}"] = {**loss, **changes}
    return grids


def to_yaml(config: StudyConfig) -> str:
    """Format a study as YAML that `read_study` can read."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
