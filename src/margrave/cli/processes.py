"""Commands whose work several processes of this machine share."""

from __future__ import annotations

import sys

import typer

from margrave.distributed import current_launch, end_with_launcher, launch


def share_out(context: typer.Context, devices: int) -> bool:
    """Run the same command in so many processes, to the end, unless this is one of them.

    Returns:
        Whether that was done, so that nothing is left to do here.

    Raises:
        RankError: one of them failed.
    """
    if current_launch().size > 1:
        end_with_launcher()
        return False
    if devices == 1:
        return False
    launch(devices, [sys.executable, "-m", "margrave", *same_command(context)])
    return True


def same_command(context: typer.Context) -> list[str]:
    """The words after ``margrave`` that lead to this command with these arguments."""
    words: list[str] = []
    above = context
    while above.parent is not None:
        words.insert(0, str(above.info_name))
        above = above.parent
    arguments: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        values = value if isinstance(value, list | tuple) else [value]
        for each in values:
            if parameter.param_type_name == "argument":
                arguments += [] if each is None else [str(each)]
            elif isinstance(each, bool):
                words += parameter.opts[:1] if each else parameter.secondary_opts[:1]
            elif each is not None:
                words += [parameter.opts[0], str(each)]
    return [*words, "--", *arguments]


def own_device(device: str) -> str:
    """The device of this one of several processes: ``cuda`` is one GPU for each.

    >>> own_device("cpu")
    'cpu'
    """
    launched = current_launch()
    return f"cuda:{launched.local_rank}" if device == "cuda" and launched.size > 1 else device
