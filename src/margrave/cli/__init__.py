"""The command line: one file per command, each importing what is heavy only when it runs.

Files of commands evaluate their annotations at once: Typer reads them twice, and would compile
postponed ones each time.
"""

import sys
from typing import Annotated, NoReturn

import typer

from margrave import __version__
from margrave.cli import judge
from margrave.cli.align import align
from margrave.cli.compare import compare
from margrave.cli.demo import demo
from margrave.cli.doctor import doctor
from margrave.cli.embed import embed
from margrave.cli.evaluate import evaluate
from margrave.cli.import_model import import_model
from margrave.cli.losses import losses
from margrave.cli.pack import pack
from margrave.cli.plan import plan
from margrave.cli.quick import NAME_ONLY, QuickCommand, QuickGroup
from margrave.cli.recipes import recipes
from margrave.cli.threshold import threshold
from margrave.cli.train import train
from margrave.cli.verify import verify

app = typer.Typer(
    cls=QuickGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Face recognition with adaptive margins.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    del version


app.command()(demo)
app.command()(train)
app.command()(evaluate)
app.command()(embed)
app.add_typer(judge.app, name="judge")
app.command()(compare)
app.command()(threshold)
app.command()(verify)
app.command("import")(import_model)
app.command()(align)
app.command()(pack)
app.command()(plan)
app.command()(doctor)
app.command(cls=QuickCommand, **NAME_ONLY)(losses)
app.command(cls=QuickCommand, **NAME_ONLY)(recipes)


def main() -> None:
    """Run a command; a user's mistake ends in one message and exit status 1, not in a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        _exit_with(error)
    except RuntimeError as error:
        from margrave.distributed import RankError, lost_touch

        shown = error if isinstance(error, RankError) else lost_touch(error)
        if shown is None:
            raise
        _exit_with(shown)


def _exit_with(error: Exception) -> NoReturn:
    from rich.text import Text

    from margrave.cli.console import Console

    if not _launcher_reports(error):
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
    sys.exit(1)


def _launcher_reports(error: Exception) -> bool:
    """Whether a launcher of ours shows the error, instead of each of its processes."""
    # Commands that several processes share have imported it; for the others torch would be a wait.
    if "margrave.distributed" not in sys.modules:
        return False
    from margrave.distributed import current_launch, record_failure

    return current_launch().size > 1 and record_failure(error)
