"""Why a loss is no longer a number, told so that somebody can act on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from margrave.distributed import all_reduce_max, gather_objects, whole
from margrave.training.checkpoint import latest_checkpoint
from margrave.training.gradients import gradient_values
from margrave.training.state import Training

SHOWN = 5


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or NaN; training stopped before the weights suffered."""


@torch.no_grad()
def diagnose_loss(
    training: Training, embeddings: Tensor, labels: Tensor, indices: Tensor, folder: Path
) -> NonFiniteLossError:
    """Find the first stage that is not finite: embeddings, or a term of the loss; and the samples.

    Args:
        training: the parts, as they stood when the loss was computed.
        embeddings: (B, D) the backbone's output.
        labels: (B,).
        indices: (B,) the images' numbers.
        folder: of the run, where the last good checkpoint lies, if there is one.
    """
    bad = (~torch.isfinite(embeddings)).any(dim=1)
    # Ranks go one way together, or they would wait for each other.
    if all_reduce_max(bad.any().int(), training.world):
        cause = f"the backbone gave {int(bad.sum())} of {len(bad)} embeddings that are not finite"
        remedy = (
            "its weights or activations have overflowed: lower training.optimizer.learning_rate, "
            "lengthen schedule.warmup_epochs, set training.clip_norm (5), or use precision float32"
        )
    elif training.settings.optimizer.centres_in_backward:
        # Their backward pass has already moved the class centers, so the terms tell no more.
        cause = "the loss is not finite"
        remedy = "lower training.optimizer.learning_rate"
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
    said = f"{cause}\n  samples: {names or 'none in particular'}{more}", remedy
    # What every rank says is what one with a bad sample found, if there is one.
    found = gather_objects((not numbers, *said), training.world)
    _, cause, remedy = min(found, key=lambda finding: finding[0])
    return _error(training, cause, remedy, folder)


def diagnose_gradient(training: Training, folder: Path) -> NonFiniteLossError:
    """Name the parameters whose gradient is not finite though the loss is."""
    modules = {"backbone": training.network, "head": training.head}
    bad = [
        f"{part}.{name}"
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if (values := gradient_values(parameter)) is not None
        and not torch.isfinite(whole(values)).all()
    ]
    everyones = gather_objects(bad, training.world)
    bad = list(dict.fromkeys(name for names in everyones for name in names))
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    cause = f"the loss is finite but its gradient is not\n  in: {', '.join(bad[:SHOWN])}{more}"
    remedy = "lower training.optimizer.learning_rate or set training.clip_norm (5)"
    return _error(training, cause, remedy, folder)


def _error(training: Training, cause: str, remedy: str, folder: Path) -> NonFiniteLossError:
    checkpoint = latest_checkpoint(folder)
    last = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"
    step = training.position.step
    return NonFiniteLossError(
        f"training stopped at step {step}: {cause}\n  remedy: {remedy}\n  {last}"
    )
