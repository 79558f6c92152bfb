"""Tensors out of other people's files, without running anything those files contain."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margrave.checkpoints.contract import Checkpoint
from margrave.files import Budget, check_old_torch_file, check_torch_pickle, is_safetensors

# Where training programs put the weights inside what they save.
WRAPPERS = (
    "state_dict",
    "net_state_dict",
    "model_state_dict",
    "state_dict_backbone",
    "model",
    "backbone",
    "net",
    "network",
)
# CVLface's "net." is kept: it alone tells its RGB networks from AdaFace's BGR ones.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")


# Exponential moving averages of the weights, by any part of their name.
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)([._]|$)", re.IGNORECASE)
# Optimisers, schedules and heads that trainers keep beside the network.
NO_NETWORK = re.compile(r"optim|sched|scaler|head|softmax_fc|criterion|(^|[._])loss", re.IGNORECASE)
# What profilers (thop) and torch's AveragedModel count, which no network has.
COUNTERS = ("total_ops", "total_params", "n_averaged")
DEEPEST = 2
SHOWN = 8
ARCHIVE = b"PK\3\4"
# Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
LARGE_END = struct.Struct("<4sQ2H2I4Q")


class Ignored:
    """Stands for anything in a file that is not a tensor and is of no interest here."""

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_settings: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class IgnoredMapping:
    """Makes plain mappings instead of whatever class a file names; many are dicts of settings."""

    def __new__(cls, *_arguments: Any, **_settings: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()


# Settings, scores and callbacks that trainers leave next to the weights. They are never built:
# each name is read as Ignored.
HARMLESS = tuple(
    f"{module}.{name}"
    for modules, names in {
        ("argparse",): ("Namespace",),
        # Where Python keeps them changes from release to release.
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
HARMLESS_MAPPINGS = ("copyreg._reconstructor", "copy_reg._reconstructor", "collections.defaultdict")
MOST_NAMES = 256


def _is_inert(name: str) -> bool:
    """Whether a name may be read as Ignored, which neither imports nor calls what it names.

    Names of the standard library are refused: they are how a file asks for something to be run.
    torch's functions are too, some of which make tensors that would silently be missing.
    """
    module, _, attribute = name.rpartition(".")
    root = module.partition(".")[0]
    if root in ("torch", "numpy"):
        return attribute[:1].isupper()
    return bool(root) and root != "__builtin__" and root not in sys.stdlib_module_names


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """The tensors of a file of ``torch.save`` or safetensors by name, on the CPU.

    Which of the two it is shows in its content, whatever it is called.

    Weights are found under whatever key holds them, two deep at most, and the prefixes
    ``module.``, ``model.``, ``backbone.`` and ``_orig_mod.`` are taken off their names. Moving
    averages (EMA) are preferred to the weights they average. A head saved beside a backbone
    (``state_dict_softmax_fc``) appears under ``head.``; a file that is one bare tensor appears as
    ``weight``. What is no tensor is left out, as are profilers' counters.

    Args:
        path: the file.
        key: where in the file the weights are, such as ``generator.ema``; or what their names
            begin with. Needed where several networks are in the file.

    Raises:
        ValueError: no such file, a damaged one, one without tensors or with several networks, or
            one that would have to run code to be read (then nothing of it was run, and what it
            asked for is named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    content = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    if isinstance(content, Tensor):
        return Checkpoint({"weight": content}, ["weight"])
    if not isinstance(content, dict):
        kind = "whole object" if isinstance(content, Ignored) else type(content).__name__
        raise ValueError(f"{path}: holds a {kind}, not a state dict")
    tensors, notes = _tensors_of(content, path, key)
    head = dict.get(content, "state_dict_softmax_fc")
    if isinstance(head, dict) and key is None:
        tensors |= {f"head.{name}": value for name, value in _direct_tensors(head).items()}
    beside = [name for name in dict.keys(content) if isinstance(name, str)]
    return Checkpoint(strip_prefixes(tensors), tensors, set(beside) - set(tensors), notes)


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
    # Sizes that torch cannot hold fail in other ways.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged or no safetensors file ({_first_line(error)})"
        ) from error


def _read_pickle(path: Path) -> Any:
    budget = Budget(path.stat().st_size, str(path))
    _check_archive(path)
    content = _load(path)
    _check_tensors(content, budget)
    return content


