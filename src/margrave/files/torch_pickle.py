"""Estimate the cost of PyTorch's weights-only unpickler before it runs.

The weights-only unpickler executes no code from the file, but a few bytes can make it run forever
or exhaust memory: nested tuples as a dict key (exponential hashing), colliding numbers as dict
keys, ``bytearray(n)``, or millions of empty dicts. This module simulates each instruction without
creating objects and charges its cost to a budget.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from margrave.files.budget import Budget
from margrave.files.inert_pickle import ENTRY_BYTES, INSTRUCTION_BYTES, instructions, read_inert

MAX_UNUSUAL_KEYS = 1000
"""Maximum number of dict keys that could be crafted to collide; real files have a few."""
MAX_INT_KEY = 2**31
"""Integer keys of this absolute value or more count as unusual."""
LEGACY_PICKLES = 5
"""Number of pickles that begin a PyTorch < 1.6 file: magic, version, system, content, storages."""
LITERALS = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
SUPPORTED = LITERALS | {
    "PROTO", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE", "MARK", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
}  # fmt: skip
"""Instructions of the weights-only unpickler; it raises an error at any other."""
UNSAFE = ("torch._utils._rebuild_nested_tensor", "torch._utils._rebuild_wrapper_subclass")
"""Functions that create views at arbitrary memory offsets, or tensors without memory."""


class _Object:
    """A list, tuple, dict, set or other object that the unpickler would create.

    Attributes:
        kind: ``list``, ``tuple``, ``dict``, ``set`` or ``object``.
        count: number of entries; for a tuple, 1 plus its entries at every nesting level.
        unusual: number of entries that could be crafted to collide as dict keys.
        items: the entries of a tuple.
    """

    def __init__(self, kind: str, items: tuple[Any, ...] = ()) -> None:
        self.kind, self.items = kind, items
        self.count = sum(_count(item) for item in items) + 1 if kind == "tuple" else 0
        self.unusual = sum(_is_unusual(item) for item in items)


class _QualifiedName(str):
    """The qualified name of a function or class."""


def _count(value: Any) -> int:
    return value.count if isinstance(value, _Object) and value.kind == "tuple" else 1


def _is_unusual(key: Any) -> bool:
    """Whether many different keys like this one could be crafted to have the same hash."""
    if isinstance(key, int):
        return not -MAX_INT_KEY < key < MAX_INT_KEY
    return not isinstance(key, str | bytes | float | None)


def check_legacy_torch_file(file: BinaryIO, budget: Budget) -> None:
    """Check the pickles at the start of a file that PyTorch < 1.6 saved.

    The last pickle lists the storages whose values follow it. torch would leave the tensors of any
    other storage uninitialized.

    Args:
        file: open for reading.
        budget: the memory budget of the file.

    Raises:
        ValueError: a pickle is damaged or exceeds the budget, or the values of a tensor are
            missing.
    """
    storages: set[Any] = set()
    for index in range(LEGACY_PICKLES):
        # torch itself rejects a file that ends before its last pickle.
        if not file.read(1):
            return
        file.seek(-1, io.SEEK_CUR)
        start = file.tell()
        if not check_torch_pickle(file, budget, storages):
            return
        if index == LEGACY_PICKLES - 1:
            length = file.tell() - start
            file.seek(start)
            available = read_inert(file.read(length), budget.name, kind="list of storages")
            if not isinstance(available, list) or storages - {str(key) for key in available}:
                raise ValueError("the values of some tensors are missing")


def check_torch_pickle(file: BinaryIO, budget: Budget, storages: set[Any] | None = None) -> bool:
    """Check the pickle at the file's current position.

    Args:
        file: open for reading.
        budget: the memory budget of the file.
        storages: the set to which the keys of the tensors' storages are added, or None. An added
            None stands for a key that is not text.

    Returns:
        Whether the pickle was checked to its end; False if torch will reject it anyway.

    Raises:
        ValueError: the pickle is damaged or exceeds the budget.
    """
    try:
        return _Simulator(budget, storages).run(file)
    # Damaged bytes can raise nearly any error in pickletools and in the stack operations.
    except Exception as error:
        # The budget's own error names the file already.
        if budget.remaining < 0:
            raise
        raise ValueError(str(error) or type(error).__name__) from error


class _Simulator:
    """Pickle's stack machine, which tracks the sizes of objects instead of creating them."""

    def __init__(self, budget: Budget, storages: set[Any] | None) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget, self.storages, self.unusual_keys = budget, storages, 0

    def run(self, file: BinaryIO) -> bool:
        for name, argument, position in instructions(file):
            self.budget.charge(INSTRUCTION_BYTES)
            if name == "STOP":
                return True
            if name not in SUPPORTED:
                return False
            self.step(name, argument, position)
        raise ValueError("the STOP instruction is missing")

    def step(self, name: str, argument: Any, position: int) -> None:
        stack = self.stack
        if name == "PROTO":
            return
        if name in LITERALS:
            stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"):
            stack.append(_Object(name.removeprefix("EMPTY_").lower()))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            # TUPLE1 to TUPLE3 give the number of items; TUPLE takes all since the mark.
            count = int(name[5:] or 0)
            if count > len(stack):
                raise IndexError("a tuple needs more items than the stack has")
            items = self._pop_since_mark() if name == "TUPLE" else stack[-count:]
            del stack[len(stack) - count :]
            value = _Object("tuple", tuple(items))
            # Hashing or printing visits each nested entry, again for each use of the same tuple.
            self.budget.charge(ENTRY_BYTES * value.count)
            stack.append(value)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._pop_since_mark()
            self._extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._pop_since_mark()
            self._extend(items[::2])
            self._add_unusual_keys(sum(_is_unusual(key) for key in items[::2]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            qualified_name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
            stack.append(_QualifiedName(qualified_name))
            if stack[-1] in UNSAFE:
                raise ValueError(f"byte {position} creates a tensor of an unsupported kind")
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            self._call(function, arguments, position)
            stack.append(_Object("object"))
        elif name == "BUILD":
            self.budget.charge(ENTRY_BYTES * self._size(stack.pop()))
        elif name == "BINPERSID":
            # The persistent id of a storage: ("storage", type, key, device, number of elements).
            items = getattr(stack[-1], "items", ())
            if self.storages is not None and len(items) > 2:
                self.storages.add(str(items[2]) if isinstance(items[2], str) else None)
            stack[-1] = _Object("object")

    def _pop_since_mark(self) -> list[Any]:
        """Pop and return the items after the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _extend(self, items: list[Any]) -> None:
        """Add to the counts of the container on top of the stack; a dict counts only its keys."""
        container = self.stack[-1]
        if not isinstance(container, _Object) or container.kind == "tuple":
            raise ValueError("entries are added to an object that is not a container")
        container.count += len(items)
        container.unusual += sum(_is_unusual(item) for item in items)

    def _add_unusual_keys(self, count: int) -> None:
        self.unusual_keys += count
        if self.unusual_keys > MAX_UNUSUAL_KEYS:
            raise ValueError(
                f"over {MAX_UNUSUAL_KEYS} dict keys are neither text nor small numbers"
            )

    def _call(self, function: Any, arguments: Any, position: int) -> None:
        if not isinstance(arguments, _Object) or arguments.kind != "tuple":
            raise ValueError(f"byte {position} calls a function without a tuple of arguments")
        self.budget.charge(sum(self._size(item) for item in arguments.items) * ENTRY_BYTES)
        # torch itself rejects calls of anything but a named function or class.
        if not isinstance(function, _QualifiedName):
            return
        if function == "builtins.bytearray":
            self.budget.charge(sum(item for item in arguments.items if isinstance(item, int)))
        if function == "_codecs.encode" and arguments.items[1:] != ("latin1",):
            raise ValueError(f"byte {position} encodes text with a codec other than latin1")
        creates_tensor = function.startswith("torch.") and function.endswith(("Tensor", "Storage"))
        if creates_tensor and arguments.items:
            raise ValueError(f"byte {position} creates a tensor whose values the file lacks")
        if function in ("builtins.set", "collections.Counter", "collections.OrderedDict"):
            # In a list of (key, value) pairs, every pair counts as unusual, whatever its key.
            self._add_unusual_keys(sum(getattr(item, "unusual", 0) for item in arguments.items))

    def _size(self, value: Any) -> int:
        """Number of entries or characters that are visited when a value is hashed or copied."""
        if isinstance(value, str | bytes):
            return len(value)
        return value.count if isinstance(value, _Object) else 1
