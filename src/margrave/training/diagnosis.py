"""Finds where the loss or its gradient became infinite or NaN, and suggests a remedy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from margrave.distributed import all_reduce_max, full_tensor, gather_objects
from margrave.files import listed
from margrave.training.checkpoint import latest_checkpoint
from margrave.training.gradients import coalesced_gradient
from margrave.training.state import TrainingState

MAX_LISTED = 5
"""Maximum number of images or parameters that a message names."""


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or NaN; training stopped before updating the weights."""


@torch.no_grad()
def diagnose_loss(
    training: TrainingState, embeddings: Tensor, labels: Tensor, indices: Tensor, folder: Path
) -> NonFiniteLossError:
    """Build the error for a loss that is not finite, naming the cause and the affected samples.

    The embeddings are checked first, then the terms of the loss.

    Args:
        training: the training state with which the loss was computed.
        embeddings: (B, D) the backbone's output.
        labels: (B,) classes.
        indices: (B,) image indices in the training set.
        folder: the run's folder; the message names its last checkpoint.
    """
    bad = (~torch.isfinite(embeddings)).any(dim=1)
    # All ranks must take the same branch, or collectives would hang.
    if all_reduce_max(bad.any().int(), training.world):
        cause = f"{int(bad.sum())} of {len(bad)} embeddings from the backbone are not finite"
        remedy = (
            "the backbone's weights or activations have overflowed: lower "
            "training.optimizer.learning_rate, raise training.schedule.warmup_epochs, set "
            "training.clip_norm to 5, or set training.precision to float32"
        )
    elif training.settings.optimizer.centers_in_backward:
        # The backward pass has already updated the class centers, so recomputed terms would differ.
        cause = "the loss is not finite"
        remedy = "lower training.optimizer.learning_rate"
    else:
        training.head.eval()
        terms = training.head.terms(training.head.prepare(embeddings, labels.to(embeddings.device)))
        cause = "the loss is finite for each sample but not over the batch"
        for name, term in terms.items():
            bad = ~torch.isfinite(term)
            if bad.any():
                cause = f"the {name} is not finite for {int(bad.sum())} of {len(bad)} samples"
                break
        remedy = (
            "the class centers have overflowed: lower training.optimizer.learning_rate or set "
            "training.clip_norm to 5; if the loss is your own, check it at cosines of ±1"
        )
    bad_indices = indices[bad.cpu()].tolist()
    names = listed(map(training.images.images.name, bad_indices), MAX_LISTED)
    cause += f"\n  samples: {names or 'none in particular'}"
    # If any rank has bad samples, all ranks report the diagnosis of the first such rank.
    diagnoses = gather_objects((not bad_indices, cause, remedy), training.world)
    _, cause, remedy = min(diagnoses, key=lambda diagnosis: diagnosis[0])
    return _error(training, cause, remedy, folder)


def diagnose_gradient(training: TrainingState, folder: Path) -> NonFiniteLossError:
    """Build the error for a gradient that is not finite although the loss is finite."""
    modules = {"backbone": training.network, "head": training.head}
    bad_names = [
        f"{module_name}.{name}"
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
        if (values := coalesced_gradient(parameter)) is not None
        and not torch.isfinite(full_tensor(values)).all()
    ]
    names_by_rank = gather_objects(bad_names, training.world)
    bad_names = list(dict.fromkeys(name for names in names_by_rank for name in names))
    cause = f"the loss is finite but its gradient is not\n  in: {listed(bad_names, MAX_LISTED)}"
    remedy = "lower training.optimizer.learning_rate or set training.clip_norm to 5"
    return _error(training, cause, remedy, folder)


def _error(training: TrainingState, cause: str, remedy: str, folder: Path) -> NonFiniteLossError:
    checkpoint = latest_checkpoint(folder)
    last_checkpoint = (
        f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    )
    step = training.position.step
    return NonFiniteLossError(
        f"training stopped at step {step}: {cause}\n  remedy: {remedy}\n  {last_checkpoint}"
    )
