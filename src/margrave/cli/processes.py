"""Runs a command in several processes on this machine."""

from __future__ import annotations

import sys

import typer

from margrave.distributed import current_launch, end_with_launcher, launch


def relaunch(context: typer.Context, devices: int) -> bool:
    """Run this command in several processes and wait for them, unless this is one of them.

    Args:
        context: the command's context.
        devices: number of processes.

    Returns:
        whether the processes ran, so that this process has nothing left to do.

    Raises:
        RankError: a process failed.
    """
    if current_launch().size > 1:
        end_with_launcher()
        return False
    if devices == 1:
        return False
    launch(devices, [sys.executable, "-m", "margrave", *same_command(context)])
    return True


def same_command(context: typer.Context) -> list[str]:
    """Rebuild the command line after ``margrave`` for this command with its arguments."""
    words: list[str] = []
    current = context
    while current.parent is not None:
        words.insert(0, str(current.info_name))
        current = current.parent
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
    """This process's device: of several processes with ``cuda``, each has its own GPU.

    >>> own_device("cpu")
    'cpu'
    """
    launched = current_launch()
    return f"cuda:{launched.local_rank}" if device == "cuda" and launched.size > 1 else device
