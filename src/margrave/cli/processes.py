"""Run a command in several processes on this machine."""

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
        True if the processes ran, so that this process must not run the command itself.

    Raises:
        RankError: a process failed.
    """
    if current_launch().size > 1:
        end_with_launcher()
        return False
    if devices == 1:
        return False
    launch(devices, [sys.executable, "-m", "margrave", *rebuild_command(context)])
    return True


def rebuild_command(context: typer.Context) -> list[str]:
    """The words after ``margrave`` that run the same command with the same arguments."""
    words: list[str] = []
    current = context
    while current.parent is not None:
        words.insert(0, str(current.info_name))
        current = current.parent
    arguments: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if parameter.param_type_name == "argument":
                arguments += [] if item is None else [str(item)]
            elif isinstance(item, bool):
                words += parameter.opts[:1] if item else parameter.secondary_opts[:1]
            elif item is not None:
                words += [parameter.opts[0], str(item)]
    return [*words, "--", *arguments]


def local_device(device: str) -> str:
    """The device of this process; if there are several, each gets its own GPU for ``cuda``.

    >>> local_device("cpu")
    'cpu'
    """
    process = current_launch()
    return f"cuda:{process.local_rank}" if device == "cuda" and process.size > 1 else device
