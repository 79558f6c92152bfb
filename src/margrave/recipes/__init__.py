"""Recipes: configurations to start from, each a YAML file; its first line says what it is."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from margrave.registry import suggest


def recipe_names() -> list[str]:
    """The recipes that come with Margrave."""
    return _names(files(__name__))


def recipe_text(name: str) -> str:
    """The YAML of a recipe: one of Margrave's by name, or any file.

    Raises:
        ValueError: there is neither such a recipe nor such a file; the message suggests the most
            similar name.
    """
    return _text(files(__name__), name, "recipe")


def study_names() -> list[str]:
    """The studies that come with Margrave."""
    return _names(files(__name__) / "studies")


def study_text(name: str) -> str:
    """The YAML of a study: one of Margrave's by name, or any file.

    Raises:
        ValueError: there is neither such a study nor such a file; the message suggests the most
            similar name.
    """
    return _text(files(__name__) / "studies", name, "study")


def _names(folder: Traversable) -> list[str]:
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _text(folder: Traversable, name: str, noun: str) -> str:
    if name in _names(folder):
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    if Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read as text: {error}") from None
    raise ValueError(f"no {noun} and no file {name!r}; {suggest(name, _names(folder))}")
