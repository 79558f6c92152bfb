"""Why a loss is no longer a number, told so that somebody can act on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from margrave.training.gradients import gradient_values
from margrave.training.setup import Training

SHOWN = 5


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or NaN; training stopped before the weights suffered."""


@torch.no_grad()
def diagnose_loss(
    training: Training, embeddings: Tensor, labels: Tensor, indices: Tensor, checkpoint: Path
) -> NonFiniteLossError:
    """Find the first stage that is not finite: embeddings, or a term of the loss; and the samples.

    Args:
        training: the parts, as they stood when the loss was computed.
        embeddings: (B, D) the backbone's output.
        labels: (B,).
        indices: (B,) the images' numbers.
        checkpoint: where the last good one lies, if there is one.
    """
    bad = (~torch.isfinite(embeddings)).any(dim=1)
    if bad.any():
        cause = f"the backbone gave {int(bad.sum())} of {len(bad)} embeddings that are not finite"
        remedy = (
            "its weights or activations have overflowed: lower training.optimizer.learning_rate, "
            "lengthen schedule.warmup_epochs, set training.clip_norm (5), or use precision float32"
        )
    else:
        training.head.eval()
        terms = training.head.terms(training.head.prepare(embeddings, labels.to(embeddings.device)))
        cause = "the loss is not finite over the batch, though it is for each sample"
        for name, term in terms.items():
            bad = ~torch.isfinite(term)
            if bad.any():
                cause = f"the {name} is not finite for {int(bad.sum())} of {len(bad)} samples"
                break
        remedy = (
            "the class centres have overflowed: lower training.optimizer.learning_rate or set "
            "training.clip_norm (5); with a loss of your own, check it at cosines of ±1"
        )
    numbers = indices[bad.cpu()].tolist()
    names = ", ".join(training.images.images.name(number) for number in numbers[:SHOWN])
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return _error(
        training, f"{cause}\n  samples: {names or 'none in particular'}{more}", remedy, checkpoint
    )


def diagnose_gradient(training: Training, checkpoint: Path) -> NonFiniteLossError:
    """Name the parameters whose gradient is not finite though the loss is."""
    modules = {"backbone": training.network, "head": training.head}
    bad = [
        f"{part}.{name}"
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if (values := gradient_values(parameter)) is not None and not torch.isfinite(values).all()
    ]
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    cause = f"the loss is finite but its gradient is not\n  in: {', '.join(bad[:SHOWN])}{more}"
    remedy = "lower training.optimizer.learning_rate or set training.clip_norm (5)"
    return _error(training, cause, remedy, checkpoint)


def _error(training: Training, cause: str, remedy: str, checkpoint: Path) -> NonFiniteLossError:
    exists = checkpoint.exists()
    last = f"the last good checkpoint is {checkpoint}" if exists else "no checkpoint yet"
    step = training.position.step
    return NonFiniteLossError(
        f"training stopped at step {step}: {cause}\n  remedy: {remedy}\n  {last}"
    )
