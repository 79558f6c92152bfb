"""An evaluation shared out over real processes gives what one process gives."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.distributed import World, current_world
from margrave.evaluation import AllToAllResult, evaluate_all_to_all
from margrave.search import score_blocks


def _evaluate(world: World | None = None) -> AllToAllResult:
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(25), 4)
    faces = generator.standard_normal((25, 12))[people] + generator.standard_normal((100, 12))
    strangers = generator.standard_normal((77, 12))
    return evaluate_all_to_all(
        faces, people, strangers, far_targets=[0.1, 0.01], resamples=20, world=world
    )


def _on_a_rank(rank: int, rows: int, columns: int) -> dict:
    score_blocks.ROWS_PER_BLOCK, score_blocks.COLUMNS_PER_BLOCK = rows, columns
    return asdict(_evaluate(current_world()))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_with_one_process(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 blocks of columns for two ranks, and more for three: uneven either way.
    monkeypatch.setattr(score_blocks, "ROWS_PER_BLOCK", 32)
    monkeypatch.setattr(score_blocks, "COLUMNS_PER_BLOCK", 23)
    alone = asdict(_evaluate())
    assert on_ranks(size, _on_a_rank, 32, 23) == [alone] * size
