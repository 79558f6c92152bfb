"""One run from its configuration to its results; `train` and `demo` are thin around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from margrave import backbones
from margrave.checkpoints import ModelCard, atomic_write, load_model, save_model
from margrave.cli.progress import counted, training_bar
from margrave.cli.tables import pairs_table, strata_table
from margrave.config import EvaluationSet, RunConfig, save_config
from margrave.data import (
    Augmentation,
    FaceImages,
    PairList,
    TrainingImages,
    balanced_pairs,
    open_images,
    read_csv_pairs,
    read_lfw_pairs,
)
from margrave.evaluation import PairResult, Stratum
from margrave.inference import Embedder, verify
from margrave.losses import create as create_loss
from margrave.report import draw_curves
from margrave.training import (
    CHECKPOINT,
    MetricsLog,
    Training,
    fit,
    read_metrics,
    set_up,
)

Judged = dict[str, tuple[PairResult, tuple[Stratum, ...]]]


def open_pairs(entry: EvaluationSet) -> tuple[FaceImages, PairList]:
    """An evaluation set's images and pairs."""
    if entry.pairs_file is not None and entry.pairs_file.lower().endswith(".csv"):
        pairs, images = read_csv_pairs(entry.pairs_file, entry.images["root"])
        return images, pairs  # pyright: ignore[reportReturnType]
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
        self.sets = {name: open_pairs(entry) for name, entry in config.evaluation.sets.items()}

    def open_training(self) -> Training:
        """Open the training images and build every moving part."""
        config, data = self.config, self.config.data
        images = open_images(data.train)
        left_out = getattr(images, "left_out", {})
        if left_out:
            self.console.print(f"{len(left_out)} identities with too few images are left out")
        self.console.print(
            f"training on {len(images):,} images of {len(images.class_names):,} identities"
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
        initial = None if config.initial_model is None else load_model(config.initial_model)[0]
        return set_up(
            config.training,
            training_images,
            len(images.class_names),
            config.backbone,
            create_loss(config.loss),
            config.head,
            initial,
        )

    def train(self, training: Training, resume: bool = False) -> Judged:
        """Train to the end, evaluate, and write model, results and curves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "config.yaml")
        every = self.config.evaluation.every_epochs

        def after_epoch(training: Training, log: MetricsLog) -> None:
            epoch = training.position.epoch
            if every and epoch % every == 0 and epoch < training.settings.epochs:
                for name, (result, _) in self.judge(training).items():
                    values = {"set": name, "accuracy": result.accuracy, "epoch": epoch}
                    log.write("evaluation", training.position.step, values)
                    self.console.print(f"epoch {epoch}: {name} {100 * result.accuracy:.2f} %")

        with training_bar(self.console) as report:
            fit(training, self.folder, resume=resume, after_epoch=after_epoch, report=report)
        save_model(self.folder / "model.safetensors", training.model.state_dict(), self.card())
        if training.unreadable:
            self.console.print(f"{len(training.unreadable)} unreadable images were skipped:")
            for reason in training.unreadable.values():
                self.console.print(f"  {reason}", markup=False)
        judged = self.judge(training)
        self.write_results(judged)
        return judged

    def card(self) -> ModelCard:
        """What the model file says of itself."""
        return ModelCard(
            backbone=json.loads(json.dumps(self.config.backbone)),
            image_size=self.config.data.image_size,
            source=f"trained by margrave with {self.config.loss['kind']}",
        )

    def judge(self, training: Training) -> Judged:
        """Every evaluation set by the model as it stands."""
        return self.judge_embedder(Embedder(training.model, self.card(), self.config.data.fit))

    def judge_untrained(self) -> Judged:
        """Every evaluation set by a network that has learned nothing, for comparison."""
        network = backbones.create(self.config.backbone)
        return self.judge_embedder(Embedder(network, self.card(), self.config.data.fit))

    def judge_embedder(self, embedder: Embedder) -> Judged:
        """Every evaluation set by any embedder."""
        judged: Judged = {}
        for name, (images, pairs) in self.sets.items():
            with counted(self.console, f"evaluating {name}") as progress:
                judged[name] = verify(embedder, images, pairs, progress)
        return judged

    def write_results(self, judged: Judged) -> None:
        """results.json and curves.png."""
        write_json(judged, self.folder / "results.json")
        lines = read_metrics(self.folder / "metrics.jsonl")
        if any(line["kind"] == "training" for line in lines):
            rocs = {name: (result.roc_fpr, result.roc_tpr) for name, (result, _) in judged.items()}
            draw_curves(lines, self.folder / "curves.png", rocs)

    def show(self, judged: Judged) -> None:
        """Results as tables."""
        show(self.console, judged)


def write_json(judged: Judged, path: Path) -> None:
    """Results with everything in them."""
    content: dict[str, Any] = {
        name: {**result.to_json(), "strata": [stratum.to_json() for stratum in strata]}
        for name, (result, strata) in judged.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def show(console: Console, judged: Judged) -> None:
    """Results as tables in the terminal."""
    if judged:
        console.print(pairs_table({name: result for name, (result, _) in judged.items()}))
    for name, (_, strata) in judged.items():
        if strata:
            console.print(strata_table(name, strata))


def is_resumable(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint."""
    return (folder / CHECKPOINT).is_file()


__all__ = ["Judged", "Run", "is_resumable", "open_pairs", "show", "write_json"]
