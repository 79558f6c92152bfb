"""`margrave plan` against what happens: memory and time of head steps, predicted and measured.

Each case runs in a process of its own, and again on several ranks of this machine. Memory is the
process's largest resident set. Prints a table and writes benchmarks/plan.csv.

    python benchmarks/plan.py
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from margrave.distributed import current_launch
from margrave.heads import ChunkedHead, ShardedHead
from margrave.losses import create
from margrave.training import TrainingSettings
from margrave.training.optimizer import build_optimizer
from margrave.training.plan import Machine, measure_machine, plan_training

CASES = {
    "200 000 classes": {"classes": 200_000, "batch": 512},
    "1 000 000": {"classes": 1_000_000, "batch": 256},
    "1 000 000, AdamW": {"classes": 1_000_000, "batch": 128, "optimizer": {"kind": "adamw"}},
    "1 000 000, KappaFace": {"classes": 1_000_000, "batch": 128, "loss": "kappaface"},
    "2 000 000": {"classes": 2_000_000, "batch": 256},
    "2 000 000, inside the backward pass": {
        "classes": 2_000_000, "batch": 256, "optimizer": {"centers_in_backward": True},
    },
    "2 000 000, sampled at 0.1": {"classes": 2_000_000, "batch": 256, "rate": 0.1},
    "1 000 000 on 2 ranks": {"classes": 1_000_000, "batch": 256, "ranks": 2},
}  # fmt: skip


def parts(case: dict) -> tuple[TrainingSettings, dict, object]:
    """Settings, head and loss of a case."""
    settings = TrainingSettings.model_validate(
        {"batch_size": case["batch"], "optimizer": case.get("optimizer", {})}
    )
    head = {"kind": "chunked", "sample_rate": case.get("rate")}
    return settings, head, create({"kind": case.get("loss", "curricularface")})


def measure(case: dict, steps: int) -> dict[str, float]:
    """Some steps of one case, in this process."""
    launched = current_launch()
    if launched.size > 1:
        torch.set_num_threads(max((os.cpu_count() or 1) // launched.size, 1))
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    settings, spec, loss = parts(case)
    kind = ShardedHead if launched.size > 1 else ChunkedHead
    head = kind(loss, case["classes"], sample_rate=spec["sample_rate"])  # type: ignore[arg-type]
    if settings.optimizer.centers_in_backward:
        head.update_in_backward(settings.optimizer.momentum, settings.optimizer.weight_decay)
        head.learning_rate = 0.1
    # Centres that are updated in the backward pass leave nothing to an optimiser.
    optimizer = build_optimizer(settings.optimizer, [head]) if head.weight.requires_grad else None
    seconds = []
    for _ in range(steps + 1):
        own = case["batch"] // launched.size
        embeddings = (10 * torch.randn(own, 512)).requires_grad_()
        labels = torch.randint(case["classes"], (own,))
        started = time.perf_counter()
        head(embeddings, labels).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds[1:]),
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    """Measure every case beside its plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--case", help="only this one, as JSON")
    given = parser.parse_args()
    if given.case:
        result = measure(CASES[given.case], given.steps)
        if current_launch().rank == 0:
            print(json.dumps(result))
        return
    machine = measure_machine()
    rows = []
    for name in track(given.cases, "measuring"):
        case = CASES[name]
        ranks = case.get("ranks", 1)
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*start, __file__, "--steps", str(given.steps), "--case", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        settings, head, loss = parts(case)
        # Ranks share this machine's cores and its memory's bandwidth.
        share = Machine(
            flops=machine.flops / ranks, memory_bandwidth=machine.memory_bandwidth / ranks
        )
        planned = plan_training(
            settings, head, loss, num_classes=case["classes"], machine=share, ranks=ranks  # type: ignore[arg-type]
        )  # fmt: skip
        rows.append(
            {
                "case": name,
                "batch": case["batch"],
                "planned_gigabytes": round(planned.bytes / 1e9, 2),
                "measured_gigabytes": round(result["bytes"] / 1e9, 2),
                "memory_ratio": round(planned.bytes / result["bytes"], 3),
                "planned_seconds": round(planned.step_seconds, 2),
                "measured_seconds": round(result["seconds"], 2),
                "arithmetic_seconds": round(planned.floor, 2),
            }
        )
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*(heading.replace("_", " ") for heading in rows[0]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
