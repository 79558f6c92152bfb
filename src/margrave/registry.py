"""Components by name: look one up, inspect its settings, build it from a plain mapping.

A component is chosen in a recipe by ``{"kind": name, **settings}``. The name is either registered
(``adaface``) or an import path to a class or function of your own (``my_module:MyLoss``).
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
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_type_hints

# pydantic is imported only where settings are checked, so that listing components is fast.
if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Component = TypeVar("Component", bound=Callable[..., Any])
# The exact type of one component, which `Registry.register` preserves.
Registered = TypeVar("Registered", bound=Callable[..., Any])


def suggest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest choice, then all choices.

    >>> suggest("margn", ["margin", "scale"])
    "did you mean 'margin'? choices: margin, scale"
    >>> suggest("lr", ["learning_rate", "momentum"])
    "did you mean 'learning_rate'? choices: learning_rate, momentum"
    """
    names = sorted(choices)
    # A name such as "lr" may be the initials of a choice.
    initials = {choice: "".join(word[:1] for word in choice.split("_")) for choice in names}
    abbreviated = [choice for choice in names if name == initials[choice]]
    nearest = difflib.get_close_matches(name, names, n=1) or abbreviated
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}choices: {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class _Source:
    """The file whose component names are being looked up.

    Attributes:
        name: the file, for messages.
        typed: strings that the user typed; those that are import paths are allowed in the file.
    """

    name: str
    typed: frozenset[str]


# None allows all import paths: the names do not come from a file, or the user trusts it.
_source: ContextVar[_Source | None] = ContextVar("source", default=None)


@contextmanager
def names_from_file(path: object, trust_code: bool, typed: object = ()) -> Iterator[None]:
    """Context for looking up names read from a file; it refuses import paths, which run code.

    Every reader of a file with component names uses this context. Import paths are allowed if the
    user typed them or named a recipe that contains them.

    Args:
        path: the file, for messages.
        trust_code: allow import paths from the file; only the user may decide this, per call.
        typed: the settings and recipes that the user typed, as nested mappings and sequences;
            all import paths in them are allowed.

    >>> with names_from_file("run/config.yaml", trust_code=False):
    ...     import_path("os:system")
    Traceback (most recent call last):
        ...
    ValueError: run/config.yaml names 'os:system'; loading it would run that module's code; if you \
trust it, give --trust-code (trust_code=True)
    """
    token = _source.set(None if trust_code else _Source(str(path), frozenset(texts_in(typed))))
    try:
        yield
    finally:
        _source.reset(token)


def texts_in(value: object) -> Iterator[str]:
    """Every string in nested mappings and sequences, except keys.

    >>> list(texts_in({"kind": "arcface", "parts": ["a", 1]}))
    ['arcface', 'a']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from texts_in(item)


def import_path(path: str) -> Any:
    """Import the object ``package.module:attribute``; the working directory is searched too.

    Raises:
        ValueError: the module or the attribute does not exist, the attribute is not a class or
            function, or the path comes from a file (see `names_from_file`).

    >>> import_path("math:sqrt")(9)
    3.0
    """
    source = _source.get()
    if source is not None and path not in source.typed:
        raise ValueError(
            f"{source.name} names {path!r}; loading it would run that module's code; if you trust "
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
            "run from the folder that contains it, or install it"
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
    """Build a pydantic model of a component's keyword settings from its signature.

    >>> def head(scale: float = 64.0): ...
    >>> settings_schema(head)(scale="32").scale
    32.0
    """
    from pydantic import ConfigDict, create_model

    fields: dict[str, Any] = {}
    # A dataclass can inherit fields from another module. Only get_type_hints evaluates their
    # annotations in that module.
    hints = get_type_hints(component) if hasattr(component, "__dataclass_fields__") else {}
    for parameter in inspect.signature(component, eval_str=not hints).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(parameter.name, parameter.annotation)
        annotation = Any if annotation is parameter.empty else annotation
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (annotation, default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{component.__name__}Settings", __config__=config, **fields)


def _known_keys(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The known settings of the block that contains an unknown key, given the key's location."""
    from pydantic import BaseModel

    for part in location[:-1]:
        field = schema.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        # A mapping from names to blocks (evaluation.sets) leads directly to the blocks' schema. The
        # next part of the location is then a name (lfw), which has no field and is skipped.
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                schema = inner
    return list(schema.model_fields)


def _setting_paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the path of every setting in a schema, such as ``training.optimizer.kind``."""
    from pydantic import BaseModel

    for name, field in schema.model_fields.items():
        yield prefix + name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _setting_paths(inner, f"{prefix}{name}.")


PLAIN_WORDS = {
    "bool": "true or false",
    "dict": "a block of settings by name",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "string": "text",
    "tuple": "a list",
}
"""The first word of a pydantic error type -> the expected value."""


def _in_plain_words(fault: Mapping[str, Any]) -> str:
    """What a faulty value must be, such as ``must be a number``."""
    expected = PLAIN_WORDS.get(fault["type"].partition("_")[0])
    return f"must be {expected}" if expected else fault["msg"].replace("Input should be", "must be")


def explain(error: ValidationError, schema: type[BaseModel], place: str) -> str:
    """Format a pydantic error as text, one line per fault: location, value and nearest known key.

    Args:
        error: the error.
        schema: the model that was validated.
        place: what the values configure, for messages.
    """
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            name, choices = str(fault["loc"][-1]), _known_keys(schema, fault["loc"])
            same_name = [path for path in _setting_paths(schema) if path.endswith(f".{name}")]
            remedy = f"did you mean {' or '.join(same_name)}?" if same_name else ""
            lines.append(f"{place} has no setting {key!r}; {remedy or suggest(name, choices)}")
        elif fault["type"] == "missing":
            lines.append(f"{place} needs a value for {key!r}")
        else:
            lines.append(f"{place}, {key} = {fault['input']!r:.200}: {_in_plain_words(fault)}")
    return "\n".join(lines)


def checked_settings(
    component: Callable[..., Any], settings: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Validate a component's settings, fill in defaults and convert values to their types.

    Args:
        component: the class or function.
        settings: its keyword arguments.
        place: what they configure, for messages.

    Raises:
        ValueError: an unknown or missing setting, or a wrong type.

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


_REGISTRIES: list[Registry[Any]] = []
"""Every registry, so that an error about an unknown name can tell where it is registered."""


class Registry(Generic[Component]):
    """The components of one category, such as losses, by name.

    Args:
        noun: what messages call a component, such as "loss".

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
        _REGISTRIES.append(self)

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that registers a class or function under a name."""

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
        """The component with this name or import path; an unknown name raises a ValueError."""
        if name in self._components:
            return self._components[name]
        if ":" in name:
            return import_path(name)
        nouns = [registry.noun for registry in _REGISTRIES if name in registry._components]
        hint = f" ({name!r} is a {nouns[0]})" if nouns else ""
        suggestion = suggest(name, self._components)
        raise ValueError(f"unknown {self.noun} {name!r}{hint}; {suggestion}")

    def validate(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Validate ``{"kind": name, **settings}``, fill in defaults, convert values to their types.

        Raises:
            ValueError: a missing or unknown kind, an unknown or missing setting, or a wrong type.
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
