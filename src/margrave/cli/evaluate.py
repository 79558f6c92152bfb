"""``margrave evaluate PROTOCOL``: evaluate features, or a model on images, by any protocol.

Each protocol has a command, which is generated from the registry of protocols.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margrave.cli.quick import QuickCommand, QuickGroup

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from margrave.cli.console import Console
    from margrave.distributed import World
    from margrave.inference import Features
    from margrave.protocols import Protocol

SOURCE = Annotated[
    Path,
    typer.Argument(
        help="Features (margrave embed); or a model file, run folder or .onnx, with --images."
    ),
]
COMMON: dict[str, tuple[Any, Any]] = {
    "images": (
        Annotated[
            str | None, typer.Option(help="Images for the model to embed: a folder, records, …")
        ],
        None,
    ),
    "keep": (
        Annotated[
            Path | None, typer.Option(help="Save the model's features in this folder for reuse.")
        ],
        None,
    ),
    "fit": (
        Annotated[
            str | None,
            typer.Option(
                help="How to make images square: crop, stretch or pad; default: as in training."
            ),
        ],
        None,
    ),
    "maximum_unreadable": (
        Annotated[int, typer.Option(min=0, help="Skip at most this many unreadable images.")],
        0,
    ),
    "trust_code": (
        Annotated[
            bool,
            typer.Option("--trust-code", help="Import and run custom code that the model names."),
        ],
        False,
    ),
    "resamples": (
        Annotated[
            int,
            typer.Option(
                min=0, help="Number of bootstrap replicates for intervals; 0: no intervals."
            ),
        ],
        1000,
    ),
    "device": (
        Annotated[
            str | None,
            typer.Option(
                help="cpu, cuda, …; default: CUDA, if available, for the model, and the CPU for "
                "comparisons."
            ),
        ],
        None,
    ),
    "output": (
        Annotated[
            Path | None, typer.Option("--output", "-o", help="Write the results to this file.")
        ],
        None,
    ),
}
"""Options of every protocol: name -> annotation and default."""
DISTRIBUTED: dict[str, tuple[Any, Any]] = {
    "devices": (
        Annotated[
            int,
            typer.Option(min=1, help="Number of processes; with --device cuda, one GPU each."),
        ],
        1,
    ),
    "state": (
        Annotated[
            Path | None,
            typer.Option(help="Save the progress in this file; run the command again to resume."),
        ],
        None,
    ),
}
"""Options of the protocols that can run in several processes: name -> annotation and default."""


class ProtocolGroup(QuickGroup):
    """The group of protocol commands.

    A command's name is a registered protocol or the import path ``module:Class`` of a protocol.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the registered protocols."""
        from margrave.protocols import PROTOCOLS

        return list(PROTOCOLS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command for a protocol."""
        from margrave.protocols import PROTOCOLS

        return protocol_command(cmd_name, PROTOCOLS.get(cmd_name))


app = typer.Typer(
    cls=ProtocolGroup,
    no_args_is_help=True,
    subcommand_metavar="PROTOCOL SOURCE [ARGUMENTS]...",
    help="Evaluate features, or a model on images, by a protocol, with 95 % intervals.",
)


def protocol_command(name: str, protocol: type["Protocol"]) -> Any:
    """Create a protocol's command.

    The protocol's settings and the common options become the command's arguments and options.
    """
    fields: Mapping[str, FieldInfo] = protocol.model_fields
    arguments = [setting for setting in fields if setting in protocol.positional]
    options = [setting for setting in fields if setting not in arguments]
    common = COMMON | (DISTRIBUTED if protocol.distributed else {})
    parameters: dict[str, tuple[Any, Any]] = {
        "context": (typer.Context, inspect.Parameter.empty),
        "source": (SOURCE, inspect.Parameter.empty),
        **{setting: _parameter(setting, fields[setting], positional=True) for setting in arguments},
        **{setting: _parameter(setting, fields[setting], positional=False) for setting in options},
        **common,
    }

    def run(context: typer.Context, source: Path, **values: Any) -> None:
        settings = {
            setting: _parse_value(setting, values.pop(setting), fields[setting])
            for setting in fields
        }
        run_protocol(context, name, source, settings, **values)

    parameter_kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [
        inspect.Parameter(parameter, parameter_kind, annotation=annotation, default=default)
        for parameter, (annotation, default) in parameters.items()
    ]
    run.__signature__ = inspect.Signature(signature)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {
        parameter: annotation for parameter, (annotation, _) in parameters.items()
    }
    run.__doc__ = inspect.getdoc(protocol)
    command_app = typer.Typer(add_completion=False)
    command_app.command(name, cls=QuickCommand)(run)
    return typer.main.get_command(command_app)


def _parameter(name: str, field: "FieldInfo", positional: bool) -> tuple[Any, Any]:
    """Return the annotation and the default of a setting's argument or option."""
    annotation, default = field.annotation, inspect.Parameter.empty
    if not field.is_required():
        default = field.default
    if _is_list(field):
        # On the command line, a list is a text of numbers separated by commas.
        text = ",".join(f"{number:g}" for number in field.default or ())
        annotation, default = str | None, text or None
    if positional:
        return Annotated[annotation, typer.Argument(help=field.description)], default
    # A flag that is off by default needs no option to turn it off.
    names = [f"--{name.replace('_', '-')}"] if default is False else []
    return Annotated[annotation, typer.Option(*names, help=field.description)], default


def _is_list(field: "FieldInfo") -> bool:
    """Whether a setting is a list of numbers."""
    return "tuple" in str(field.annotation)


def _parse_value(name: str, value: Any, field: "FieldInfo") -> Any:
    """Convert a command-line value to a setting's value."""
    if not _is_list(field) or value is None:
        return value
    from margrave.cli.options import parse_numbers

    return parse_numbers(f"--{name.replace('_', '-')}", value)


def run_protocol(
    context: typer.Context,
    name: str,
    source: Path,
    settings: Mapping[str, Any],
    *,
    resamples: int,
    device: str | None,
    output: Path | None,
    devices: int = 1,
    state: Path | None = None,
    **embedding_options: Any,
) -> None:
    """Run the evaluation, print the results and, with --output, write them.

    Args:
        context: the command's context.
        name: the protocol's name or import path.
        source: the argument SOURCE.
        settings: the protocol's settings.
        resamples, device, output, devices, state: the options of these names.
        embedding_options: the other options in COMMON, which `open_or_embed_features` takes.
    """
    from margrave.cli.console import Console
    from margrave.cli.options import show_results, write_output
    from margrave.cli.processes import local_device, relaunch
    from margrave.cli.progress import show_progress
    from margrave.distributed import gather_objects, joined_world
    from margrave.inference import is_feature_store
    from margrave.protocols import PROTOCOLS, EvaluationOptions, evaluate
    from margrave.search import rank_state_path

    protocol = PROTOCOLS.create({"kind": name, **settings})
    if devices > 1 and not is_feature_store(source):
        raise ValueError("--devices needs stored features; create them first with margrave embed")
    if relaunch(context, devices):
        return  # the new processes have run the evaluation
    with joined_world() as world:
        console = Console(highlight=False, quiet=world.rank > 0)
        features = open_or_embed_features(
            console, protocol, source, device, world, **embedding_options
        )
        with show_progress(console, "comparing") as progress:
            options = EvaluationOptions(
                resamples=resamples,
                device=local_device(device or "cpu"),
                world=world,
                progress=progress,
                state=state,
            )
            results = evaluate(protocol, features, options)
        show_results(console, results)
        if world.rank == 0:
            write_output(console, output, results)
        # Wait until the first rank has written the results. Then the state files are no longer
        # needed.
        gather_objects(None, world)
        if state is not None:
            rank_state_path(state, world).unlink(missing_ok=True)


def open_or_embed_features(
    console: "Console",
    protocol: "Protocol",
    source: Path,
    device: str | None,
    world: "World",
    *,
    images: str | None,
    keep: Path | None,
    fit: str | None,
    maximum_unreadable: int,
    trust_code: bool,
) -> "Features":
    """Return stored features, or embed images with a model.

    Args:
        console: shows progress and warnings.
        protocol: opens the images that it needs.
        source: stored features or a model.
        device: the model's device; None uses CUDA if available.
        world: the processes that run this command, with this one's rank.
        images, keep, fit, maximum_unreadable, trust_code: the options of these names.
    """
    from margrave.cli.options import check_fit, open_features, warn_about_photos
    from margrave.cli.progress import show_progress
    from margrave.inference import embed_features, embed_to_store, is_feature_store, load_embedder

    if is_feature_store(source):
        if images is not None:
            raise ValueError(f"{source} already contains features; leave out --images")
        # If there are several processes, only the first verifies checksums.
        return open_features(console, source, verify=world.rank == 0)
    embedder = load_embedder(source, fit=check_fit(fit), device=device, trust_code=trust_code)
    faces = protocol.open_images(images, embedder.card.image_size)
    warn_about_photos(console, faces, embedder.card.image_size)
    arguments: dict[str, Any] = {"model": str(source), "source": Path(images or "").name}
    with show_progress(console, "embedding") as progress:
        arguments |= {"maximum_unreadable": maximum_unreadable, "progress": progress}
        if keep is not None:
            return embed_to_store(embedder, faces, keep, **arguments)
        return embed_features(embedder, faces, **arguments)
