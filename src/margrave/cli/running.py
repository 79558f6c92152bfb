"""One run from its configuration to its results; `train` and `demo` are thin around it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from margrave import backbones
from margrave.checkpoints import ModelCard, load_model, save_model
from margrave.cli.console import Console
from margrave.cli.progress import counted, training_bar
from margrave.cli.tables import pairs_notes, pairs_table, strata_table
from margrave.config import EvaluationSet, RunConfig, save_config, to_yaml
from margrave.data import (
    Augmentation,
    FaceImages,
    PairList,
    ReadableImages,
    TrainingImages,
    balanced_pairs,
    lists_paths,
    open_images,
    read_csv_pairs,
    read_lfw_pairs,
    read_pairs_bin,
)
from margrave.distributed import current_launch
from margrave.files import atomic_write, read_yaml
from margrave.heads import ChunkedHead
from margrave.inference import Embedder, Verification, verify
from margrave.losses import create as create_loss
from margrave.report import draw_curves
from margrave.training import (
    MetricsLog,
    Position,
    PrecisionChoice,
    Training,
    TrainingSettings,
    fit,
    latest_checkpoint,
    locked,
    precision_of,
    read_metrics,
    read_state,
    set_up,
)

Judged = dict[str, Verification]


def open_pairs(entry: EvaluationSet) -> tuple[ReadableImages, PairList]:
    """An evaluation set's images and pairs."""
    if entry.is_bin:
        pairs, packed = read_pairs_bin(str(entry.pairs_file))
        return packed, pairs
    if entry.pairs_file is not None and lists_paths(entry.pairs_file):
        if "root" not in entry.images:
            raise ValueError(f"{entry.pairs_file} names files: give images of kind folder")
        pairs, files = read_csv_pairs(
            entry.pairs_file, entry.images["root"], allow_outside=entry.allow_outside
        )
        return files, pairs
    images = open_images(entry.images)
    if entry.pairs_file is not None:
        return images, read_lfw_pairs(entry.pairs_file, images)
    return images, balanced_pairs(np.asarray(images.labels), entry.pairs, entry.seed)


