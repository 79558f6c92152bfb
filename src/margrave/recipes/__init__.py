"""Recipes: trainings to start from, each a YAML file headed by what it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from margrave.registry import suggest


def recipe_names() -> list[str]:
    """The recipes that come with Margrave."""
    entries = files(__name__).iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe: one of Margrave's by name, or any file.

    Raises:
        ValueError: neither a recipe nor a file, naming the nearest.
    """
    if name in recipe_names():
        return (files(__name__) / f"{name}.yaml").read_text()
    if Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read as text: {error}") from None
    raise ValueError(f"no recipe and no file {name!r}; {suggest(name, recipe_names())}")
