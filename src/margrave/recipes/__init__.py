"""Recipes: trainings to start from, each a YAML file headed by what it is."""

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
        ValueError: neither a recipe nor a file, naming the nearest.
    """
    return _text(files(__name__), name, "recipe")


def study_names() -> list[str]:
    """The studies that come with Margrave."""
    return _names(files(__name__) / "studies")


def study_text(name: str) -> str:
    """The YAML of a study: one of Margrave's by name, or any file.

    Raises:
        ValueError: neither a study nor a file, naming the nearest.
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
