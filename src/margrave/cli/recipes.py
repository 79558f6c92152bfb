"""``margrave recipes``: list and print the recipes for training."""

import typer


def recipes(context: typer.Context) -> None:
    """List the recipes, or print the recipe NAME to edit it and pass it to `margrave train`."""
    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.quick import optional_name
    from margrave.recipes import recipe_names, recipe_text

    name = optional_name(context)
    if name is not None:
        # Rich would wrap lines and so break the YAML.
        typer.echo(recipe_text(name), nl=False)
        return
    console = Console(highlight=False)
    table = Table("recipe", "what it is", "duration")
    for recipe in recipe_names():
        # A recipe begins with comments: its summary and its duration.
        lines = [line.removeprefix("#").strip() for line in recipe_text(recipe).splitlines()]
        durations = [
            line.partition(":")[2].strip() for line in lines if line.startswith("duration:")
        ]
        table.add_row(recipe, lines[0], *durations[:1])
    console.print(table)
    console.print("Print a recipe: margrave recipes NAME. Run it: margrave train NAME")
