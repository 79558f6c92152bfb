"""Commands that start without importing pydantic, and whose help is simpler than Typer's.

Typer imports pydantic to convert the value of every argument and option, unless it is a bool. It
does so even for its own ``--help``, whose value is None if the option is not given. In quick
commands such as ``margrave losses``, this import takes as long as everything else together.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

NAME_ONLY: dict[str, Any] = {
    "options_metavar": "[NAME]",
    "context_settings": {"allow_extra_args": True},
}
"""Settings of a command whose only argument is an optional NAME, see `optional_name`.

Typer does not know this argument, so it does not convert it.
"""


def optional_name(context: typer.Context) -> str | None:
    """Return the argument NAME of a command with the settings `NAME_ONLY`; None if not given."""
    if len(context.args) > 1:
        context.fail(f"Got unexpected extra arguments ({' '.join(context.args[1:])})")
    return context.args[0] if context.args else None


def _default_false(option: Any) -> Any:
    """Make an option's default False instead of None, because pydantic would convert None."""
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
"""Type of an option -> placeholder of its value in the help."""


def _simplify(parameters: list[Any]) -> list[Any]:
    """Simplify the help of a command's arguments and options, and return them.

    The help shows an argument's name and an option's type. A flag that is off by default has no
    ``--no-…`` form.

    Args:
        parameters: the arguments and options; they are changed in place.
    """
    for parameter in parameters:
        type_name = parameter.bare_type()
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or str(parameter.name).upper()
        elif parameter.metavar is None:
            parameter.metavar = _METAVARS.get(type_name)
        if type_name == "bool" and parameter.default is False:
            parameter.secondary_opts, parameter.show_default = [], False
    return parameters


class QuickCommand(TyperCommand):
    """A command that starts without importing pydantic."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # Join the docstring's lines, so that the help wraps at the terminal's width.
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

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