class Run:
    """A run's folder, configuration and evaluation sets.

    Args:
        config: the resolved configuration.
        folder: where everything is written.
        console: where to tell about it.
    """

    def __init__(self, config: RunConfig, folder: Path, console: Console) -> None:
        self.config = config
        self.folder = folder
        self.console = console
        # Of several processes that train together, the first writes and tells.
        self.first = current_launch().rank == 0
        console.quiet = not self.first
        folder.mkdir(parents=True, exist_ok=True)
        self.sets = {name: open_pairs(entry) for name, entry in config.evaluation.sets.items()}

    def open_training(self, resume: bool = False) -> Training:
        """Open the training images and build every moving part, as the run began where it did."""
        config, data = self.config, self.config.data
        initial = None
        if config.initial_model is not None:
            initial, card = load_model(config.initial_model)
            self._check_fits(card)
        images = open_images(data.train)
        self._tell_what_is_left_out(images)
        self.console.print(
            f"training on {len(images):,} images of {len(images.class_names):,} identities "
            f"({data.train['kind']})",
            markup=False,
        )
        with counted(self.console, "reading images") as progress:
            training_images = TrainingImages(
                images,
                data.image_size,
                Augmentation(**data.augmentation),
                config.training.seed,
                data.fit,
                data.cached,
                progress,
            )
        training = set_up(
            config.training,
            training_images,
            len(images.class_names),
            config.backbone,
            create_loss(config.loss),
            config.head,
            initial,
            self._former_precision() if resume else None,
        )
        self._print_choices(training)
        return training

    def _former_precision(self) -> PrecisionChoice | None:
        checkpoint = latest_checkpoint(self.folder)
        if self.config.training.precision != "auto" or checkpoint is None:
            return None
        state = read_state(checkpoint)
        return precision_of(state) if "precision" in state else None

    def _print_choices(self, training: Training) -> None:
        """What was chosen for this machine, and why."""
        choice, head = training.precision, training.head
        lines = [f"network in {choice.precision} ({choice.reason})"]
        if isinstance(head, ChunkedHead):
            lines.append(f"head's products in {head.products}")
        threads, workers = torch.get_num_threads(), training.settings.workers
        lines.append(f"{threads} threads" + (f", {workers} workers" if workers else ""))
        self.console.print("; ".join(lines), markup=False)
        if unused := training.unused_parameters:
            names = ", ".join(unused[:5]) + (", …" if len(unused) > 5 else "")
            self.console.print(
                f"the network leaves {len(unused)} parameters unused ({names}), so each step looks "
                "for them; without them it would be faster",
                markup=False,
                soft_wrap=True,
            )

    def _check_fits(self, card: ModelCard) -> None:
        own = self.card()
        for name in ("image_size", "mean", "deviation"):
            theirs, ours = getattr(card, name), getattr(own, name)
            if theirs != ours:
                raise ValueError(
                    f"{self.config.initial_model} was trained with {name} = {theirs}, this run "
                    f"has {ours}; set data.image_size to its own, or begin with another model"
                )

    def _tell_what_is_left_out(self, images: FaceImages) -> None:
        left_out = list(getattr(images, "left_out", {}))
        if left_out:
            names = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
            said = f"left out for having too few images, {len(left_out)} of the people: {names}"
            self.console.print(said, markup=False)
        if loose := getattr(images, "loose_images", 0):
            self.console.print(f"{loose} images lie outside any identity's folder: left out")
        if others := getattr(images, "other_formats", None):
            counts = ", ".join(f"{number} {end}" for end, number in sorted(others.items()))
            said = f"left out for their format: {counts}; convert them to JPEG or PNG"
            self.console.print(said, markup=False)

    def train(self, training: Training, resume: bool = False) -> Judged:
        """Train to the end, evaluate, and write model, results and curves.

        Raises:
            ValueError: another process trains in this folder.
        """
        with locked(self.folder) if self.first else nullcontext():
            return self._train(training, resume)

    def _train(self, training: Training, resume: bool) -> Judged:
        if not resume and self.first:
            save_config(self.config, self.folder / "config.yaml")
        every, epochs = self.config.evaluation.every_epochs, training.settings.epochs
        chosen = training.precision, getattr(training.head, "products", None)
        judged: Judged = {}

        def after_epoch(training: Training, log: MetricsLog) -> None:
            epoch = training.position.epoch
            last = epoch == epochs
            if not last and (not every or epoch % every):
                return
            # Intervals take a second or two: the end alone has them.
            found = self.judge(training, resamples=1000 if last else 0)
            for name, verification in found.items():
                result = verification.result
                values = {
                    "set": name,
                    "epoch": epoch,
                    "accuracy": result.accuracy,
                    "equal_error_rate": result.equal_error_rate,
                    "area_under_roc": result.area_under_roc,
                }
                log.write("evaluation", training.position.step, values)
                if last:
                    judged[name] = verification
                else:
                    said = f"epoch {epoch}: {name} {100 * result.accuracy:.2f} %"
                    self.console.print(said, markup=False)

        def resumed(position: Position) -> None:
            # Only now is it known that the checkpoint fits what is asked for.
            path = self.folder / "config.yaml"
            former = read_yaml(path.read_text(encoding="utf-8"), str(path))
            changes = self._changes(former)
            if position.epoch >= epochs and changes:
                raise ValueError(
                    f"{self.folder} is finished after {position.epoch} epochs, so nothing would be "
                    "trained with the settings changed; set training.epochs higher, or begin anew"
                )
            if self.first:
                save_config(self.config, path)
            if (training.precision, getattr(training.head, "products", None)) != chosen:
                self._print_choices(training)
            left = "it is finished" if position.epoch == epochs else f"{epochs} in all"
            said = f"going on after {position.epoch} epochs and {position.batch} steps; {left}"
            self.console.print(said, markup=False)
            if changes:
                said = f"the experiment has changed: {'; '.join(changes)}"
                self.console.print(said, markup=False, soft_wrap=True)
            for note in training.notes:
                self.console.print(note, markup=False, soft_wrap=True)

        with training_bar(self.console) as report:
            fit(
                training,
                self.folder,
                resume=resume,
                resumed=resumed,
                after_epoch=after_epoch,
                report=report,
            )
        model = training.model
        if self.first:
            save_model(self.folder / "model.safetensors", model.state_dict(), self.card())
        self._name(training.unreadable)
        judged = judged or self.judge(training)
        if self.first:
            self.write_results(judged)
        return judged

    def _changes(self, former: Mapping[str, Any]) -> list[str]:
        """What was trained otherwise; images may lie elsewhere, and settings may be new since.

        The former configuration is compared as it is written: nothing that it names is looked up.
        """
        changes = []
        now = read_yaml(to_yaml(self.config), "this run")
        for part in ("backbone", "loss", "head", "training"):
            block = former.get(part)
            if part == "training" and isinstance(block, Mapping):
                block = TrainingSettings.model_validate(dict(block)).model_dump(mode="json")
            before, after = _flat(block, part), _flat(now[part], part)
            changes += [
                f"{name} is {after.get(name, 'gone')!s}, was {value!s}"
                for name, value in before.items()
                if after.get(name) != value
            ]
        return changes

    def _name(self, unreadable: dict[str, str]) -> None:
        if unreadable:
            self.console.print(f"{len(unreadable)} unreadable images were left out:")
        for reason in unreadable.values():
            self.console.print(f"  {reason}", markup=False)

    def card(self) -> ModelCard:
        """What the model file says of itself."""
        return ModelCard(
            backbone=json.loads(json.dumps(self.config.backbone)),
            image_size=self.config.data.image_size,
            fit=self.config.data.fit,
            source=f"trained by margrave with {self.config.loss['kind']}",
        )

    def judge(self, training: Training, resamples: int = 1000) -> Judged:
        """Every evaluation set by the model as it stands."""
        card = self.card()
        return self.judge_embedder(Embedder(training.model, card, card.fit), resamples)

    def judge_untrained(self) -> Judged:
        """Every evaluation set by a network that has learned nothing, for comparison."""
        card = self.card()
        return self.judge_embedder(Embedder(backbones.create(card.backbone), card, card.fit), 0)

    def judge_embedder(self, embedder: Embedder, resamples: int) -> Judged:
        """Every evaluation set by any embedder."""
        judged: Judged = {}
        for name, (images, pairs) in self.sets.items():
            limit = self.config.evaluation.sets[name].maximum_unreadable
            with counted(self.console, f"evaluating {escape(name)}") as progress:
                judged[name] = verify(embedder, images, pairs, progress, resamples, limit)
            self._name(judged[name].unreadable)
        return judged

    def write_results(self, judged: Judged) -> None:
        """results.json, where there is anything to judge by, and curves.png."""
        if judged:
            write_json(judged, self.folder / "results.json")
        results = {name: verification.result for name, verification in judged.items()}
        rocs = {name: (result.roc_fpr, result.roc_tpr) for name, result in results.items()}
        lines = read_metrics(self.folder / "metrics.jsonl")
        if rocs or any(line["kind"] == "training" for line in lines):
            draw_curves(lines, self.folder / "curves.png", rocs)


def _flat(values: Any, prefix: str) -> dict[str, Any]:
    """Settings by their whole names."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in _flat(inner, f"{prefix}.{key}").items()
    }


def write_json(judged: Judged, path: Path) -> None:
    """Results with everything in them."""
    content: dict[str, Any] = {
        name: {
            **verification.result.to_json(),
            "strata": [stratum.to_json() for stratum in verification.strata],
            "unreadable": verification.unreadable,
        }
        for name, verification in judged.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(_on_one_line(json.dumps(content, indent=1)))


def _on_one_line(text: str) -> str:
    """JSON with each list of plain values on a line of its own instead of a line per value."""
    # Strings hold no raw line breaks, so none can be mistaken for such a list.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), text)


def show(console: Console, judged: Judged) -> None:
    """Results as tables in the terminal."""
    if judged:
        results = {name: found.result for name, found in judged.items()}
        console.print(pairs_table(results))
        console.print(pairs_notes(results), soft_wrap=True)
    for name, found in judged.items():
        if found.strata:
            console.print(strata_table(name, found.strata))
