"""Reads what a pickle describes without doing what it says.

Only bytes, text, truth values, numbers, None, lists, tuples and numpy arrays of plain numbers come
out. A pickle is a program; here its few harmless instructions are carried out by ourselves, so
nothing is imported, called or built, and no memory is taken by a length that the bytes do not have.
"""

from __future__ import annotations

import codecs
import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
BUILTINS = ("builtins", "__builtin__")
MOST_INSTRUCTIONS = 20_000_000
ARRAY_TYPES = {"b1", "u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "O8"}


class _Mark:
    """Where a list or a tuple begins on the stack."""


class _Type:
    """A numpy dtype that is being described."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "|"

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"a numpy type of state {str(state)[:60]}")
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


def _array(content: Any, kind: _Type, shape: Any, order: str) -> np.ndarray | list[Any]:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"a numpy array of shape {str(shape)[:60]}")
    count = 1
    for size in sizes:
        count *= size
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
        raise ValueError(f"text in the encoding {codec!r}")
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
    text = name.decode("latin1") if isinstance(name, bytes) else str(name)
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


def read_inert(data: bytes, name: str) -> Any:
    """What a pickle describes.

    Args:
        data: the pickle, of any generation.
        name: what messages call it.

    Raises:
        ValueError: it is damaged, or holds or calls anything else, which is named.

    >>> import pickle
    >>> read_inert(pickle.dumps(([b"one"], [True])), "set.bin")
    ([b'one'], [True])
    """
    try:
        return _Machine().run(data)
    except RecursionError as error:
        raise ValueError(f"{name} is refused: it holds itself") from error
    # Damaged bytes make pickletools and the stack fail in many ways.
    except Exception as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"{name} is damaged, or no set of images and pairs: {said}") from error


def _instructions(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Each instruction's name, argument and place."""
    file = io.BytesIO(data)
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

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (name, argument, place) in enumerate(_instructions(data)):
            if count > MOST_INSTRUCTIONS:
                raise ValueError(f"more than {MOST_INSTRUCTIONS} instructions")
            if name == "STOP":
                (value,) = self.stack
                return _settled(value)
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
        elif name in ("TUPLE", "LIST", "APPENDS", "POP_MARK"):
            self._since_mark(name)
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
            stack.append(_known(module, attribute, place))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(module, attribute, place))
        elif name == "REDUCE":
            given, function = stack.pop(), stack.pop()
            if not callable(function) or not isinstance(given, tuple):
                raise ValueError(f"byte {place} calls what cannot be called")
            stack.append(function(*given))
        elif name == "BUILD":
            state, owner = stack.pop(), stack[-1]
            if not isinstance(owner, _Array | _Type):
                raise ValueError(f"byte {place} changes a {type(owner).__name__}")
            owner.build(state)
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

    def _mark(self) -> int:
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                return place
        raise ValueError("a list or tuple without a beginning")

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"something is appended to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _known(module: Any, attribute: Any, place: int) -> Any:
    try:
        return KNOWN[module, attribute]
    except (KeyError, TypeError):
        raise ValueError(
            f"byte {place} names {str(module)[:60]}.{str(attribute)[:60]}, "
            "which a set of images and pairs does not need; nothing was executed"
        ) from None


def _settled(value: Any) -> Any:
    """Descriptions of arrays replaced by the arrays, two levels down, where they belong."""

    def plain(item: Any) -> Any:
        return item.value if isinstance(item, _Array) else item

    value = plain(value)
    if not isinstance(value, list | tuple):
        return value
    return type(value)(
        [plain(item) for item in part] if isinstance(part, list | tuple) else plain(part)
        for part in value
    )
