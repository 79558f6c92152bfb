"""``margrave keys``: manage the API keys of a service."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.cli.quick import QuickCommand, QuickGroup

app = typer.Typer(
    cls=QuickGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Manage the API keys of a service; a running service uses changes without a restart.",
)

FileArgument = Annotated[Path, typer.Argument(help="The key file.")]


@app.command(cls=QuickCommand)
def new(
    file: FileArgument = Path("keys.json"),
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scopes: Annotated[
        str,
        typer.Option(
            help="Permissions, separated by commas: verify, identify, enroll, forget, list, "
            "metrics."
        ),
    ] = "verify,identify,enroll,forget,list",
) -> None:
    """Create a key and print its token, which is not stored anywhere."""
    from margrave.serving import KeyFile

    scope_list = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    key, token = KeyFile(file).new(label, scope_list)
    # Print this to stderr, because scripts read the token from stdout.
    typer.echo(
        f"key {key.id} is stored in {file}; its token is shown only once. Clients send the header "
        "Authorization: Bearer TOKEN",
        err=True,
    )
    typer.echo(token)


@app.command("list", cls=QuickCommand)
def list_keys(file: FileArgument = Path("keys.json")) -> None:
    """List the keys, one per line: id, creation time, scopes, label."""
    from margrave.serving import KeyFile

    for key in KeyFile(file).keys().values():
        typer.echo(f"{key.id}\t{key.created}\t{','.join(key.scopes)}\t{key.label}")


@app.command(cls=QuickCommand)
def rotate(
    key: Annotated[str, typer.Argument(help="The key's id.")],
    file: FileArgument = Path("keys.json"),
) -> None:
    """Replace a key with a new one that has the same label and scopes; print the new token."""
    from margrave.serving import KeyFile

    _, token = KeyFile(file).rotate(key)
    typer.echo(token)


@app.command(cls=QuickCommand)
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id.")],
    file: FileArgument = Path("keys.json"),
) -> None:
    """Revoke a key."""
    from margrave.serving import KeyFile

    typer.echo(f"{KeyFile(file).revoke(key).id} is revoked")
