"""``margrave losses``: list and describe the losses."""

import typer


def losses(context: typer.Context) -> None:
    """List the losses, or show the equation, source and settings of the loss NAME."""
    import inspect

    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.quick import optional_name
    from margrave.losses import LOSSES, create

    name = optional_name(context)
    console = Console(highlight=False)
    if name is not None:
        # Use `create` only for other losses, because it imports pydantic, which is slow.
        loss = LOSSES.get(name)() if name in LOSSES else create({"kind": name})
        # Print the docstring without its examples and without markup.
        text = (inspect.getdoc(type(loss)) or "").split("\n>>> ")[0].rstrip()
        typer.echo(text.replace("`", "").replace("margrave.losses.angles.", ""))
        table = Table("setting", "default", title=f"{name}: --set loss.SETTING=VALUE")
        for setting, value in loss.settings().items():
            table.add_row(setting, str(value))
        console.print(table)
        explanation = (
            "scale: the inverse temperature s of the softmax. straight_through: the gradient "
            "ignores the margin, as in InsightFace's code; the value of the loss is the same. "
            "ignore_negatives_above: leave out negatives whose cosine exceeds this."
        )
        console.print(explanation)
        return
    table = Table("loss", "what it does", "running statistics")
    for kind in LOSSES:
        loss = LOSSES.get(kind)()
        summary = (inspect.getdoc(type(loss)) or "").split("\n\n")[0].replace("\n", " ")
        table.add_row(kind, summary, ", ".join(loss.needs) or "-")
    console.print(table)
    console.print("Details: margrave losses NAME. Your own loss: --loss my_module:MyLoss")
