"""``margrave plan``: predict the memory and time of a training run."""

from typing import Annotated, Any

import typer

from margrave.quantity import quantity


def plan(
    classes: Annotated[int, typer.Option(min=1, help="Number of identities.")],
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes or YAML files, as for `margrave train`."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Number of training images, to predict the time of an epoch.")
    ] = 0,
    ranks: Annotated[int, typer.Option(min=1, help="Number of processes (GPUs).")] = 1,
    loss: Annotated[str | None, typer.Option(help="A loss (`margrave losses`).")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change any setting, such as training.batch_size=1024; repeatable."
        ),
    ] = None,
    teraflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="TFLOP/s of a rank in float32; default: measured here."),
    ] = None,
    bf16_teraflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="TFLOP/s of a rank in bfloat16; default: measured here."),
    ] = None,
    memory_bandwidth: Annotated[
        float | None,
        typer.Option(min=1e-6, help="A rank's memory bandwidth in GB/s; default: measured here."),
    ] = None,
    network_bandwidth: Annotated[
        float, typer.Option(min=1e-6, help="Network bandwidth between ranks in GB/s.")
    ] = 1.0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: CUDA if available.")
    ] = None,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Plan only the head, without the backbone.")
    ] = False,
) -> None:
    """Predict the memory per device and the time per step of a training run."""
    from dataclasses import replace

    import torch
    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.progress import clock
    from margrave.config import merge, parse_overrides, read_config
    from margrave.losses import create as create_loss
    from margrave.training.plan import Machine, measure_machine, plan_training

    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device!r}: choices are cpu and cuda")
    overrides: dict[str, Any] = parse_overrides(settings or [])
    if loss is not None:
        overrides = merge({"loss": {"kind": loss}}, overrides)
    # Use synthetic images, because the training images need not exist yet.
    config = read_config(
        recipes or [], merge(overrides, {"data": {"train": {"kind": "synthetic"}}})
    )
    console = Console(highlight=False)
    if all((teraflops, bf16_teraflops, memory_bandwidth)):
        # Nothing needs to be measured. The speeds of 1 are placeholders, which are replaced below.
        local_device = "cuda" if torch.cuda.is_available() else "cpu"
        machine = Machine(flops=1, memory_bandwidth=1, device=local_device)
    else:
        console.print("measuring this machine, because not all speeds are given")
        machine = measure_machine()
        if device not in (None, machine.device):
            raise ValueError(
                f"--device {device}, but the speeds were measured on {machine.device}; give "
                "--teraflops, --bf16-teraflops and --memory-bandwidth"
            )
    given_properties = {
        "flops": None if teraflops is None else 1e12 * teraflops,
        "bf16_flops": None if bf16_teraflops is None else 1e12 * bf16_teraflops,
        "memory_bandwidth": None if memory_bandwidth is None else 1e9 * memory_bandwidth,
        "network_bandwidth": 1e9 * network_bandwidth,
        "device": device,
    }
    machine = replace(machine, **{name: value for name, value in given_properties.items() if value})
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
    memory_table = Table(
        "memory of each device",
        "GB",
        title=f"{quantity(classes, 'identity')} on {quantity(ranks, 'device')}",
    )
    for purpose, num_bytes in planned.memory.items():
        memory_table.add_row(purpose, f"{num_bytes / 1e9:.2f}")
    memory_table.add_section()
    memory_table.add_row("[bold]total[/bold]", f"[bold]{planned.bytes / 1e9:.2f}[/bold]")
    console.print(memory_table)
    time_table = Table("time of a step", "ms")
    for phase, seconds in planned.seconds.items():
        time_table.add_row(phase, f"{1000 * seconds:,.1f}")
    time_table.add_section()
    time_table.add_row("[bold]total[/bold]", f"[bold]{1000 * planned.step_seconds:,.1f}[/bold]")
    time_table.add_row("lower bound (arithmetic only)", f"{1000 * planned.floor:,.1f}")
    console.print(time_table)
    message = (
        f"each device: {machine.device}, {machine.flops / 1e12:.3g} TFLOP/s in float32, memory "
        f"{machine.memory_bandwidth / 1e9:.3g} GB/s; network {network_bandwidth:g} GB/s; "
        f"batch {config.training.batch_size}, {config.loss['kind']}, {config.head['kind']} head"
    )
    console.print(message, markup=False)
    if images:
        epoch_seconds = planned.step_seconds * (images // config.training.batch_size)
        epochs = config.training.epochs
        console.print(
            f"an epoch of {images:,} images: {clock(epoch_seconds)}; all {epochs} epochs: "
            f"{clock(epochs * epoch_seconds)}"
        )
