"""Every protocol on one labeled folder and one ONNX embedder, for docs/explanation/results.md.

Writes, from nothing but the folder's labels, what each protocol wants: balanced 10-fold pairs, a
TinyFace-like search with two mates and distractors, and IJB-C's files with templates of one to
eight images, pairs, two galleries and probes. Then embeds once and evaluates by all of them.

    python benchmarks/lfw_protocols.py mobilefacenet.onnx ../shared/data/lfw_a work/
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

from margrave.data import ImageFolder, balanced_pairs

COMMAND = [sys.executable, "-m", "margrave"]


def main() -> None:
    """Write the files, embed, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="RGB, ImageNet's mean and std")
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    images = ImageFolder(given.images)
    write_pairs(images, work / "pairs.csv")
    write_search(images, work / "search.csv")
    write_templates(images, work / "meta")
    model, features = work / "model.onnx", work / "features"
    if not model.exists():
        statistics = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
        run("import", given.model, model, *statistics, "--color-order", "rgb")
    run("embed", model, given.images, features)
    for name, files in (
        ("pairs", [work / "pairs.csv"]),
        ("identification", [work / "search.csv"]),
        ("ijb", [work / "meta"]),
        ("all-to-all", []),
    ):
        run("evaluate", name, features, *files, "--output", work / f"{name}.json")
    run("threshold", model, features, "--far", "1e-3,1e-4,1e-5")


def run(*arguments: object) -> None:
    """A command of Margrave's, told and executed."""
    print("$ margrave", *arguments, flush=True)
    subprocess.run([*COMMAND, *map(str, arguments)], check=True)


def write_pairs(images: ImageFolder, path: Path) -> None:
    """6 000 pairs in 10 folds."""
    pairs = balanced_pairs(images.labels, 6000, seed=0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path_a", "path_b", "same"])
        for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
            writer.writerow([images.path(first), images.path(second), int(same)])


def write_search(images: ImageFolder, path: Path) -> None:
    """Of half of the people two gallery images each and the rest probes; the others distract."""
    people = np.random.default_rng(0).permutation(len(images.class_names))
    searched = set(people[: len(people) // 2].tolist())
    seen: dict[int, int] = {}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "identity", "role"])
        for index, label in enumerate(images.labels.tolist()):
            seen[label] = seen.get(label, 0) + 1
            role = "distractor"
            if label in searched:
                role = "gallery" if seen[label] <= 2 else "probe"
            identity = "" if role == "distractor" else images.class_names[label]
            writer.writerow([images.path(index), identity, role])


def write_templates(images: ImageFolder, folder: Path) -> None:
    """IJB-C's files: every person's images dealt into templates, media of one or two frames."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    lines, subject_of = [], {}
    media = 0
    for label in range(len(images.class_names)):
        own = generator.permutation(np.flatnonzero(images.labels == label))
        while len(own):
            size = int(generator.integers(1, 9))
            template = len(subject_of) + 1
            subject_of[template] = label
            for frame, index in enumerate(own[:size].tolist()):
                media += frame % 2 == 0
                lines.append((images.path(index), template, media))
            own = own[size:]
    text = "".join(f"{name} {template} {medium}\n" for name, template, medium in lines)
    (folder / "ijbc_face_tid_mid.txt").write_text(text)
    subjects = np.array(list(subject_of.values()))
    first, second = np.triu_indices(len(subjects), 1)
    same = subjects[first] == subjects[second]
    # All genuine pairs and half a million others.
    strangers = generator.choice(np.flatnonzero(~same), 500_000, replace=False)
    kept = np.sort(np.concatenate([np.flatnonzero(same), strangers]))
    rows = np.stack([first[kept] + 1, second[kept] + 1, same[kept]], axis=1)
    np.savetxt(folder / "ijbc_template_pair_label.txt", rows, fmt="%d")
    order = generator.permutation(len(images.class_names))
    galleries = [set(part.tolist()) for part in np.array_split(order, 2)]
    enrolled: set[int] = set()
    sides: dict[str, list[tuple[int, int]]] = {
        side: [] for side in ("gallery_G1", "gallery_G2", "probe_mixed")
    }
    for template, label in subject_of.items():
        if label in enrolled:
            sides["probe_mixed"].append((template, label))
        else:
            enrolled.add(label)
            which = "gallery_G1" if label in galleries[0] else "gallery_G2"
            sides[which].append((template, label))
    for side, templates in sides.items():
        with open(folder / f"ijbc_1N_{side}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["TEMPLATE_ID", "SUBJECT_ID", "FILENAME"])
            wanted = dict(templates)
            for name, template, _ in lines:
                if template in wanted:
                    writer.writerow([template, wanted[template], name])


if __name__ == "__main__":
    main()