def _load(path: Path) -> Any:
    stand_ins: dict[str, Any] = dict.fromkeys(HARMLESS, Ignored)
    stand_ins |= dict.fromkeys(HARMLESS_MAPPINGS, IgnoredMapping)
    unknown: dict[str, Any] = {}
    # A class that is a dict has entries set, which only a mapping takes; other states of objects
    # only Ignored takes. No name shows which.
    kind: Any = IgnoredMapping
    while True:
        allowed: list[Any] = [(stand_in, name) for name, stand_in in (stand_ins | unknown).items()]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        # A damaged pickle can fail with nearly anything, from EOFError to struct.error.
        except Exception as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            name = asked[1].rstrip(".") if asked and _is_unpickling(error) else None
            if name is None and unknown and kind is IgnoredMapping:
                kind = Ignored
                unknown = dict.fromkeys(unknown, kind)
                continue
            if name is None:
                raise ValueError(
                    f"{path}: damaged or no PyTorch file ({_first_line(error)})"
                ) from error
            if name in unknown or not _is_inert(name) or len(unknown) >= MOST_NAMES:
                raise ValueError(
                    f"{path}: refused, it asks for {name!r} to be run; nothing was "
                    "executed. In the environment that wrote it, save only the state dict, "
                    "torch.save(model.state_dict(), …), and read that"
                ) from error
            unknown |= {each: kind for each in (name, *_other_names(path)) if _is_inert(each)}


def _is_unpickling(error: Exception) -> bool:
    return isinstance(error, pickle.UnpicklingError)


