"""Commands that start without pydantic.

Typer imports it to convert arguments and options other than bools, among them the absent value of
its own ``--help``. That takes about as long as everything else that listing the losses does.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

NAME_ONLY: dict[str, Any] = {
    "options_metavar": "[NAME]",
    "context_settings": {"allow_extra_args": True},
}
"""Settings of a command that reads `optional_name` from its context."""


def optional_name(context: typer.Context) -> str | None:
    """The command's only argument, if it has one."""
    if len(context.args) > 1:
        context.fail(f"Got unexpected extra arguments ({' '.join(context.args[1:])})")
    return context.args[0] if context.args else None


def _absent_is_false(option: Any) -> Any:
    if option is not None:
        option.default = False
    return option


class QuickCommand(TyperCommand):
    """A command whose ``--help`` is a plain bool."""

    def get_help_option(self, ctx: Any) -> Any:
        return _absent_is_false(super().get_help_option(ctx))


class QuickGroup(TyperGroup):
    """A group whose ``--help`` is a plain bool."""

    def get_help_option(self, ctx: Any) -> Any:
        return _absent_is_false(super().get_help_option(ctx))
