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

    console = Console(highlight=False)
    if name is not None:
        loss = create({"kind": name})
        text = (inspect.getdoc(type(loss)) or "").split("\n>>> ")[0].rstrip()
        typer.echo(text.replace("`", "").replace("margrave.losses.angles.", ""))
        table = Table("setting", "default", title=f"{name}: --set loss.SETTING=VALUE")
        for setting, value in loss.settings().items():
            table.add_row(setting, str(value))
        console.print(table)
        said = (
            "scale: the inverse temperature s of the softmax. straight_through: the margin has no "
        )
        said += "gradient of its own, as in InsightFace's code; the loss's value is the same."
        console.print(said)
        return
    table = Table("loss", "what it does", "running statistics")
    for kind in LOSSES:
        loss = create({"kind": kind})
        summary = (inspect.getdoc(type(loss)) or "").split("\n\n")[0].replace("\n", " ")
        table.add_row(kind, summary, ", ".join(loss.needs) or "-")
    console.print(table)
    console.print("One in full: margrave losses NAME. Your own: --loss my_module:MyLoss")
