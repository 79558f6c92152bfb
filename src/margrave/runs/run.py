"""A run from its configuration to its results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from margrave import backbones
from margrave.config import EvaluationSet, RunConfig, flat_settings, to_yaml
from margrave.data import (
    Augmentation,
    FaceImages,
    PairList,
    ReadableImages,
    TrainingImages,
    open_source,
)
from margrave.distributed import current_launch, gather_objects
from margrave.evaluation import Result
from margrave.files import read_yaml
from margrave.inference import Embedder
from margrave.losses import create as create_loss
from margrave.models import ModelCard, load_model, save_model
from margrave.pictures import draw_curves
from margrave.protocols import evaluate_embedder, open_pairs
from margrave.quantity import quantity
from margrave.runs.events import RunEvents
from margrave.runs.folder import RunFolder
from margrave.training import (
    MetricsLog,
    Position,
    PrecisionChoice,
    TrainingSettings,
    TrainingState,
    checkpoint_precision,
    fit,
    locked,
    read_state,
    set_up,
)


def open_evaluation_set(entry: EvaluationSet) -> tuple[ReadableImages, PairList]:
    """Open an evaluation set's images and pairs."""
    pairs_file = None if entry.pairs_file is None else Path(entry.pairs_file)
    return open_pairs(entry.images, pairs_file, entry.pairs, entry.seed, entry.allow_outside)


