"""Parse pickles without executing them.

A pickle is a program. This interpreter implements only its harmless instructions: it imports and
calls nothing that the file names, creates no instances of named classes, and uses memory in
proportion to the file's size. It reads two kinds of files. A set of images and pairs (such as
InsightFace's .bin files) becomes bytes, text, numbers, lists and NumPy arrays. In a file of
objects, each object becomes a `PickledObject`, which stores the name of a class and the arguments
of its constructor.
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

# NumPy's modules before and since version 2.
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
BUILTINS = ("builtins", "__builtin__")
ARRAY_TYPES = {"b1", "u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "O8"}
"""Supported NumPy dtypes, besides byte strings; O8 is an array of Python objects."""
MAX_DIMENSIONS = 8
ENTRY_BYTES = 8
"""Bytes charged per list entry."""
INSTRUCTION_BYTES = 200
"""Bytes charged per instruction, since even a short one can create a dict or a memo entry."""
MAX_TEXT_IN_MESSAGE = 60

Name = tuple[str, str]
"""Module and name of a class or function."""


@dataclass(eq=False)
class PickledObject:
    """An object in a pickle, as plain names and values.

    Attributes:
        name: the class or function that unpickling would call.
        arguments: the arguments of that call.
        state: the state that unpickling would set afterwards, or None.
    """

    name: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None


class _Mark:
    """Marks the start of a container's items on the stack."""


class _DtypeBuilder:
    """A NumPy dtype under construction."""

    def __init__(self, name: str) -> None:
        self.name, self.byte_order = name, "|"

    def build(self, state: Any) -> None:
        # The state begins with a version and the byte order.
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"invalid state of a NumPy dtype: {describe_value(state)}")
        self.byte_order = state[1]

    @property
    def value(self) -> np.dtype:
        return np.dtype(self.byte_order.replace("|", "") + self.name)


class _ArrayBuilder:
    """A NumPy array under construction."""

    value: np.ndarray | list[Any] | None = None
    """The array, or None before `build`."""

    def build(self, state: Any) -> None:
        if (
            not isinstance(state, tuple)
            or len(state) != 5
            or not isinstance(state[2], _DtypeBuilder)
        ):
            raise ValueError("a NumPy array is stored in an unknown form")
        _, shape, dtype, is_fortran, content = state
        self.value = _make_array(content, dtype, shape, "F" if is_fortran else "C")


def describe_value(value: Any) -> str:
    """Format a value for a message; a container, which may contain itself, only as its type.

    >>> describe_value(12), describe_value([1])
    ('12', 'a list')
    """
    if isinstance(value, str | bytes):
        return repr(value[:MAX_TEXT_IN_MESSAGE])
    if value is None or isinstance(value, bool | float | np.generic):
        return str(value)[:MAX_TEXT_IN_MESSAGE]
    # Python refuses to format integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() < 4 * MAX_TEXT_IN_MESSAGE:
        return str(value)[:MAX_TEXT_IN_MESSAGE]
    return f"a {type(value).__name__}"


def _make_array(
    content: Any, dtype: _DtypeBuilder, shape: Any, order: str
) -> np.ndarray | list[Any]:
    """Create an array from its bytes; for objects (O8), return the flat list of them."""
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"a NumPy array has the invalid shape {describe_value(shape)}")
    if len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"a NumPy array has {len(sizes)} dimensions, more than {MAX_DIMENSIONS}")
    count, available = 1, len(content) if hasattr(content, "__len__") else 0
    for size in sizes:
        # A damaged file can contain huge sizes. A count above `available` is wrong anyway, so limit
        # it to one more.
        count = min(count * min(size, available + 1), available + 1)
    if dtype.name == "O8":
        if not isinstance(content, list) or len(content) != count:
            raise ValueError(f"a NumPy array of {count} objects has the wrong number of objects")
        return content
    if not isinstance(content, bytes | bytearray) or len(content) != count * dtype.value.itemsize:
        raise ValueError(f"a NumPy array of {count} x {dtype.name} has the wrong number of bytes")
    flat = np.frombuffer(content, dtype.value)
    return flat.reshape(sizes, order=order)  # type: ignore[call-overload]


def _encode_latin1(text: Any, codec: Any = "latin1") -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise ValueError(f"text has the unsupported encoding {describe_value(codec)}")
    return text.encode("latin1")


def _make_bytes(*arguments: Any) -> bytes:
    if arguments and not isinstance(arguments[0], bytes | bytearray | str):
        raise ValueError(f"bytes cannot be created from a {type(arguments[0]).__name__}")
    is_text = arguments and isinstance(arguments[0], str)
    return _encode_latin1(*arguments) if is_text else bytes(*arguments[:1])


