"""``margrave plan``: memory and time of a training, before it is paid for."""

from typing import Annotated, Any

import typer


def plan(
    classes: Annotated[int, typer.Option(min=1, help="Identities.")],
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes or YAML files, as for `margrave train`."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Training images, for the time of an epoch.")
    ] = 0,
    ranks: Annotated[int, typer.Option(min=1, help="Processes, one per GPU if there are any.")] = 1,
    loss: Annotated[str | None, typer.Option(help="A loss (`margrave losses`).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: training.batch_size=1024.")
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Of a rank in float32; default: measured here."),
    ] = None,
    low_teraflops: Annotated[
        float | None, typer.Option(min=1e-6, help="The same in bfloat16, for the backbone.")
    ] = None,
    memory_bandwidth: Annotated[
        float | None, typer.Option(min=1e-6, help="GB/s of a rank; default: measured here.")
    ] = None,
    network_bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s between ranks.")] = 1.0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default what is here.")
    ] = None,
    head_only: Annotated[bool, typer.Option("--head-only", help="Leave the backbone out.")] = False,
) -> None:
    """Predict a rank's memory and a step's time from the configuration of a training."""
    from dataclasses import replace

    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.config import merge, parse_overrides, read_config
    from margrave.losses import create as create_loss
    from margrave.training.plan import Machine, measure_machine, plan_training

    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device!r}: choices are cpu and cuda")
    overrides: dict[str, Any] = parse_overrides(settings or [])
    if loss is not None:
        overrides = merge({"loss": {"kind": loss}}, overrides)
    # The images need not be here yet.
    config = read_config(
        recipes or [], merge(overrides, {"data": {"train": {"kind": "synthetic"}}})
    )
    given = (teraflops, low_teraflops, memory_bandwidth)
    # What another machine does is not measured here.
    machine = Machine(flops=1, memory_bandwidth=1) if all(given) else measure_machine()
    measured = {
        "flops": None if teraflops is None else 1e12 * teraflops,
        "low_flops": None if low_teraflops is None else 1e12 * low_teraflops,
        "memory_bandwidth": None if memory_bandwidth is None else 1e9 * memory_bandwidth,
        "network_bandwidth": 1e9 * network_bandwidth,
        "device": device,
    }
    machine = replace(machine, **{name: value for name, value in measured.items() if value})
    backbone = None if head_only else config.backbone
    planned = plan_training(
        config.training,
        config.head,
        create_loss(config.loss),
        num_classes=classes,
        machine=machine,
        backbone=backbone,
        image_size=config.data.image_size,
        embedding_size=int(config.backbone.get("embedding_size", 512)),
        num_samples=images,
        ranks=ranks,
    )
    console = Console(highlight=False)
    table = Table("memory of a rank", "GB", title=f"{classes:,} identities on {ranks} ranks")
    for name, value in planned.memory.items():
        table.add_row(name, f"{value / 1e9:.2f}")
    table.add_section()
    table.add_row("[bold]together[/bold]", f"[bold]{planned.bytes / 1e9:.2f}[/bold]")
    console.print(table)
    table = Table("time of a step", "ms")
    for name, value in planned.seconds.items():
        table.add_row(name, f"{1000 * value:,.1f}")
    table.add_section()
    table.add_row("[bold]together[/bold]", f"[bold]{1000 * planned.step_seconds:,.1f}[/bold]")
    table.add_row("arithmetic alone", f"{1000 * planned.floor:,.1f}")
    console.print(table)
    said = (
        f"a rank: {machine.device}, {machine.flops / 1e12:.3g} TFLOP/s, memory "
        f"{machine.memory_bandwidth / 1e9:.3g} GB/s; network {network_bandwidth:g} GB/s; "
        f"batch {config.training.batch_size}, {config.loss['kind']}, {config.head['kind']} head"
    )
    console.print(said, markup=False)
    if images:
        hours = planned.step_seconds * (images // config.training.batch_size) / 3600
        console.print(
            f"an epoch of {images:,} images: {hours:,.2f} hours, all {config.training.epochs}: "
            f"{hours * config.training.epochs:,.1f}"
        )
