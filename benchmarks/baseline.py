"""Measure the baseline's thresholds, and write its card into the package.

Faces are found and cut by dlib's own detector, a few images of each person; the card's numbers are
those of the first folder. About twelve minutes on two cores.

    python benchmarks/baseline.py lfw_a/ bollywood/ --each 7 24 --called "LFW-a"
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from margrave.faces.dlib_faces import DlibFinder
from margrave.inference import Embedder, Features, embed_to_store
from margrave.models import open_model
from margrave.models.dlib_file import CARD
from margrave.protocols import choose_operating_points, measure_reference

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "src" / "margrave" / "models"
FARS = (1e-2, 1e-3, 1e-4)


def cut(folder: Path, chips: Path, most: int) -> None:
    """dlib's chips of the largest face of some images, as PNG files, unless they are there."""
    if chips.exists():
        return
    finder, generator = DlibFinder(), random.Random(0)
    for person in sorted(folder.iterdir()):
        files = sorted(person.iterdir())
        generator.shuffle(files)
        for file in files[:most]:
            image = cv2.imread(str(file))
            found = [] if image is None else finder.find(image[:, :, ::-1], 150)
            if found:
                target = chips / person.name / f"{file.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), found[0].crop[:, :, ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("baseline"))
    parser.add_argument("--each", nargs="+", type=int, help="Images of each person.")
    parser.add_argument("--called", help="What the card calls the first folder.")
    arguments = parser.parse_args()
    model = open_model("baseline")
    card = replace(model.card, operating_points=(), reference=None)
    embedder, table = Embedder(model.backbone, card, card.fit), []
    for folder, most in zip(arguments.folders, arguments.each, strict=True):
        chips = arguments.output / "chips" / folder.name
        cut(folder, chips, most)
        store = arguments.output / "features" / folder.name
        features = embed_to_store(embedder, chips, store, model="baseline", source=folder.name)
        people = len(np.unique(features.labels))
        for flips in (True, False):
            points = choose_operating_points(_features(features, flips), FARS)
            table += [[folder.name, len(features), people, int(flips), point.far,
                       f"{point.threshold:.4f}", f"{point.true_accept_rate:.4f}",
                       point.impostors] for point in points]  # fmt: skip
            if flips and folder == arguments.folders[0]:
                called = f"{len(features)} images of {people} people in {arguments.called}"
                reference = replace(
                    measure_reference(features),
                    measured_on=called,
                    norm_percentiles=tuple(
                        np.percentile(
                            np.linalg.norm(features.embeddings, axis=1), np.arange(101)
                        ).round(5).tolist()
                    ),
                )  # fmt: skip
                points = tuple(replace(point, measured_on=called) for point in points)
                card = replace(card, operating_points=points, reference=reference)
    (PACKAGE / CARD).write_text(json.dumps(json.loads(card.to_json())) + "\n", encoding="utf-8")
    with open(HERE / "baseline.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["folder", "images", "people", "flips", "FAR", "threshold", "TAR",
                         "impostor pairs"])  # fmt: skip
        writer.writerows(table)


def _features(store: Features, flips: bool) -> Features:
    if flips:
        return store
    return Features(
        np.asarray(store.embeddings),
        np.array([name.encode() for name in store.names]),
        {**store.description, "flips": False},
        store.card,
        labels=store.labels,
        display_name=store.display_name,
    )


if __name__ == "__main__":
    main()