class Run:
    """Trains and evaluates a model as configured, and writes all files to the run's folder.

    Args:
        config: the resolved configuration.
        folder: the folder to write all files to; created if missing.
        events: receives the run's events; by default, they are ignored.
    """

    def __init__(self, config: RunConfig, folder: Path, events: RunEvents | None = None) -> None:
        self.config = config
        self.folder = RunFolder(folder)
        # Only rank 0 writes files and reports.
        self.is_first_rank = current_launch().rank == 0
        self.events = (events or RunEvents()) if self.is_first_rank else RunEvents()
        folder.mkdir(parents=True, exist_ok=True)
        sets = config.evaluation.sets
        self.sets = {name: open_evaluation_set(entry) for name, entry in sets.items()}

    def open_training(self, resume: bool = False) -> TrainingState:
        """Open the training images and build everything that training needs.

        Args:
            resume: if ``training.precision`` is "auto", use the latest checkpoint's precision.
        """
        config, data = self.config, self.config.data
        initial_weights = None
        if config.initial_model is not None:
            initial_weights, initial_card = load_model(config.initial_model)
            self._check_preprocessing(initial_card)
        images = open_source(data.train, labeled=True)
        self._report_left_out(images)
        self.events.message(
            f"training on {quantity(len(images), 'image')} of "
            f"{quantity(len(images.class_names), 'identity')} "
            f"({data.train['kind']})"
        )
        with self.events.counting("reading images") as progress:
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
            initial_weights,
            self._checkpoint_precision() if resume else None,
        )
        self._report_choices(training)
        return training

    def _checkpoint_precision(self) -> PrecisionChoice | None:
        """The latest checkpoint's precision.

        None if there is no checkpoint, if it does not store the precision, or if
        ``training.precision`` is not "auto".
        """
        checkpoint = self.folder.checkpoint
        if self.config.training.precision != "auto" or checkpoint is None:
            return None
        state = read_state(checkpoint)
        return checkpoint_precision(state) if "precision" in state else None

    def _report_choices(self, training: TrainingState) -> None:
        """Report precisions, numbers of threads and workers, and unused parameters."""
        choice, head = training.precision, training.head
        parts = [f"network in {choice.precision} ({choice.reason})"]
        parts.append(f"head's matrix products in {head.products}")
        threads, workers = torch.get_num_threads(), training.settings.workers
        parts.append(quantity(threads, "thread"))
        if isinstance(workers, int) and workers:
            parts[-1] += f", {quantity(workers, 'worker')}"
        self.events.message("; ".join(parts))
        if unused := training.unused_parameters:
            names = ", ".join(unused[:5]) + (", …" if len(unused) > 5 else "")
            self.events.message(
                f"the network leaves {quantity(len(unused), 'parameter')} unused ({names}); "
                "each step searches for unused parameters, which slows training: remove them from "
                "the network"
            )

    def _check_preprocessing(self, initial_card: ModelCard) -> None:
        """Raise a ValueError if this run preprocesses images unlike the initial model."""
        card = self.card()
        for name in ("image_size", "mean", "std"):
            expected, actual = getattr(initial_card, name), getattr(card, name)
            if expected != actual:
                raise ValueError(
                    f"initial_model {self.config.initial_model} was trained with {name} = "
                    f"{expected}, but this run uses {actual}; "
                    + (
                        f"set data.image_size = {expected}"
                        if name == "image_size"
                        else "choose another initial_model"
                    )
                )

    def _report_left_out(self, images: FaceImages) -> None:
        """Report the identities and images that the data source skipped."""
        left_out = list(images.left_out)
        if left_out:
            names = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
            self.events.message(
                f"{quantity(len(left_out), 'identity')} left out because of too few images: {names}"
            )
        if loose := images.loose_images:
            self.events.message(f"{quantity(loose, 'image')} left out: not in an identity's folder")
        if formats := images.other_formats:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(formats.items()))
            self.events.message(
                f"images left out because of their format: {counts}; convert them to JPEG or PNG"
            )

    def train(self, training: TrainingState, resume: bool = False) -> tuple[Result, ...]:
        """Train to the last epoch, evaluate, and write model, results and curves.

        Args:
            training: the state that ``open_training`` returned.
            resume: continue from the latest checkpoint.

        Returns:
            One result per evaluation set.

        Raises:
            ValueError: another process is training in this folder.
        """
        with locked(self.folder.path) if self.is_first_rank else nullcontext():
            return self._train(training, resume)

    def _train(self, training: TrainingState, resume: bool) -> tuple[Result, ...]:
        if not resume and self.is_first_rank:
            self.folder.write_config(self.config)
        eval_interval, epochs = self.config.evaluation.every_epochs, training.settings.epochs
        keeps_best = self.config.evaluation.best_by is not None
        initial_precisions = training.precision, training.head.products
        results: tuple[Result, ...] = ()

        def after_epoch(training: TrainingState, log: MetricsLog) -> bool:
            nonlocal results
            epoch = training.position.epoch
            is_last_epoch = epoch == epochs
            if not is_last_epoch and (not eval_interval or epoch % eval_interval):
                return False
            # Confidence intervals take a second or two, so only the final model gets them. With
            # `best_by`, the final model is the best one, which `_promote_best` evaluates.
            is_final_model = is_last_epoch and not keeps_best
            epoch_results = self.evaluate(training, resamples=1000 if is_final_model else 0)
            for result in epoch_results:
                accuracy = result.figure("accuracy").value
                values = {
                    "set": result.name,
                    "epoch": epoch,
                    "accuracy": accuracy,
                    "equal_error_rate": result.figure("EER").value,
                    "area_under_roc": result.figure("AUC").value,
                }
                log.write("evaluation", training.position.step, values)
                if not is_last_epoch and accuracy is not None:
                    self.events.message(f"epoch {epoch}: {result.name} {100 * accuracy:.2f} %")
            if is_final_model:
                results = epoch_results
            # `_keep_best` returns whether training should stop.
            return keeps_best and self._keep_best(training)

        def after_resume(position: Position) -> None:
            # `fit` calls this after it has checked that the checkpoint fits this configuration.
            changes = self._setting_changes(self.folder.read_yaml())
            if position.epoch >= epochs and changes:
                raise ValueError(
                    f"{self.folder.path} has already finished all {position.epoch} epochs, so the "
                    "changed settings would have no effect; raise training.epochs, or start a new "
                    "run"
                )
            if self.is_first_rank:
                self.folder.write_config(self.config)
            if (training.precision, training.head.products) != initial_precisions:
                self._report_choices(training)
            finished = position.epoch == epochs
            self.events.message(
                f"resuming after {quantity(position.epoch, 'epoch')} and "
                f"{quantity(position.batch, 'step')}; "
                + ("training has finished" if finished else f"{epochs} epochs in all")
            )
            if changes:
                self.events.message(f"settings changed since the last start: {'; '.join(changes)}")
            for note in training.notes:
                self.events.message(note)

        with self.events.training() as report:
            fit(
                training,
                self.folder.path,
                resume=resume,
                after_resume=after_resume,
                after_epoch=after_epoch,
                report=report,
            )
        self._report_unreadable(training.unreadable)
        model = training.gather_model()
        if keeps_best:
            if self.is_first_rank:
                results = self._promote_best(model)
        else:
            if self.is_first_rank:
                save_model(self.folder.model, model.state_dict(), self.card())
            # If the resumed run had already finished, `fit` has evaluated nothing.
            results = results or self.evaluate(training)
        if self.is_first_rank:
            self.write_results(results)
        return results

    def _keep_best(self, training: TrainingState) -> bool:
        """Write the model to ``best.safetensors`` if its evaluation is the best so far.

        Returns:
            whether training should stop, because the last `patience` evaluations did not exceed the
            best accuracy.
        """
        settings, model, should_stop = self.config.evaluation, training.gather_model(), False
        if self.is_first_rank:
            # An undefined accuracy counts as 0.
            accuracies = [
                line["accuracy"] or 0.0
                for line in self.folder.read_metrics()
                if line["kind"] == "evaluation" and line["set"] == settings.best_by
            ]
            best = max(accuracies)
            evaluations_since_best = len(accuracies) - 1 - accuracies.index(best)
            if evaluations_since_best == 0:
                save_model(self.folder.best_model, model.state_dict(), self.card())
            should_stop = (
                settings.patience is not None and evaluations_since_best >= settings.patience
            )
            if should_stop:
                self.events.message(
                    f"training stops after epoch {training.position.epoch}: "
                    f"{quantity(evaluations_since_best, 'evaluation')} in a row did not exceed the "
                    f"best accuracy on {settings.best_by}, {100 * best:.2f} %"
                )
        # Every rank must stop after the same epoch.
        return gather_objects(should_stop, training.world)[0]

    def _promote_best(self, model: torch.nn.Module) -> tuple[Result, ...]:
        """Make the best model the run's model, and evaluate it with confidence intervals."""
        # If the resumed run had already finished, its best model is already the run's model.
        if self.folder.best_model.is_file():
            os.replace(self.folder.best_model, self.folder.model)
        weights, card = load_model(self.folder.model)
        model.load_state_dict(weights)
        return self.evaluate_on_sets(Embedder(model, card, card.fit), resamples=1000)

    def _setting_changes(self, former: Mapping[str, Any]) -> list[str]:
        """Describe each setting that has changed since the last start, with both values.

        Only the settings of backbone, loss, head and training are compared, and only if ``former``,
        the configuration at the last start, has them. Custom code that ``former`` names is not
        imported.
        """
        changes = []
        current = read_yaml(to_yaml(self.config), "this run")
        for section in ("backbone", "loss", "head", "training"):
            block = former.get(section)
            if section == "training" and isinstance(block, Mapping):
                block = TrainingSettings.model_validate(dict(block)).model_dump(mode="json")
            old, new = flat_settings(block, section), flat_settings(current[section], section)
            changes += [
                f"{name} is {new.get(name, 'removed')!s}, was {value!s}"
                for name, value in old.items()
                if new.get(name) != value
            ]
        return changes

    def _report_unreadable(self, unreadable: dict[str, str]) -> None:
        if unreadable:
            self.events.message(f"left out {quantity(len(unreadable), 'unreadable image')}:")
        for reason in unreadable.values():
            self.events.message(f"  {reason}")

    def card(self) -> ModelCard:
        """The model card that is written into the model file."""
        return ModelCard(
            # Convert to plain JSON, with lists instead of tuples.
            backbone=json.loads(json.dumps(self.config.backbone)),
            image_size=self.config.data.image_size,
            fit=self.config.data.fit,
            source=f"trained by margrave with {self.config.loss['kind']}",
        )

    def evaluate(self, training: TrainingState, resamples: int = 1000) -> tuple[Result, ...]:
        """Evaluate the model in its current state on every evaluation set.

        Args:
            training: the training state.
            resamples: number of bootstrap replicates for confidence intervals; 0 for none.
        """
        card = self.card()
        return self.evaluate_on_sets(Embedder(training.gather_model(), card, card.fit), resamples)

    def evaluate_untrained(self) -> tuple[Result, ...]:
        """Evaluate a randomly initialized network on every evaluation set, as a baseline."""
        card = self.card()
        return self.evaluate_on_sets(Embedder(backbones.create(card.backbone), card, card.fit), 0)

    def evaluate_on_sets(self, embedder: Embedder, resamples: int) -> tuple[Result, ...]:
        """Evaluate any embedder on every evaluation set; `resamples` as for ``evaluate``."""
        results = []
        for name, (images, pairs) in self.sets.items():
            with self.events.counting(f"evaluating {name}") as progress:
                result = evaluate_embedder(
                    embedder,
                    images,
                    pairs,
                    name,
                    resamples=resamples,
                    maximum_unreadable=self.config.evaluation.sets[name].maximum_unreadable,
                    progress=progress,
                )
            self._report_unreadable(dict(result.unreadable))
            results.append(result)
        return tuple(results)

    def write_results(self, results: tuple[Result, ...]) -> None:
        """Write results.json if there are results, and curves.png if there is anything to draw."""
        if results:
            self.folder.write_results(results)
        curves = {result.name: result.curves["roc"] for result in results}
        rocs = {name: (curve["FAR"], curve["TAR"]) for name, curve in curves.items()}
        lines = self.folder.read_metrics()
        if rocs or any(line["kind"] == "training" for line in lines):
            draw_curves(lines, self.folder.curves, rocs)
