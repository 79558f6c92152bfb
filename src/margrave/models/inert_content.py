"""Reads other projects' files without executing anything in them."""

from __future__ import annotations

import pickle
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margrave.files import Budget, check_torch_file, first_sentence, is_safetensors


class Ignored:
    """Placeholder for objects in a file that are not tensors and are not needed."""

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_settings: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class IgnoredMapping:
    """Placeholder for subclasses of dict, such as settings.

    Calling it returns an OrderedDict, because torch.load sets items only in
    dict, OrderedDict and Counter.
    """

    def __new__(cls, *_arguments: Any, **_settings: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()


# Classes and functions that occur in the settings, scores and callbacks that trainers save next to
# the weights. They are never imported or called: Ignored replaces them.
HARMLESS = tuple(
    f"{module}.{name}"
    for modules, names in {
        ("argparse",): ("Namespace",),
        # The module's name depends on the Python version.
        ("pathlib", "pathlib._local"): (
            "Path",
            "PosixPath",
            "WindowsPath",
            "PurePath",
            "PurePosixPath",
            "PureWindowsPath",
        ),
        ("types",): ("SimpleNamespace",),
        ("datetime",): ("datetime", "date", "time", "timedelta", "timezone"),
        ("decimal",): ("Decimal",),
        ("uuid",): ("UUID",),
        ("functools",): ("partial",),
        ("numpy",): ("dtype", "ndarray"),
        ("numpy.core.multiarray", "numpy._core.multiarray"): ("scalar", "_reconstruct"),
    }.items()
    for module in modules
    for name in names
)
# IgnoredMapping replaces these. `_reconstructor` creates objects, also mappings, in old pickles;
# copy_reg is copyreg in Python 2.
HARMLESS_MAPPINGS = ("copyreg._reconstructor", "copy_reg._reconstructor", "collections.defaultdict")
MAX_NAMES = 256
"""Maximum number of unknown classes and functions in a file."""


def _may_be_replaced(name: str) -> bool:
    """Whether a placeholder, which imports and calls nothing, may replace this class or function.

    Names of the standard library may not be replaced, because a file that names them is probably
    malicious; `HARMLESS` and `HARMLESS_MAPPINGS` are replaced without this test.
    Functions of torch and NumPy may not be replaced either: some create tensors, and with a
    placeholder such a tensor would silently be lost.
    """
    module, _, attribute = name.rpartition(".")
    root = module.partition(".")[0]
    # A name with a capital letter is taken for a class, any other for a function.
    if root in ("torch", "numpy"):
        return attribute[:1].isupper()
    # __builtin__ is builtins in Python 2.
    return bool(root) and root != "__builtin__" and root not in sys.stdlib_module_names


def read_content(path: Path) -> Any:
    """Read a file of ``torch.save`` or safetensors; return the object that was saved.

    Mappings, lists, tensors and plain values are kept. Objects of other classes are replaced by an
    `Ignored` or by an OrderedDict (see `IgnoredMapping`).

    Raises:
        ValueError: the file is damaged, or reading it would need too much memory or run code.
    """
    return _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    # If torch cannot allocate a tensor, its error is not a SafetensorError.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged or not a safetensors file ({first_sentence(error)})"
        ) from error


def _read_pickle(path: Path) -> Any:
    budget = Budget(path.stat().st_size, str(path))
    check_torch_file(path)
    content = _load_inert(path)
    check_tensors(content, budget)
    return content


def _load_inert(path: Path) -> Any:
    # Both map a name in the file to the placeholder that replaces it.
    known: dict[str, Any] = dict.fromkeys(HARMLESS, Ignored)
    known |= dict.fromkeys(HARMLESS_MAPPINGS, IgnoredMapping)
    unknown: dict[str, Any] = {}
    # If the file sets items of an object, only a mapping can replace it. Some other objects need
    # Ignored, which accepts any state. A class's name does not show which. Therefore
    # IgnoredMapping replaces all unknown names first and, if that fails, Ignored does.
    placeholder: Any = IgnoredMapping
    while True:
        allowed: list[Any] = [
            (replacement, name) for name, replacement in (known | unknown).items()
        ]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        # A damaged pickle can raise nearly any exception, from EOFError to struct.error.
        except Exception as error:
            match = re.search(r"GLOBAL (\S+)", str(error))
            name = match[1].rstrip(".") if match and _is_unpickling_error(error) else None
            if name is None and unknown and placeholder is IgnoredMapping:
                placeholder = Ignored
                unknown = dict.fromkeys(unknown, placeholder)
                continue
            if name is None:
                raise ValueError(
                    f"{path}: damaged or not a PyTorch file ({first_sentence(error)})"
                ) from error
            if name in unknown or not _may_be_replaced(name) or len(unknown) >= MAX_NAMES:
                raise ValueError(
                    f"{path}: refused, because reading it would run {name!r}; nothing was "
                    "executed. In the environment that wrote it, save only the state dict with "
                    "torch.save(model.state_dict(), …), and read that file"
                ) from error
            names = (name, *_list_unknown_names(path))
            unknown |= {name: placeholder for name in names if _may_be_replaced(name)}


def _is_unpickling_error(error: Exception) -> bool:
    return isinstance(error, pickle.UnpicklingError)


def _list_unknown_names(path: Path) -> list[str]:
    """List all unknown names in a file; torch.load reports only the first of them."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)[:MAX_NAMES]
    # This call fails for files that PyTorch < 1.6 saved; a damaged file can raise nearly any error.
    except Exception:
        return []


def check_tensors(content: Any, budget: Budget) -> None:
    """Charge the memory of all tensors in a file's content to the budget.

    Tensors that share a storage count once. A tensor that is larger than its storage, because it
    repeats numbers (stride 0), counts at its full size: a copy needs that much memory.

    Raises:
        ValueError: the tensors exceed the budget.
    """
    pending, visited, storages = [content], set(), set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            size = value.numel() * value.itemsize
            # Sparse tensors have no storage; the storage of meta tensors has no address.
            has_storage = value.layout == torch.strided and not value.is_meta
            storage = value.untyped_storage() if has_storage else None
            if storage is None or size > storage.nbytes():
                budget.charge(size)
            elif storage.data_ptr() not in storages:
                storages.add(storage.data_ptr())
                budget.charge(storage.nbytes())
        elif isinstance(value, dict | list | tuple) and id(value) not in visited:
            visited.add(id(value))
            # Not value.values(): a pickle can set an attribute of that name.
            pending += dict.values(value) if isinstance(value, dict) else value
