"""Reads what a pickle describes without doing what it says.

A pickle is a program; here its few harmless instructions are carried out by ourselves, so nothing
is imported, called or built, no live class can be reached from bytes, and no memory is taken that
the file's own size does not account for. Two kinds of file are read so: sets of images and pairs,
out of which come bytes, text, numbers, lists and numpy arrays; and files of objects, which become
`Record`s: a class's name and what was given to it.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from margrave.files.budget import Budget

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
BUILTINS = ("builtins", "__builtin__")
ARRAY_TYPES = {"b1", "u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "O8"}
MOST_DIMENSIONS = 8
REFERENCE = 8
"""Bytes of a place in a list."""
INSTRUCTION = 200
"""Bytes that an instruction can take however short it is: a mapping, a place in the memory."""
SHOWN = 60

Name = tuple[str, str]
"""Of a class or function: its module and its own."""


@dataclass(eq=False)
class Record:
    """An object that a pickle describes: nothing but names and values.

    Attributes:
        name: of the class, or of the function that would have made it.
        arguments: that it would have been made with.
        state: that it would have been given afterwards, if any.
    """

    name: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None


class _Mark:
    """Where a list or a tuple begins on the stack."""


class _Type:
    """A numpy dtype that is being described."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "|"

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"a numpy type of state {shown(state)}")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order.replace("|", "") + self.name)


class _Array:
    """A numpy array that is being described."""

    value: np.ndarray | list[Any] | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise ValueError("a numpy array of an unknown form")
        _, shape, kind, fortran, content = state
        self.value = _array(content, kind, shape, "F" if fortran else "C")


def shown(value: Any) -> str:
    """A value for a message; of what could hold others, or itself, its type alone.

    >>> shown(12), shown([1])
    ('12', 'a list')
    """
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN])
    if value is None or isinstance(value, bool | float | np.generic):
        return str(value)[:SHOWN]
    # Numbers of thousands of digits have no text.
    if isinstance(value, int) and value.bit_length() < 4 * SHOWN:
        return str(value)[:SHOWN]
    return f"a {type(value).__name__}"


def _array(content: Any, kind: _Type, shape: Any, order: str) -> np.ndarray | list[Any]:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"a numpy array of shape {shown(shape)}")
    if len(sizes) > MOST_DIMENSIONS:
        raise ValueError(f"a numpy array of {len(sizes)} dimensions")
    count, most = 1, len(content) if hasattr(content, "__len__") else 0
    for size in sizes:
        # A file can name numbers of thousands of digits again and again.
        count = min(count * min(size, most + 1), most + 1)
    if kind.name == "O8":
        if not isinstance(content, list) or len(content) != count:
            raise ValueError(f"a numpy array of {count} objects without as many")
        return content
    if not isinstance(content, bytes | bytearray) or len(content) != count * kind.dtype.itemsize:
        raise ValueError(f"a numpy array of {count} x {kind.name} without as many bytes")
    flat = np.frombuffer(content, kind.dtype)
    return flat.reshape(sizes, order=order)  # type: ignore[call-overload]


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise ValueError(f"text in the encoding {shown(codec)}")
    return text.encode("latin1")


def _bytes(*given: Any) -> bytes:
    if given and not isinstance(given[0], bytes | bytearray | str):
        raise ValueError(f"bytes of a {type(given[0]).__name__}")
    return _encode(*given) if given and isinstance(given[0], str) else bytes(*given[:1])


def _scalar(kind: Any, content: Any) -> Any:
    if not isinstance(kind, _Type):
        raise ValueError("a numpy number without a type")
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.asarray(_array(content, kind, (), "C"))[()]


def _type(name: Any, *_: Any) -> _Type:
    if not isinstance(name, str | bytes):
        raise ValueError(f"a numpy array of type {shown(name)}")
    text = name.decode("latin1") if isinstance(name, bytes) else name
    text = text.lstrip("<>|=")
    is_bytes = text[:1] == "S" and text[1:].isdecimal() and len(text) < 9
    if not is_bytes and text not in ARRAY_TYPES:
        raise ValueError(f"a numpy array of type {text[:30]!r}")
    return _Type(text)


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray | list[Any]:
    if not isinstance(kind, _Type) or order not in ("C", "F"):
        raise ValueError("a numpy array of an unknown form")
    return _array(content, kind, shape, order)


def _nothing(*_: Any) -> _Array:
    return _Array()


class _Class:
    """The name of a class, which may only be handed over."""


@dataclass(frozen=True)
class _Named:
    """A name that a file of objects may use."""

    name: Name


KNOWN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _type,
    ("numpy", "ndarray"): _Class(),
    **{(module, "_reconstruct"): _nothing for module in MULTIARRAY},
    **{(module, "scalar"): _scalar for module in MULTIARRAY},
    **{(module, "_frombuffer"): _from_buffer for module in NUMERIC},
    **{(module, name): _bytes for module in BUILTINS for name in ("bytes", "bytearray")},
}

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
OLD_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
"""Python 2's bytes, which pickletools gives as text."""
INSTRUCTIONS = {code.code.encode("latin1"): code for code in pickletools.opcodes}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_inert(
    data: bytes,
    name: str,
    records: frozenset[Name] | None = None,
    kind: str = "set of images and pairs",
) -> Any:
    """What a pickle describes.

    Args:
        data: the pickle, of any generation.
        name: what messages call it.
        records: the classes and functions that a file of objects may name; None for a set of
            images and pairs.
        kind: what messages call a file that is as it should be.

    Raises:
        ValueError: it is damaged, or holds or calls anything else, which is named.

    >>> import pickle
    >>> read_inert(pickle.dumps(([b"one"], [True])), "set.bin")
    ([b'one'], [True])
    """
    budget = Budget(len(data), name)
    try:
        return _Machine(budget, records).run(data)
    except RecursionError as error:
        raise ValueError(f"{name} is refused: it holds itself") from error
    # Damaged bytes make pickletools and the stack fail in many ways.
    except Exception as error:
        if budget.left < 0:
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is damaged, or no {kind}: {reason}") from error