def _make_scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _DtypeBuilder):
        raise ValueError("a NumPy scalar has no dtype")
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.asarray(_make_array(content, dtype, (), "C"))[()]


def _make_dtype(name: Any, *_: Any) -> _DtypeBuilder:
    if not isinstance(name, str | bytes):
        raise ValueError(f"a NumPy array has the unsupported dtype {describe_value(name)}")
    text = name.decode("latin1") if isinstance(name, bytes) else name
    text = text.lstrip("<>|=")
    # S and the number of bytes, of at most 7 digits.
    is_byte_string = text[:1] == "S" and text[1:].isdecimal() and len(text) < 9
    if not is_byte_string and text not in ARRAY_TYPES:
        raise ValueError(f"a NumPy array has the unsupported dtype {text[:30]!r}")
    return _DtypeBuilder(text)


def _array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | list[Any]:
    if not isinstance(dtype, _DtypeBuilder) or order not in ("C", "F"):
        raise ValueError("a NumPy array is stored in an unknown form")
    return _make_array(content, dtype, shape, order)


def _empty_array(*_: Any) -> _ArrayBuilder:
    return _ArrayBuilder()


class _Class:
    """A class that a pickle may pass as an argument but not call."""


@dataclass(frozen=True)
class _AllowedName:
    """An allowed class or function in a file of objects; it is never imported or called."""

    name: Name


