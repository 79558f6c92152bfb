"""Run a command in several processes on this machine."""

from __future__ import annotations

import sys

import typer

from margrave.distributed import current_launch, end_with_launcher, launch


def relaunch(context: typer.Context, devices: int) -> bool:
    """Run this command in several new processes and wait until they end.

    If this process is already one of several, or if one process is enough, nothing is run.

    Args:
        context: the command's context.
        devices: number of processes.

    Returns:
        True if new processes ran the command; False if this process must run it.

    Raises:
        RankError: one of the new processes failed.
    """
    if current_launch().size > 1:
        end_with_launcher()
        return False
    if devices == 1:
        return False
    launch(devices, [sys.executable, "-m", "margrave", *rebuild_command(context)])
    return True


def rebuild_command(context: typer.Context) -> list[str]:
    """Rebuild a command line from the command's context: the words that follow ``margrave``."""
    names_and_options: list[str] = []
    current = context
    while current.parent is not None:
        names_and_options.insert(0, str(current.info_name))
        current = current.parent
    arguments: list[str] = []
    for parameter in context.command.params:
        values = context.params.get(str(parameter.name))
        for value in values if isinstance(values, list | tuple) else [values]:
            if parameter.param_type_name == "argument":
                arguments += [] if value is None else [str(value)]
            elif isinstance(value, bool):
                # A flag has a name for True and may have another for False, such as --no-train.
                flag_names = parameter.opts if value else parameter.secondary_opts
                names_and_options += flag_names[:1]
            elif value is not None:
                names_and_options += [parameter.opts[0], str(value)]
    return [*names_and_options, "--", *arguments]


def local_device(device: str) -> str:
    """Return this process's device: with ``cuda`` and several processes, each has its own GPU.

    >>> local_device("cpu")
    'cpu'
    """
    process = current_launch()
    return f"cuda:{process.local_rank}" if device == "cuda" and process.size > 1 else device
