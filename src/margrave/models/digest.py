"""A SHA-256 digest that identifies weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and float32 values of the tensors, as a hexadecimal string.

    >>> import torch
    >>> weights_digest({"a": torch.ones(2).half()}) == weights_digest({"a": torch.ones(2)})
    True
    """
    sha256 = hashlib.sha256()
    for key, value in sorted(state.items()):
        sha256.update(key.encode())
        sha256.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).data)
    return sha256.hexdigest()
