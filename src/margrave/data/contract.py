"""The registry of image sources, and the rules that detect which source can read a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from margrave.images import ReadableImages
from margrave.registry import Registry

Source = TypeVar("Source", bound=Callable[..., Any])
Detect = Callable[[str], Mapping[str, Any] | None]


class Sources(Registry[Callable[..., ReadableImages]]):
    """The registry of image sources: maps each name to a source and, optionally, a detection rule.

    >>> sources = Sources("data set")
    >>> @sources.register("files", detect=lambda path: {"root": path})
    ... def open_files(root): ...
    >>> sources.detect("faces")
    {'kind': 'files', 'root': 'faces'}
    """

    def __init__(self, noun: str) -> None:
        super().__init__(noun)
        # (−priority, name, detect), so that the rule that wins is sorted first.
        self._rules: list[tuple[int, str, Detect]] = []

    def register(
        self, name: str, detect: Detect | None = None, priority: int = 0
    ) -> Callable[[Source], Source]:
        """Decorator that registers a class or function under a name.

        Args:
            name: the ``kind`` of the source.
            detect: the detection rule: a function that takes a path or URL and returns the source's
                settings for it, or None if this source cannot read it. The function may inspect
                files, but must not read images.
            priority: if several rules match, the one with the highest priority wins; ties go to the
                first name in alphabetical order.
        """
        if detect is not None:
            self._rules.append((-priority, name, detect))
        return super().register(name)

    def detect(self, path: str) -> dict[str, Any] | None:
        """``{"kind": name, **settings}`` for a path or URL; None if no source recognizes it."""
        for _, name, detect in sorted(self._rules, key=lambda rule: rule[:2]):
            settings = detect(path)
            if settings is not None:
                return {"kind": name, **settings}
        return None


SOURCES = Sources("data set")