def instructions(file: BinaryIO) -> Iterator[tuple[str, Any, int]]:
    """Each instruction's name, argument and place, from where a file stands."""
    while code := file.read(1):
        place = file.tell() - 1
        instruction = INSTRUCTIONS.get(code)
        if instruction is None:
            raise ValueError(f"byte {place} is no instruction")
        if instruction.name == "STRING":
            # Python 2's bytes; pickletools takes them for ASCII.
            quoted = file.readline().rstrip(b"\r\n")
            yield "STRING", codecs.escape_decode(quoted[1:-1])[0], place
            continue
        argument = None if instruction.arg is None else instruction.arg.reader(file)
        yield instruction.name, argument, place


class _Machine:
    """A pickle's stack and memory."""

    def __init__(self, budget: Budget, records: frozenset[Name] | None) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.budget, self.records = budget, records

    def run(self, data: bytes) -> Any:
        for name, argument, place in instructions(io.BytesIO(data)):
            self.budget.take(INSTRUCTION)
            if isinstance(argument, str):
                # One character can make each of the others take four bytes.
                self.budget.take(sys.getsizeof(argument) - len(argument))
            if name == "STOP":
                (value,) = self.stack
                return value if self.records is not None else _settled(value, self.budget)
            self.step(name, argument, place)
        raise ValueError("it has no end")

    def step(self, name: str, argument: Any, place: int) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            old = name in OLD_STRINGS and isinstance(argument, str)
            stack.append(argument.encode("latin1") if old else argument)
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("TUPLE", "LIST", "APPENDS", "POP_MARK", "DICT", "SETITEMS"):
            self._since_mark(name)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set_items([key, value])
        elif name == "APPEND":
            value = stack.pop()
            self._list().append(value)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memory[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self._named(module, attribute, place))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._named(module, attribute, place))
        elif name in ("REDUCE", "NEWOBJ"):
            given, function = stack.pop(), stack.pop()
            stack.append(self._made(function, given, place))
        elif name == "BUILD":
            state, owner = stack.pop(), stack[-1]
            if isinstance(owner, Record) and owner.state is None:
                owner.state = state
            elif isinstance(owner, _Array | _Type):
                owner.build(state)
            else:
                raise ValueError(f"byte {place} changes a {type(owner).__name__}")
        else:
            raise ValueError(f"byte {place} asks for {name}, which such a file does not need")

    def _since_mark(self, name: str) -> None:
        stack = self.stack
        mark = self._mark()
        items = stack[mark + 1 :]
        del stack[mark:]
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "LIST":
            stack.append(items)
        elif name == "APPENDS":
            self._list().extend(items)
        elif name == "DICT":
            stack.append({})
            self._set_items(items)
        elif name == "SETITEMS":
            self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        owner = self.stack[-1]
        if not isinstance(owner, dict):
            raise ValueError(f"an entry is set in a {type(owner).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others can be made to collide, which would take time beyond measure.
            if not isinstance(key, str | Record):
                raise ValueError(f"a {type(key).__name__} names an entry")
            owner[key] = value

    def _named(self, module: Any, attribute: Any, place: int) -> Any:
        # To hash or show tuples of tuples of tuples can take for ever.
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError(f"byte {place} names {shown(module)}, where text belongs")
        if self.records is None:
            return _known(module, attribute, place)
        if (module, attribute) not in self.records:
            raise ValueError(
                f"byte {place} names {module[:SHOWN]}.{attribute[:SHOWN]}, which does not "
                "belong in such a file; nothing was executed"
            )
        return _Named((module, attribute))

    def _made(self, function: Any, given: Any, place: int) -> Any:
        if not isinstance(given, tuple):
            raise ValueError(f"byte {place} calls what cannot be called")
        if isinstance(function, _Named):
            return Record(function.name, given)
        if not callable(function):
            raise ValueError(f"byte {place} calls what cannot be called")
        # Some make a copy of what they are given.
        self.budget.take(sum(len(one) for one in given if isinstance(one, str | bytes | bytearray)))
        return function(*given)

    def _mark(self) -> int:
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                return place
        raise ValueError("a list or tuple without a beginning")

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"something is appended to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _known(module: str, attribute: str, place: int) -> Any:
    try:
        return KNOWN[module, attribute]
    except KeyError:
        raise ValueError(
            f"byte {place} names {module[:SHOWN]}.{attribute[:SHOWN]}, "
            "which a set of images and pairs does not need; nothing was executed"
        ) from None


def _settled(value: Any, budget: Budget) -> Any:
    """Descriptions of arrays replaced by the arrays, two levels down, where they belong."""

    def plain(item: Any) -> Any:
        return item.value if isinstance(item, _Array) else item

    def settled(part: Any) -> Any:
        if not isinstance(part, list | tuple):
            return plain(part)
        # One list can be there any number of times.
        budget.take(REFERENCE * len(part))
        return type(part)([plain(item) for item in part])

    value = plain(value)
    return (
        type(value)([settled(part) for part in value]) if isinstance(value, list | tuple) else value
    )
