"""Removes the prefixes that wrappers add to the names of a network's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# CVLface's "net." is not in this list, because only this prefix distinguishes CVLface's RGB
# networks from AdaFace's BGR networks.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")


def strip_prefixes(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...] = PREFIXES
) -> dict[str, Tensor]:
    """Remove all wrapper prefixes from a state dict's keys, even if a key has several.

    Raises:
        ValueError: two keys are equal without their prefixes.

    >>> import torch
    >>> list(strip_prefixes({"module.backbone.conv1.weight": torch.zeros(1)}))
    ['conv1.weight']
    """
    full_key_of: dict[str, str] = {}
    for key in state:
        bare = key
        while prefix := next((wrapper for wrapper in prefixes if bare.startswith(wrapper)), ""):
            bare = bare.removeprefix(prefix)
        if bare in full_key_of:
            raise ValueError(
                f"{full_key_of[bare]!r} and {key!r} both become {bare!r}, so they belong to two "
                "networks; keep only one of these"
            )
        full_key_of[bare] = key
    return {bare: state[key] for bare, key in full_key_of.items()}
