"""What PyTorch's weights-only reader would do with a pickle, found out before it does it.

That reader runs no code of the file, but a few bytes can have it work for ever or take all memory:
tuples of tuples as a key (hashing them is exponential), numbers that collide in a mapping,
``bytearray(n)``, millions of empty mappings. Here each instruction is followed without making
anything, and what it would cost is charged.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from margrave.files.budget import Budget
from margrave.files.inert_pickle import INSTRUCTION, REFERENCE, instructions, read_inert

MOST_ODD_KEYS = 1000
"""Keys that could be made to collide; settings and optimizers have a few."""
LARGEST_KEY = 2**31
PICKLES = 5
"""At the beginning of a file of before PyTorch 1.6: magic, version, system, content, storages."""
PLAIN = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
READ = PLAIN | {
    "PROTO", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE", "MARK", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
}  # fmt: skip
"""Instructions that the weights-only reader has; it ends with an error at any other."""
UNSAFE = ("torch._utils._rebuild_nested_tensor", "torch._utils._rebuild_wrapper_subclass")
"""Views of memory at offsets of the file's choice, and tensors without any."""


class _Thing:
    """A list, tuple, mapping or object that would be made.

    Attributes:
        count: entries, or of a tuple its parts once written out.
        odd: those of them that could be made to collide.
        items: of a tuple.
    """

    def __init__(self, kind: str, items: tuple[Any, ...] = ()) -> None:
        self.kind, self.items = kind, items
        self.count = sum(_count(item) for item in items) + 1 if kind == "tuple" else 0
        self.odd = sum(_is_odd(item) for item in items)


class _Name(str):
    """A function or class, by its whole name."""


def _count(value: Any) -> int:
    return value.count if isinstance(value, _Thing) and value.kind == "tuple" else 1


def _is_odd(key: Any) -> bool:
    """Whether there can be many such keys with one hash."""
    if isinstance(key, int):
        return not -LARGEST_KEY < key < LARGEST_KEY
    return not isinstance(key, str | bytes | float | None)


def check_old_torch_file(file: BinaryIO, budget: Budget) -> None:
    """Follow the pickles at the beginning of a file of before PyTorch 1.6.

    The last lists which storages' numbers follow; torch would leave others as memory happens to be.

    Args:
        file: open for reading.
        budget: of the whole file.

    Raises:
        ValueError: as `check_torch_pickle`, or a tensor's numbers are not in the file.
    """
    storages: set[Any] = set()
    for number in range(PICKLES):
        if not file.read(1):
            return
        file.seek(-1, io.SEEK_CUR)
        start = file.tell()
        if not check_torch_pickle(file, budget, storages):
            return
        if number == PICKLES - 1:
            length = file.tell() - start
            file.seek(start)
            listed = read_inert(file.read(length), budget.name, kind="list of storages")
            if not isinstance(listed, list) or storages - {str(key) for key in listed}:
                raise ValueError("numbers of its tensors are missing")


def check_torch_pickle(file: BinaryIO, budget: Budget, storages: set[Any] | None = None) -> bool:
    """Follow the pickle that begins where a file stands, up to its end.

    Returns:
        whether it was followed to its end, and not to what torch refuses anyway.

    Args:
        file: open for reading.
        budget: of the whole file.
        storages: where given, the keys of those that tensors use are added.

    Raises:
        ValueError: it is damaged, or asks for more than it may.
    """
    try:
        return _Follower(budget, storages).run(file)
    # Damaged bytes make pickletools and the stack fail in many ways.
    except Exception as error:
        if budget.left < 0:
            raise
        raise ValueError(str(error) or type(error).__name__) from error


class _Follower:
    def __init__(self, budget: Budget, storages: set[Any] | None) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[int, Any] = {}
        self.budget, self.storages, self.odd_keys = budget, storages, 0

    def run(self, file: BinaryIO) -> bool:
        for name, argument, place in instructions(file):
            self.budget.take(INSTRUCTION)
            if name == "STOP":
                return True
            if name not in READ:
                return False
            self.step(name, argument, place)
        raise ValueError("it has no end")

    def step(self, name: str, argument: Any, place: int) -> None:
        stack = self.stack
        if name == "PROTO":
            return
        if name in PLAIN:
            stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"):
            stack.append(_Thing(name.removeprefix("EMPTY_").lower()))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[5:] or 0)
            if count > len(stack):
                raise IndexError("a tuple of more than there is")
            items = self._since_mark() if name == "TUPLE" else stack[-count:]
            del stack[len(stack) - count :]
            thing = _Thing("tuple", tuple(items))
            # A tuple of two tuples of two tuples …: whoever hashes or shows it goes through all.
            self.budget.take(REFERENCE * thing.count)
            stack.append(thing)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            self._extend(items, items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            self._extend(items[::2], items[::2])
            self._take_odd(sum(_is_odd(key) for key in items[::2]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memory[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".").replace("__builtin__.", "builtins.")))
            if stack[-1] in UNSAFE:
                raise ValueError(f"byte {place} makes a tensor of a kind that no network has")
        elif name in ("REDUCE", "NEWOBJ"):
            given, function = stack.pop(), stack.pop()
            self._call(function, given, place)
            stack.append(_Thing("object"))
        elif name == "BUILD":
            self.budget.take(REFERENCE * self._size(stack.pop()))
        elif name == "BINPERSID":
            items = getattr(stack[-1], "items", ())
            if self.storages is not None and len(items) > 2:
                self.storages.add(str(items[2]) if isinstance(items[2], str) else None)
            stack[-1] = _Thing("object")

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _extend(self, items: list[Any], keys: list[Any]) -> None:
        owner = self.stack[-1]
        if not isinstance(owner, _Thing) or owner.kind == "tuple":
            raise ValueError("entries are added to what takes none")
        owner.count += len(items)
        owner.odd += sum(_is_odd(key) for key in keys)

    def _take_odd(self, count: int) -> None:
        self.odd_keys += count
        if self.odd_keys > MOST_ODD_KEYS:
            raise ValueError(f"more than {MOST_ODD_KEYS} keys are neither text nor small numbers")

    def _call(self, function: Any, given: Any, place: int) -> None:
        if not isinstance(given, _Thing) or given.kind != "tuple":
            raise ValueError(f"byte {place} calls what cannot be called")
        self.budget.take(sum(self._size(item) for item in given.items) * REFERENCE)
        # Whatever else is called is refused by name.
        if not isinstance(function, _Name):
            return
        if function == "builtins.bytearray":
            self.budget.take(sum(item for item in given.items if isinstance(item, int)))
        if function == "_codecs.encode" and given.items[1:] != ("latin1",):
            raise ValueError(f"byte {place} encodes text otherwise than Python 2's bytes")
        if function.endswith(("Tensor", "Storage")) and given.items and function[:6] == "torch.":
            raise ValueError(f"byte {place} makes a tensor of numbers that the file lacks")
        if function in ("builtins.set", "collections.Counter", "collections.OrderedDict"):
            # Entries of a list of pairs are odd ones too, whatever their keys are.
            self._take_odd(sum(getattr(item, "odd", 0) for item in given.items))

    def _size(self, value: Any) -> int:
        """Entries or characters that are gone through where a value is used."""
        if isinstance(value, str | bytes):
            return len(value)
        return value.count if isinstance(value, _Thing) else 1
