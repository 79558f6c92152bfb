"""Commands that start without importing pydantic, and whose help is simpler than Typer's.

Typer imports pydantic to convert every argument and option that is not a bool. That includes its
own ``--help``, which is None if it is not given. In quick commands such as ``margrave losses``, the
import takes as long as everything else together.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

NAME_ONLY: dict[str, Any] = {
    "options_metavar": "[NAME]",
    "context_settings": {"allow_extra_args": True},
}
"""Settings of a command that calls `optional_name`."""


def optional_name(context: typer.Context) -> str | None:
    """The command's only argument, if it has one."""
    if len(context.args) > 1:
        context.fail(f"Got unexpected extra arguments ({' '.join(context.args[1:])})")
    return context.args[0] if context.args else None


def _default_false(option: Any) -> Any:
    """Make an option's default False instead of None, which pydantic would have to convert."""
    if option is not None:
        option.default = False
    return option


_METAVARS = {
    "bool": "",
    "int": "N",
    "float": "NUMBER",
    "Path": "PATH",
    "str": "TEXT",
    "list[str]": "TEXT",
}


def _simplify(parameters: list[Any]) -> list[Any]:
    """Simplify the help: arguments by name, options by type, no ``--no-x`` for flags that are off.

    Args:
        parameters: the arguments and options of a command; they are changed in place.
    """
    for parameter in parameters:
        kind = parameter.bare_type()
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or str(parameter.name).upper()
        elif parameter.metavar is None:
            parameter.metavar = _METAVARS.get(kind)
        if kind == "bool" and parameter.default is False:
            parameter.secondary_opts, parameter.show_default = [], False
    return parameters


class QuickCommand(TyperCommand):
    """A command that starts without importing pydantic."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # Join the docstring's lines, so that the help wraps at the terminal's width.
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(part.split()) for part in paragraphs)

    def get_help_option(self, ctx: Any) -> Any:
        return _default_false(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        return _simplify(super().get_params(ctx))


class QuickGroup(TyperGroup):
    """A group of commands that starts without importing pydantic."""

    def get_help_option(self, ctx: Any) -> Any:
        return _default_false(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        return _simplify(super().get_params(ctx))
