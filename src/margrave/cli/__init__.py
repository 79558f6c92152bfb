"""The command line: one file per command. Commands import heavy modules only when they run.

Most of these files omit ``from __future__ import annotations``. With it, annotations would be
strings, and Typer, which reads them twice, would have to compile them each time.
"""

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from margrave import __version__
from margrave.cli import evaluate, gallery, keys
from margrave.cli.align import align
from margrave.cli.compare import compare
from margrave.cli.demo import demo
from margrave.cli.doctor import doctor
from margrave.cli.embed import embed
from margrave.cli.enroll import enroll
from margrave.cli.export import export
from margrave.cli.forget import forget
from margrave.cli.identify import identify
from margrave.cli.import_model import import_model
from margrave.cli.lab import lab
from margrave.cli.losses import losses
from margrave.cli.pack import pack
from margrave.cli.plan import plan
from margrave.cli.quick import NAME_ONLY, QuickCommand, QuickGroup
from margrave.cli.recipes import recipes
from margrave.cli.report import report
from margrave.cli.serve import serve
from margrave.cli.study import study
from margrave.cli.threshold import threshold
from margrave.cli.train import train
from margrave.cli.verify import verify

app = typer.Typer(
    cls=QuickGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Face recognition with adaptive margins.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version


app.command(cls=QuickCommand)(demo)
app.command(cls=QuickCommand)(train)
app.add_typer(evaluate.app, name="evaluate")
app.command(cls=QuickCommand)(embed)
app.command(cls=QuickCommand)(compare)
app.command(cls=QuickCommand)(study)
app.command(cls=QuickCommand)(report)
app.command(cls=QuickCommand)(lab)
app.command(cls=QuickCommand)(threshold)
app.command(cls=QuickCommand)(verify)
app.command(cls=QuickCommand)(enroll)
app.command(cls=QuickCommand)(identify)
app.command(cls=QuickCommand)(forget)
app.add_typer(gallery.app, name="gallery")
app.command(cls=QuickCommand)(serve)
app.add_typer(keys.app, name="keys")
app.command("import", cls=QuickCommand)(import_model)
app.command(cls=QuickCommand)(export)
app.command(cls=QuickCommand)(align)
app.command(cls=QuickCommand)(pack)
app.command(cls=QuickCommand)(plan)
app.command(cls=QuickCommand)(doctor)
app.command(cls=QuickCommand, **NAME_ONLY)(losses)
app.command(cls=QuickCommand, **NAME_ONLY)(recipes)


def main() -> None:
    """Run a command.

    Expected errors (invalid input, file errors, a failed rank) are printed as one message without a
    traceback; the exit status is then 1.
    """
    try:
        app()
    except (ValueError, OSError) as error:
        _exit_with(error)
    except RuntimeError as error:
        from margrave.distributed import RankError, as_rank_error

        rank_error = error if isinstance(error, RankError) else as_rank_error(error)
        if rank_error is None:
            raise
        _exit_with(rank_error)


def _exit_with(error: Exception) -> NoReturn:
    """Print an expected error and end the process with exit status 1."""
    from rich.text import Text

    from margrave.cli.console import Console

    if _report_to_launcher(error):
        # Skip Python's cleanup at exit. It would stop torch's threads, which may still wait for
        # another process. Stopping them would abort this process and hide the error.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
    sys.exit(1)


def _report_to_launcher(error: Exception) -> bool:
    """Record the error for the launcher; return True if Margrave's launcher will print it."""
    # Commands that run in several processes have already imported margrave.distributed. Do not
    # import it for the others: it imports torch, which takes seconds.
    if "margrave.distributed" not in sys.modules:
        return False
    from margrave.distributed import current_launch, record_failure

    return current_launch().size > 1 and record_failure(error)