STAND_INS: dict[Name, Any] = {
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "dtype"): _make_dtype,
    ("numpy", "ndarray"): _Class(),
    **{(module, "_reconstruct"): _empty_array for module in MULTIARRAY},
    **{(module, "scalar"): _make_scalar for module in MULTIARRAY},
    **{(module, "_frombuffer"): _array_from_buffer for module in NUMERIC},
    **{(module, name): _make_bytes for module in BUILTINS for name in ("bytes", "bytearray")},
}
"""Name allowed in a set of images and pairs -> the object that the interpreter uses instead."""

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
"""Instruction -> function that creates the value that the instruction pushes."""
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
"""Instructions that push their argument."""
PYTHON_2_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
"""Instructions that push a Python 2 byte string, which pickletools decodes to text."""
# Byte in the file -> instruction.
INSTRUCTIONS = {code.code.encode("latin1"): code for code in pickletools.opcodes}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Instruction -> number of stack items that it combines into a tuple."""


def read_inert(
    data: bytes,
    name: str,
    allowed_names: frozenset[Name] | None = None,
    kind: str = "set of images and pairs",
) -> Any:
    """Parse a pickle without executing it.

    Args:
        data: the pickle, of any protocol version.
        name: the file's name, for messages.
        allowed_names: the classes and functions that a file of objects may name; None for a set of
            images and pairs.
        kind: a description of the expected content, for messages.

    Returns:
        the pickled value; instances of classes are NumPy arrays or `PickledObject`s.

    Raises:
        ValueError: the pickle is damaged, or names or calls anything that is not allowed.

    >>> import pickle
    >>> read_inert(pickle.dumps(([b"one"], [True])), "set.bin")
    ([b'one'], [True])
    """
    budget = Budget(len(data), name)
    try:
        return _Machine(budget, allowed_names).run(data)
    except RecursionError as error:
        raise ValueError(
            f"{name} is rejected because it contains an object that contains itself"
        ) from error
    # Damaged bytes can raise nearly any error in pickletools and in the stack operations.
    except Exception as error:
        # The budget's own error names the file already.
        if budget.remaining < 0:
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is damaged or not a {kind}: {reason}") from error


def instructions(file: BinaryIO) -> Iterator[tuple[str, Any, int]]:
    """Yield each instruction's name, argument and position, from the file's current position."""
    while code := file.read(1):
        position = file.tell() - 1
        instruction = INSTRUCTIONS.get(code)
        if instruction is None:
            raise ValueError(f"byte {position} is not an instruction")
        if instruction.name == "STRING":
            # pickletools would accept only ASCII here, but Python 2 wrote any bytes.
            quoted = file.readline().rstrip(b"\r\n")
            yield "STRING", codecs.escape_decode(quoted[1:-1])[0], position
            continue
        argument = None if instruction.arg is None else instruction.arg.reader(file)
        yield instruction.name, argument, position


class _Machine:
    """A stack machine that interprets pickle instructions.

    The memo stores values that later instructions use again.
    """

    def __init__(self, budget: Budget, allowed_names: frozenset[Name] | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget, self.allowed_names = budget, allowed_names

    def run(self, data: bytes) -> Any:
        for name, argument, position in instructions(io.BytesIO(data)):
            self.budget.charge(INSTRUCTION_BYTES)
            if isinstance(argument, str):
                # Charge what the text takes beyond one byte per character: one non-Latin character
                # makes every character take up to four bytes.
                self.budget.charge(sys.getsizeof(argument) - len(argument))
            if name == "STOP":
                (value,) = self.stack
                return (
                    value if self.allowed_names is not None else _resolve_arrays(value, self.budget)
                )
            self.step(name, argument, position)
        raise ValueError("the STOP instruction is missing")

    def step(self, name: str, argument: Any, position: int) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            is_bytes = name in PYTHON_2_STRINGS and isinstance(argument, str)
            stack.append(argument.encode("latin1") if is_bytes else argument)
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("TUPLE", "LIST", "APPENDS", "POP_MARK", "DICT", "SETITEMS"):
            self._collect_items(name)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set_items([key, value])
        elif name == "APPEND":
            value = stack.pop()
            self._top_list().append(value)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self._look_up(module, attribute, position))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._look_up(module, attribute, position))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments, position))
        elif name == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, PickledObject) and target.state is None:
                target.state = state
            elif isinstance(target, _ArrayBuilder | _DtypeBuilder):
                target.build(state)
            else:
                raise ValueError(
                    f"byte {position} sets the state of a {type(target).__name__}, "
                    "which is not allowed here"
                )
        else:
            raise ValueError(f"byte {position} is the instruction {name}, which is not allowed")

    def _collect_items(self, name: str) -> None:
        """Pop the items after the last mark, and create or extend a container with them."""
        stack = self.stack
        mark = self._last_mark()
        items = stack[mark + 1 :]
        del stack[mark:]
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "LIST":
            stack.append(items)
        elif name == "APPENDS":
            self._top_list().extend(items)
        elif name == "DICT":
            stack.append({})
            self._set_items(items)
        elif name == "SETITEMS":
            self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        container = self.stack[-1]
        if not isinstance(container, dict):
            raise ValueError(f"a {type(container).__name__} is used as a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Keys of other types could be crafted to have equal hashes, which takes quadratic time.
            if not isinstance(key, str | PickledObject):
                raise ValueError(f"a value of type {type(key).__name__} is used as a dict key")
            container[key] = value

    def _look_up(self, module: Any, attribute: Any, position: int) -> Any:
        # Check the types first: hashing or formatting nested tuples could take exponential time.
        for name in (module, attribute):
            if not isinstance(name, str):
                raise ValueError(f"byte {position}: the name {describe_value(name)} is not text")
        if self.allowed_names is None:
            return _look_up_stand_in(module, attribute, position)
        if (module, attribute) not in self.allowed_names:
            raise ValueError(
                f"byte {position} names {_short_name(module, attribute)}, which does not "
                "belong in such a file; nothing was executed"
            )
        return _AllowedName((module, attribute))

    def _call(self, function: Any, arguments: Any, position: int) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError(f"byte {position} calls a function without a tuple of arguments")
        if isinstance(function, _AllowedName):
            return PickledObject(function.name, arguments)
        if not callable(function):
            raise ValueError(f"byte {position} calls an object that is not callable")
        # Some functions copy their arguments.
        sized = (str, bytes, bytearray)
        self.budget.charge(sum(len(item) for item in arguments if isinstance(item, sized)))
        return function(*arguments)

    def _last_mark(self) -> int:
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                return index
        raise ValueError("the start mark of a container's items is missing")

    def _top_list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"a {type(self.stack[-1]).__name__} is used as a list")
        return self.stack[-1]


def _look_up_stand_in(module: str, attribute: str, position: int) -> Any:
    try:
        return STAND_INS[module, attribute]
    except KeyError:
        raise ValueError(
            f"byte {position} names {_short_name(module, attribute)}, "
            "which does not belong in a set of images and pairs; nothing was executed"
        ) from None


def _resolve_arrays(value: Any, budget: Budget) -> Any:
    """Replace each `_ArrayBuilder` with its array, in a value and up to two levels of lists."""

    def unwrap(item: Any) -> Any:
        return item.value if isinstance(item, _ArrayBuilder) else item

    def unwrap_items(part: Any) -> Any:
        if not isinstance(part, list | tuple):
            return unwrap(part)
        # The file can refer to the same list many times, and each time it is copied.
        budget.charge(ENTRY_BYTES * len(part))
        return type(part)([unwrap(item) for item in part])

    value = unwrap(value)
    return (
        type(value)([unwrap_items(part) for part in value])
        if isinstance(value, list | tuple)
        else value
    )


def _short_name(module: str, attribute: str) -> str:
    return f"{module[:MAX_TEXT_IN_MESSAGE]}.{attribute[:MAX_TEXT_IN_MESSAGE]}"
