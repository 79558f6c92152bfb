"""Tensors out of other people's files, without running anything those files contain."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margrave.checkpoints.contract import Checkpoint
from margrave.files import Budget

# Where training programs put the weights inside what they save.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "state_dict_backbone",
    "model",
    "backbone",
    "net",
    "HEAD",
)
# CVLface's "net." is kept: it alone tells its RGB networks from AdaFace's BGR ones.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")


class Ignored:
    """Stands for anything in a file that is not a tensor and is of no interest here."""

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_settings: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


# Settings, scores and callbacks that trainers leave next to the weights. They are never built:
# each name is read as Ignored.
HARMLESS = tuple(
    f"{module}.{name}"
    for modules, names in {
        ("argparse",): ("Namespace",),
        ("pathlib",): ("Path", "PosixPath", "WindowsPath"),
        ("numpy",): ("dtype", "ndarray"),
        ("numpy.core.multiarray", "numpy._core.multiarray"): ("scalar", "_reconstruct"),
        ("pytorch_lightning.callbacks.model_checkpoint",): ("ModelCheckpoint",),
        ("pytorch_lightning.utilities.parsing",): ("AttributeDict",),
    }.items()
    for module in modules
    for name in names
)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file by name, on the CPU.

    Weights are found inside the usual wrappers (``state_dict``, ``model``, …) and the prefixes
    ``module.``, ``model.``, ``backbone.`` and ``_orig_mod.`` are taken off their names. A head
    saved beside a backbone (``state_dict_softmax_fc``) appears under ``head.``; a file that is one
    bare tensor appears as ``weight``. What is no tensor is left out.

    Raises:
        ValueError: no such file, a damaged one, one without tensors, or one that would have to run
            code to be read (then nothing of it was run, and what it asked for is named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors = _tensors_of(content, path)
    beside = (
        [key for key in content if isinstance(key, str)] if isinstance(content, Mapping) else []
    )
    return Checkpoint(strip_prefixes(tensors), tensors, set(beside) - set(tensors))


def strip_prefixes(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...] = PREFIXES
) -> dict[str, Tensor]:
    """The state with wrappers' prefixes taken off its keys, however many there are.

    Raises:
        ValueError: two keys become one.

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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged or no safetensors file ({error})") from error


def _read_pickle(path: Path) -> Any:
    budget = Budget(path.stat().st_size, str(path))
    _check_archive(path)
    stand_ins: list[Any] = [(Ignored, name) for name in HARMLESS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: refused, it asks for {wanted[1].rstrip('.')!r} to be run; nothing was "
                "executed. In the environment that wrote it, save only the state dict, "
                "torch.save(model.state_dict(), …), and read that"
            ) from error
        raise ValueError(f"{path}: damaged or no PyTorch file ({_first_line(error)})") from error
    # A damaged pickle can fail with nearly anything, from EOFError to struct.error.
    except Exception as error:
        raise ValueError(f"{path}: damaged or no PyTorch file ({_first_line(error)})") from error
    _check_tensors(content, budget)
    return content


def _check_archive(path: Path) -> None:
    """Refuse a file of PyTorch's whose parts unpack to more than it may ask for."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [part.file_size for part in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: damaged or no PyTorch file ({_first_line(error)})") from error
    # What is stored as it is takes no more than the file; overlapping parts and deflated ones do.
    Budget(path.stat().st_size, str(path)).take(sum(sizes))


def _check_tensors(content: Any, budget: Budget) -> None:
    """Refuse tensors that repeat a few numbers into more than the file may ask for."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            budget.take(value.numel() * value.itemsize)
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, Mapping) else value


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error) else ""
    # torch goes on to advise loading without its protection.
    return f"{type(error).__name__}: {line.partition('. ')[0]}"


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Tensor):
        return {"weight": content}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for name in WRAPPERS:
        if isinstance(inner := content.get(name), Mapping):
            tensors = _tensors_of(inner, path)
            head = content.get("state_dict_softmax_fc")
            if isinstance(head, Mapping):
                tensors |= {f"head.{key}": value for key, value in _tensors_of(head, path).items()}
            return tensors
    tensors = {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ValueError(f"{path}: holds no tensors; found {keys}")
    return tensors
