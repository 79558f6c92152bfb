"""The recipes and studies that come with Margrave: YAML files to start from.

The first line of each file says what the file is for.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from margrave.registry import suggest


def recipe_names() -> list[str]:
    """The names of the recipes that come with Margrave."""
    return _names(files(__name__))


def recipe_text(name: str) -> str:
    """The YAML text of a recipe; `name` is one of `recipe_names` or the path of a file.

    Raises:
        ValueError: there is no such recipe or file (the message suggests the most similar name), or
            the file cannot be read as text.
    """
    return _text(files(__name__), name, "recipe")


def study_names() -> list[str]:
    """The names of the studies that come with Margrave."""
    return _names(files(__name__) / "studies")


def study_text(name: str) -> str:
    """The YAML text of a study; `name` is one of `study_names` or the path of a file.

    Raises:
        ValueError: there is no such study or file (the message suggests the most similar name), or
            the file cannot be read as text.
    """
    return _text(files(__name__) / "studies", name, "study")


def _names(folder: Traversable) -> list[str]:
    file_names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in file_names if name.endswith(".yaml"))


def _text(folder: Traversable, name: str, noun: str) -> str:
    if name in _names(folder):
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    if Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read as text: {error}") from None
    raise ValueError(f"no {noun} and no file {name!r}; {suggest(name, _names(folder))}")
