"""Small results, runs and a study for tests of reports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from study_examples import RUN, STUDY

from margrave.config import merge, read_config
from margrave.evaluation import Result, evaluate_pairs
from margrave.runs import Run
from margrave.studies import read_study, run_study
from margrave.synthetic import SyntheticFaces


def pair_result_of(name: str, seed: int) -> Result:
    """A result on random pairs of 60 identities."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((60, 16))
    genuine = np.arange(300) % 60
    others = (genuine + 1 + generator.integers(0, 58, 300)) % 60
    labels = np.concatenate([genuine, genuine]), np.concatenate([genuine, others])
    sides = [centers[own] + generator.standard_normal((600, 16)) for own in labels]
    order = generator.permutation(600)
    same = (np.arange(600) < 300)[order]
    identities = np.stack(labels, axis=1)[order]
    result = evaluate_pairs(sides[0][order], sides[1][order], same, identities=identities)
    scores = result.scores
    assert scores is not None
    lengths = tuple(np.linalg.norm(sides[0][order], axis=1).tolist())
    named = replace(scores, lower_norms=lengths, images_digest=f"{seed:064d}")
    return replace(result.result(name), scores=named)


def trained_run(folder: Path, kind: str, images: Path | None = None) -> Path:
    """A run's folder; with `images`, it is tested on faces that are written there."""
    if images is None:
        shutil.copytree(_run(kind), folder)
        return folder
    SyntheticFaces(num_identities=8, images_per_identity=6, image_size=32).write(images)
    sets = {
        "test": {"images": {"kind": "folder", "root": str(images)}, "pairs": 40},
        "validation": None,
    }
    _train(kind, folder, {"evaluation": {"sets": sets}})
    return folder


@cache
def _run(kind: str) -> Path:
    folder = Path(mkdtemp()) / "run"
    sets = {"test": {"pairs": 200}, "validation": None}
    _train(kind, folder, {"evaluation": {"every_epochs": 1, "sets": sets}})
    return folder


def _train(kind: str, folder: Path, settings: dict) -> None:
    block = merge(merge(RUN, settings), {"loss": {"kind": kind}})
    sets = block["evaluation"]["sets"]
    block["evaluation"]["sets"] = {name: entry for name, entry in sets.items() if entry}
    run = Run(read_config([block], {}), folder)
    run.train(run.open_training())


def tiny_study(folder: Path) -> Path:
    """A study's folder: two losses, two seeds."""
    shutil.copytree(_study(), folder)
    return folder


@cache
def _study() -> Path:
    folder = Path(mkdtemp()) / "study"
    run_study(read_study([STUDY], {}), folder, devices=2)
    return folder
