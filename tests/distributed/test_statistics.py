"""Statistics over uneven gloo ranks equal those of one process with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.heads import DenseHead
from margrave.losses import LOSSES

SHARES = (3, 1, 5)  # samples per rank
STEPS, CLASSES, FEATURES = 4, 6, 8


def steps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = 9 * torch.randn(STEPS, sum(SHARES), FEATURES, generator=generator).double()
    return embeddings, torch.randint(CLASSES, (STEPS, sum(SHARES)), generator=generator)


def train(part: slice, kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = DenseHead(kind, CLASSES, FEATURES).double()
    for embeddings, labels in zip(*steps(), strict=True):
        head(embeddings[part], labels[part])
    head.end_epoch()
    return {name: value for name, value in head.state_dict().items() if name != "weight"}


def train_rank(rank: int, kinds: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    part = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    return {kind: train(part, kind) for kind in kinds}


# Subtests, because ranks are started for all losses at once.
def test_ranks_agree_with_one_process(subtests: pytest.Subtests) -> None:
    from_ranks = on_ranks(len(SHARES), train_rank, list(LOSSES))
    for kind in LOSSES:
        with subtests.test(kind):
            alone = train(slice(None), kind)
            for rank in from_ranks:
                for name, expected in alone.items():
                    torch.testing.assert_close(rank[kind][name], expected, rtol=1e-10, atol=1e-12)