def _other_names(path: Path) -> list[str]:
    """What else a file names, so that it need not be read once for each name."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)[:MOST_NAMES]
    # Files of before PyTorch 1.6 cannot be asked, and damaged ones fail with nearly anything.
    except Exception:
        return []


def _check_archive(path: Path) -> None:
    """Refuse a file of PyTorch's that unpacks to more, or makes more, than it may ask for."""
    budget = Budget(path.stat().st_size, str(path))
    try:
        with open(path, "rb") as file:
            # As torch tells archives from files of before PyTorch 1.6.
            if file.read(len(ARCHIVE)) != ARCHIVE:
                file.seek(0)
                check_old_torch_file(file, budget)
                return
            _check_ending(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            sizes = [part.file_size for part in archive.infolist()]
            parts = {name.partition("/")[2] for name in archive.namelist()}
    # A damaged directory can fail with nearly anything.
    except Exception as error:
        if budget.left < 0:
            raise
        raise ValueError(f"{path}: damaged or no PyTorch file ({_first_line(error)})") from error
    if "constants.pkl" in parts:
        raise ValueError(
            f"{path}: a TorchScript archive (torch.jit.save), which is a program and not run here; "
            "save its weights and read those: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if any(name.startswith("models/") and name.endswith(".json") for name in parts):
        raise ValueError(
            f"{path}: a program of torch.export, not run here; save its weights and read those: "
            f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pth')"
        )
    # What is stored as it is takes no more than the file; overlapping parts and deflated ones do.
    budget.take(sum(sizes))
    budget = Budget(path.stat().st_size, str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                # torch does not tell capitals from small letters here.
                if part.filename.lower().endswith("data.pkl"):
                    check_torch_pickle(io.BytesIO(archive.read(part)), budget)
    except Exception as error:
        if budget.left < 0:
            raise
        raise ValueError(f"{path}: damaged or no PyTorch file ({_first_line(error)})") from error


def _check_ending(file: BinaryIO, size: int) -> None:
    """Refuse an archive of which Python and torch could find two different directories.

    Python takes whatever lies before the end for the directory, torch what the end points at; they
    look for the end itself in different ways too.
    """
    file.seek(max(0, size - END.size - LOCATOR.size - LARGE_END.size))
    tail = file.read()
    *_, count, length, start, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    if not tail[-END.size :].startswith(b"PK\5\6") or comment:
        raise ValueError("the archive does not end with its directory")
    locator = tail[-END.size - LOCATOR.size : -END.size]
    if locator.startswith(b"PK\6\7"):
        end -= LOCATOR.size + LARGE_END.size
        if LOCATOR.unpack(locator)[2] != end or not tail.startswith(b"PK\6\6"):
            raise ValueError("the archive's directory is not where its end says")
        *_, count, length, start = LARGE_END.unpack(tail[: LARGE_END.size])
    if start + length != end:
        raise ValueError("the archive's directory is not where its end says")
    file.seek(start)
    directory = file.read(length)
    if directory.count(b"PK\1\2") < count:
        raise ValueError("the archive's directory lacks parts")


def _check_tensors(content: Any, budget: Budget) -> None:
    """Refuse tensors that repeat a few numbers into more than the file may ask for.

    A storage is charged once, under however many names its numbers are; a tensor that repeats them
    is charged in full, because whoever copies it writes them all out.
    """
    pending, seen, storages = [content], set(), set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            size = value.numel() * value.itemsize
            # Sparse tensors have no storage of their own, meta tensors one without a place.
            plain = value.layout == torch.strided and not value.is_meta
            storage = value.untyped_storage() if plain else None
            if storage is None or size > storage.nbytes():
                budget.take(size)
            elif storage.data_ptr() not in storages:
                storages.add(storage.data_ptr())
                budget.take(storage.nbytes())
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            # By dict's own method: a file can put another attribute of that name before it.
            pending += dict.values(value) if isinstance(value, dict) else value


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error) else ""
    # torch goes on to advise loading without its protection.
    return f"{type(error).__name__}: {line.partition('. ')[0]}"


def _direct_tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    # Entries by dict's own method: a file can put another attribute of that name before it.
    return {
        key: value.detach()
        for key, value in dict.items(mapping)  # type: ignore[arg-type]
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _states(
    content: dict[Any, Any], place: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every state dict in a file, by its dotted place; one that lies in several, by the first."""
    seen = {id(content)} if seen is None else seen
    tensors = _direct_tensors(content)
    # A single number is a temperature or a step, not a network.
    if any(value.dim() for value in tensors.values()):
        yield place, tensors
    if depth == DEEPEST:
        return
    for key, value in dict.items(content):
        if isinstance(key, str) and isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            yield from _states(value, f"{place}.{key}" if place else key, depth + 1, seen)


def _tensors_of(
    content: dict[Any, Any], path: Path, key: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file's content, and what was chosen or left out, in words."""
    states = dict(_states(content))
    notes = []
    if counters := [name for state in states.values() for name in state if _is_counter(name)]:
        notes.append(f"{len(counters)} counters left out: {_listed(counters)}")
        if "n_averaged" in counters:
            notes.append("moving averages (torch's AveragedModel), not the weights they average")
    states = {
        place: {name: value for name, value in state.items() if not _is_counter(name)}
        for place, state in states.items()
    }
    if key is not None:
        return _under_key(states, path, key), notes
    if not states:
        keys = ", ".join(map(str, list(dict.keys(content))[:8])) or "nothing"
        whole = "_modules" in getattr(content, "__dict__", {})
        named = "; it is a whole network: save and read its state_dict() instead" if whole else ""
        raise ValueError(f"{path}: holds no tensors; found {keys}{named}")
    for place, state in list(states.items()):
        states |= {
            f"{place}.{prefix}".lstrip("."): part
            for prefix, part in _averages_within(state).items()
        }
    networks = {place: state for place, state in states.items() if not NO_NETWORK.search(place)}
    networks = networks or states
    averaged = {place: state for place, state in networks.items() if AVERAGED.search(place)}
    plain = {place: state for place, state in networks.items() if place not in averaged}
    if not averaged:
        return dict(plain[_only(plain, path)]), notes
    place = _only(averaged, path)
    average = strip_prefixes(averaged[place])
    notes.append(f"moving averages (EMA) are taken, from {place}; --key chooses others")
    for whole in plain.values():
        others = strip_prefixes(
            {
                name: value
                for name, value in whole.items()
                if not AVERAGED.search(name.partition(".")[0])
            }
        )
        # Averages are often of parameters alone, without the batch norms' statistics.
        if average.keys() < others.keys():
            missing = [name for name in others if name not in average]
            notes.append(f"not averaged, from the plain weights: {_listed(missing)}")
            return {**others, **average}, notes
    return dict(averaged[place]), notes


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _averages_within(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Averages that lie in the same state dict as the weights, under a prefix of their own."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, _, rest = name.partition(".")
        if rest and AVERAGED.search(prefix):
            parts.setdefault(prefix, {})[rest] = value
    return parts


def _under_key(states: Mapping[str, dict[str, Tensor]], path: Path, key: str) -> dict[str, Tensor]:
    if key in states:
        return dict(states[key])
    for state in states.values():
        inner = {
            name.removeprefix(f"{key}."): value
            for name, value in state.items()
            if name.startswith(f"{key}.")
        }
        if inner:
            return inner
    raise ValueError(f"{path}: no weights under {key!r}; {_choices(states)}")


def _only(states: Mapping[str, dict[str, Tensor]], path: Path) -> str:
    """The place of the only network; usual names and the file's own level come first."""
    if len(states) == 1:
        return next(iter(states))
    usual = [place for place in states if place.rpartition(".")[2] in WRAPPERS]
    largest = max(len(state) for state in states.values())
    # A mean or a table of a few tensors beside a network is none itself.
    networks = [place for place in usual or states if 4 * len(states[place]) >= largest]
    first, *others = networks
    if not all(_same(states[first], states[other]) for other in others):
        raise ValueError(
            f"{path}: holds several networks; choose one with --key (key=): {_choices(states)}"
        )
    return first


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two places hold one network, as some trainers save it twice."""
    one, other = strip_prefixes(first), strip_prefixes(second)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _choices(states: Mapping[str, dict[str, Tensor]]) -> str:
    listed = [f"{place or '(top)'} ({len(state)} tensors)" for place, state in states.items()]
    return f"choices: {_listed(listed)}"


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
