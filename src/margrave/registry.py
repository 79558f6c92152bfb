"""Names for components: look one up, see its settings, build it from a plain mapping.

A component is chosen in a recipe by ``{"kind": name, **settings}``. The name is either registered
(``adaface``) or an import path to anybody's own class or function (``my_module:MyLoss``).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

# pydantic is imported only where settings are checked: listing components need not wait for it.
if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Component = TypeVar("Component", bound=Callable[..., Any])
Registered = TypeVar("Registered", bound=Callable[..., Any])


def suggest(name: str, choices: Iterable[str]) -> str:
    """End of an error message: the nearest choice, then all of them.

    >>> suggest("margn", ["margin", "scale"])
    "did you mean 'margin'? choices: margin, scale"
    >>> suggest("lr", ["learning_rate", "momentum"])
    "did you mean 'learning_rate'? choices: learning_rate, momentum"
    """
    names = sorted(choices)
    initials = [choice for choice in names if name == "".join(w[:1] for w in choice.split("_"))]
    nearest = difflib.get_close_matches(name, names, n=1) or initials
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}choices: {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class _Source:
    """A file whose names are being looked up, and the import paths that may be followed."""

    name: str
    typed: frozenset[str]


_source: ContextVar[_Source | None] = ContextVar("source", default=None)


@contextmanager
def names_from_file(path: object, trust_code: bool, typed: object = ()) -> Iterator[None]:
    """While names of a file are looked up: import paths among them are programs, and refused.

    Every reader of a file that may hold such names looks them up within this. What the user typed,
    and recipes that the user named, are the user's own word.

    Args:
        path: the file, for messages.
        trust_code: follow import paths all the same; only the user may say so, in this call.
        typed: what the user typed beside the file; import paths anywhere in it are followed.

    >>> with names_from_file("run/config.yaml", trust_code=False):
    ...     import_path("os:system")
    Traceback (most recent call last):
        ...
    ValueError: run/config.yaml names 'os:system', whose module would be imported and run; if you \
trust it, give --trust-code (trust_code=True)
    """
    token = _source.set(None if trust_code else _Source(str(path), frozenset(_texts(typed))))
    try:
        yield
    finally:
        _source.reset(token)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def import_path(path: str) -> Any:
    """The object named by ``package.module:attribute``, looked for in the working directory too.

    Raises:
        ValueError: the module or the attribute does not exist, naming which; or a file named it,
            see `names_from_file`.

    >>> import_path("math:sqrt")(9)
    3.0
    """
    source = _source.get()
    if source is not None and path not in source.typed:
        raise ValueError(
            f"{source.name} names {path!r}, whose module would be imported and run; if you trust "
            "it, give --trust-code (trust_code=True)"
        )
    module_name, _, attribute = path.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"cannot import {module_name!r} (from {path!r}): {error}; "
            "run from the folder that holds it, or install it"
        ) from error
    try:
        component = getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(
            f"module {module_name!r} has no {attribute!r}; {suggest(attribute, public)}"
        ) from None
    if not callable(component):
        raise ValueError(f"{path!r} is a {type(component).__name__}, not a class or function")
    return component


def settings_schema(component: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of a component's keyword settings, read from its signature.

    >>> def head(scale: float = 64.0): ...
    >>> settings_schema(head)(scale="32").scale
    32.0
    """
    from pydantic import ConfigDict, create_model

    fields: dict[str, Any] = {}
    for parameter in inspect.signature(component, eval_str=True).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (annotation, default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{component.__name__}Settings", __config__=config, **fields)


def _known_keys(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The settings there are where an unknown one was met."""
    from pydantic import BaseModel

    for part in location[:-1]:
        field = schema.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        # A mapping from names to blocks: the name itself is passed over on the next turn.
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                schema = inner
    return list(schema.model_fields)


def explain(error: ValidationError, schema: type[BaseModel], place: str) -> str:
    """A pydantic error in one line per fault: the place, the value, and the nearest known key."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            choices = _known_keys(schema, fault["loc"])
            lines.append(
                f"{place} has no setting {key!r}; {suggest(str(fault['loc'][-1]), choices)}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{place} needs a value for {key!r}")
        else:
            lines.append(f"{place}, {key} = {fault['input']!r}: {fault['msg']}")
    return "\n".join(lines)


def checked_settings(
    component: Callable[..., Any], settings: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """A component's settings with every default filled in and every value of its declared type.

    Raises:
        ValueError: an unknown or missing setting, or a wrong type, named by `place`.

    >>> def head(scale: float = 64.0): ...
    >>> checked_settings(head, {"scael": 3}, "head")
    Traceback (most recent call last):
        ...
    ValueError: head has no setting 'scael'; did you mean 'scale'? choices: scale
    """
    from pydantic import ValidationError

    schema = settings_schema(component)
    try:
        return dict(schema(**settings))
    except ValidationError as error:
        raise ValueError(explain(error, schema, place)) from None


class Registry(Generic[Component]):
    """Components of one sort by name.

    >>> losses = Registry("loss")
    >>> @losses.register("flat")
    ... def flat(scale: float = 1.0):
    ...     return scale
    >>> losses.create({"kind": "flat", "scale": 2})
    2.0
    >>> losses.get("flot")
    Traceback (most recent call last):
        ...
    ValueError: unknown loss 'flot'; did you mean 'flat'? choices: flat
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._components: dict[str, Component] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that gives a class or function its name."""

        def add(component: Registered) -> Registered:
            if name in self._components:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            self._components[name] = component  # pyright: ignore[reportArgumentType]
            return component

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._components))

    def __len__(self) -> int:
        return len(self._components)

    def get(self, name: str) -> Component:
        """The component of that name or import path; an unknown name lists the choices."""
        if name in self._components:
            return self._components[name]
        if ":" in name:
            return import_path(name)
        raise ValueError(f"unknown {self.noun} {name!r}; {suggest(name, self._components)}")

    def validate(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The specification with every default filled in and every value of its declared type.

        Raises:
            ValueError: no kind, an unknown kind, an unknown or missing setting, a wrong type.
        """
        settings = dict(spec)
        kind = settings.pop("kind", None)
        if not isinstance(kind, str):
            raise ValueError(f"{self.noun} needs a 'kind'; {suggest('', self._components)}")
        place = f"{self.noun} {kind!r}"
        return {"kind": kind, **checked_settings(self.get(kind), settings, place)}

    def create(self, spec: Mapping[str, Any]) -> Any:
        """Build the component that ``{"kind": name, **settings}`` describes."""
        settings = self.validate(spec)
        return self.get(settings.pop("kind"))(**settings)
