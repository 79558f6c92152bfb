"""Removes the prefixes that wrappers add to the names of a network's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# CVLface's "net." is kept: only this prefix distinguishes CVLface's RGB networks from AdaFace's BGR
# networks.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")


def strip_prefixes(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...] = PREFIXES
) -> dict[str, Tensor]:
    """Remove all wrapper prefixes from a state's keys.

    Raises:
        ValueError: two keys become equal.

    >>> import torch
    >>> list(strip_prefixes({"module.backbone.conv1.weight": torch.zeros(1)}))
    ['conv1.weight']
    """
    origin: dict[str, str] = {}
    for key in state:
        bare = key
        while prefix := next((each for each in prefixes if bare.startswith(each)), ""):
            bare = bare.removeprefix(prefix)
        if bare in origin:
            raise ValueError(
                f"{origin[bare]!r} and {key!r} both mean {bare!r}; keep one of the two networks"
            )
        origin[bare] = key
    return {bare: state[key] for bare, key in origin.items()}
