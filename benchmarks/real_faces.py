"""Train ArcFace and the four systems on real faces at one equal budget, and tabulate.

Every run has the same network, data order, augmentation, schedule and base margin; only the loss
and the seed differ. Finished runs are kept and cut-off ones go on: stop the script at any time.

    python benchmarks/real_faces.py --train bollywood/ --lfw lfw_a/ --orl orl/
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

HERE = Path(__file__).parent

LOSSES = {
    "arcface": {"kind": "arcface", "scale": 16, "margin": 0.1},
    "sv_softmax": {
        "kind": "sv_softmax",
        "scale": 16,
        "base": "angular",
        "margin": 0.1,
        "hard_weight": 1.12,
        "easy_margin": False,
    },
    "curricularface": {"kind": "curricularface", "scale": 16, "margin": 0.1},
    "adaface": {"kind": "adaface", "scale": 16, "margin": 0.1, "norm_start": "bias_corrected"},
    # ψ lies around one half, so its mean margin is the others'.
    "kappaface": {"kind": "kappaface", "scale": 16, "margin": 0.2},
}


def settings(arguments: argparse.Namespace, loss: str, seed: int) -> dict:
    """What a run adds to the common recipe."""
    return {
        "data": {"train": {"kind": "folder", "root": arguments.train}},
        "loss": LOSSES[loss],
        "training": {"seed": seed},
        "evaluation": {
            "sets": {
                "lfw": {"images": {"kind": "folder", "root": arguments.lfw}, "pairs": 3000},
                "orl": {"images": {"kind": "folder", "root": arguments.orl}, "pairs": 1000},
            }
        },
    }


def run(arguments: argparse.Namespace, loss: str, seed: int) -> None:
    """One training, unless it is finished."""
    folder = Path(arguments.output, f"{loss}-{seed}")
    if (folder / "results.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "margrave", "train"]
    if (folder / "checkpoint.pt").exists():
        command += ["--resume", str(folder)]
    else:
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings(arguments, loss, seed)))
        command += [str(HERE / "real_faces.yaml"), str(recipe), "--output", str(folder)]
    with open(folder / "log.txt", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    print(f"{loss} seed {seed} is done", flush=True)


def tabulate(arguments: argparse.Namespace) -> None:
    """Print a Markdown table and write every figure as CSV."""
    rows = []
    for loss in LOSSES:
        for seed in range(arguments.seeds):
            path = Path(arguments.output, f"{loss}-{seed}", "results.json")
            if not path.exists():
                continue
            for name, result in json.loads(path.read_text()).items():
                low, high = result["intervals"]["accuracy"]
                rates = {
                    f"tar_at_far_{r['far_target']:g}": r["tar"] for r in result["accept_rates"]
                }
                row = {"loss": loss, "seed": seed, "set": name, "accuracy": result["accuracy"]}
                rows.append({**row, "low": low, "high": high, **rates})
    with open(HERE / "real_faces.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("lfw", "orl"):
        print(f"\n| {name} | seeds: accuracy % | mean | mean interval | TAR % at FAR 0.1, 0.01 |")
        print("|---|---|---|---|---|")
        for loss in LOSSES:
            own = [row for row in rows if row["loss"] == loss and row["set"] == name]
            if not own:
                continue
            each = ", ".join(f"{100 * row['accuracy']:.1f}" for row in own)
            mean, low, high, tar, strict = (
                100 * np.mean([row[key] for row in own])
                for key in ("accuracy", "low", "high", "tar_at_far_0.1", "tar_at_far_0.01")
            )
            interval = f"{low:.1f} to {high:.1f}"
            print(f"| {loss} | {each} | {mean:.2f} | {interval} | {tar:.1f}, {strict:.1f} |")


def main() -> None:
    """Run what is missing, then tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--lfw", required=True)
    parser.add_argument("--orl", required=True)
    parser.add_argument("--output", default="runs/real_faces")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2)
    arguments = parser.parse_args()
    jobs = [(loss, seed) for seed in range(arguments.seeds) for loss in LOSSES]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for job in [pool.submit(run, arguments, *job) for job in jobs]:
            job.result()
    tabulate(arguments)


if __name__ == "__main__":
    main()
