"""Reads the tensors in other projects' files."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from margrave.models.contract import Checkpoint
from margrave.models.inert_content import Ignored, read_content
from margrave.models.prefixes import strip_prefixes
from margrave.models.weight_choice import choose_weights, direct_tensors


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """Read the named tensors of a ``torch.save`` or safetensors file to the CPU.

    The format is detected from the file's content, not from its name.

    The weights may be under any key, at most two levels deep. The prefixes ``module.``, ``model.``,
    ``backbone.`` and ``_orig_mod.`` are removed from the tensors' names. If the file contains a
    single tensor without a name, it is named ``weight``. Counters of profilers and everything that
    is not a tensor are left out.

    If ``key`` is None, moving averages (EMA) are preferred to the plain weights, and the tensors of
    a head saved under ``state_dict_softmax_fc`` are added with the prefix ``head.``.

    Args:
        path: the file.
        key: the key of the weights in the file, such as ``generator.ema``, or the prefix of the
            tensors' names. None chooses the weights; this fails if the file contains several
            networks.

    Raises:
        ValueError: the file does not exist, is damaged, or has no tensors or several networks; or
            loading it would run code. That code is not run, and the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    content = read_content(path)
    if isinstance(content, Tensor):
        return Checkpoint({"weight": content}, raw_keys=["weight"])
    if not isinstance(content, dict):
        kind = "pickled object" if isinstance(content, Ignored) else type(content).__name__
        raise ValueError(f"{path}: contains a {kind}, not a state dict")
    tensors, notes = choose_weights(content, path, key)
    # Not content.get: a pickle can hide this method behind an attribute named get.
    head = dict.get(content, "state_dict_softmax_fc")
    if isinstance(head, dict) and key is None:
        tensors |= {f"head.{name}": value for name, value in direct_tensors(head).items()}
    top_keys = {name for name in dict.keys(content) if isinstance(name, str)}
    return Checkpoint(
        strip_prefixes(tensors), raw_keys=tensors, other_keys=top_keys - set(tensors), notes=notes
    )
