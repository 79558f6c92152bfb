"""Metrics files: what is kept of them is checked before a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from margrave.training import read_metrics
from margrave.training.metrics import MetricsLog


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    values = {"epoch": np.float64(0.5), "loss": np.float32(2.5), "norm": np.float32("nan")}
    log.write("training", 1, values | {"hard": np.int64(3)})
    log.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["loss"] == 2.5 and line["norm"] is None and line["hard"] == 3


GOOD = '{"kind": "training", "step": 1, "epoch": 0.5, "loss": null}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "training", "step": 1, "loss": 2.0}', "no epoch"),
        ('{"kind": "training", "step": 1, "epoch": [1], "loss": 2.0}', r"epoch is '\[1\]'"),
        ('{"kind": "evaluation", "step": 1, "epoch": 1, "set": {}, "accuracy": 1}', "set is '{}'"),
        ('{"step": 1}', "no kind"),
        ("[]", "no kind"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(ValueError, match=f"metrics.jsonl:2 is damaged: .*{message}"):
        read_metrics(path)
    # Not at the end of training, when curves are drawn, but before it goes on.
    with pytest.raises(ValueError, match="jsonl:2 is damaged"):
        MetricsLog(tmp_path, length=path.stat().st_size)
    MetricsLog(tmp_path, length=len(GOOD)).close()
    assert len(read_metrics(path)) == 1
