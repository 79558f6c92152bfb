"""``margrave recipes``: trainings to start from."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print one recipe.")] = None,
) -> None:
    """List the recipes, or print one, to change and pass to `margrave train`."""
    from rich.console import Console
    from rich.table import Table

    from margrave.recipes import recipe_names, recipe_text

    if name is not None:
        # Not through rich, which would wrap lines and break the YAML.
        typer.echo(recipe_text(name), nl=False)
        return
    console = Console(highlight=False)
    table = Table("recipe", "what it is")
    for recipe in recipe_names():
        heading = recipe_text(recipe).splitlines()[0].removeprefix("#").strip()
        table.add_row(recipe, heading)
    console.print(table)
    console.print("One in full: margrave recipes NAME. Run it: margrave train NAME")
