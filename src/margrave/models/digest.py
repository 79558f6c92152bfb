"""A digest that identifies weights, over the tensors and their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors, converted to float32, and of their names.

    >>> import torch
    >>> weights_digest({"a": torch.ones(2).half()}) == weights_digest({"a": torch.ones(2)})
    True
    """
    total = hashlib.sha256()
    for key, value in sorted(state.items()):
        total.update(key.encode())
        total.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).data)
    return total.hexdigest()
