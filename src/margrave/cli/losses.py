"""``margrave losses``: what can be minimised."""

from __future__ import annotations

from typing import Annotated

import typer


def losses(
    name: Annotated[str | None, typer.Argument(help="Show one loss in full.")] = None,
) -> None:
    """List the losses, or show one's equation, source and settings."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from margrave.losses import LOSSES, create

    console = Console()
    if name is not None:
        console.print(inspect.getdoc(LOSSES.get(name)), markup=False, highlight=False)
        return
    table = Table("loss", "what it does", "reads", "settings")
    for kind in LOSSES:
        loss = create({"kind": kind})
        settings = (
            f"{key}={value}"
            for key, value in loss.settings().items()
            if isinstance(value, int | float | str) and key != "straight_through"
        )
        summary = (inspect.getdoc(type(loss)) or "").split("\n\n")[0].replace("\n", " ")
        table.add_row(kind, summary, ", ".join(loss.needs) or "-", "\n".join(settings))
    console.print(table)
    console.print("One in full: margrave losses NAME. Your own: --loss my_module:MyLoss")
