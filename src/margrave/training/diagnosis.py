"""Why a loss is no longer a number, told so that somebody can act on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

SHOWN = 5


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or NaN; training stopped before the weights suffered."""


def _count_bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())


def diagnose(
    *,
    step: int,
    images: Tensor,
    embeddings: Tensor,
    losses: Tensor,
    names: list[str],
    checkpoint: Path | None,
) -> NonFiniteLossError:
    """Find the first stage that is not finite, and the samples it concerns.

    Args:
        step: the optimiser step under way.
        images: (B, 3, S, S) the backbone's input.
        embeddings: (B, D) its output.
        losses: (B,) the head's per-sample losses.
        names: where each image comes from.
        checkpoint: the last good one.
    """
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad_images := _count_bad(images):
        cause = f"{bad_images} of {len(images)} images hold NaN or infinite pixels"
        remedy = "look at the files below"
    elif bad_embeddings := _count_bad(embeddings):
        cause = f"the backbone gave {bad_embeddings} of {len(embeddings)} embeddings that are not"
        remedy = (
            "its weights or activations have overflowed: lower training.optimizer.learning_rate, "
            "lengthen schedule.warmup_epochs, set training.clip_norm (5), or use precision float32"
        )
    elif bad:
        cause = f"the head's loss is not finite for {len(bad)} of {len(losses)} samples"
        remedy = (
            "the class centres have overflowed: lower training.optimizer.learning_rate or set "
            "training.clip_norm (5); with a loss of your own, check its slope at cosines of ±1"
        )
    else:
        cause = "every loss is finite but the gradient is not"
        remedy = "lower training.optimizer.learning_rate or set training.clip_norm (5)"
    samples = ", ".join(names[index] for index in bad[:SHOWN])
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    last = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"
    return NonFiniteLossError(
        f"training stopped at step {step}: {cause}\n"
        f"  samples: {samples + more if bad else 'none in particular'}\n"
        f"  remedy: {remedy}\n"
        f"  {last}"
    )
