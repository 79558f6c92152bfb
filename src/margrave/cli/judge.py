"""``margrave judge``: published protocols over stored features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margrave.cli.options import numbers, whole_numbers, write_output

if TYPE_CHECKING:
    from margrave.cli.console import Console
    from margrave.distributed import World
    from margrave.evaluation import AllToAllResult
    from margrave.inference import FeatureStore

app = typer.Typer(
    no_args_is_help=True,
    help="Judge stored features (margrave embed) by a published protocol, with 95 % intervals.",
)

Features = Annotated[Path, typer.Argument(help="The folder of margrave embed.")]
Resamples = Annotated[
    int, typer.Option(min=0, help="Bootstrap replicates for the intervals; 0 for none.")
]
Device = Annotated[str, typer.Option(help="Where products are computed: cpu, cuda, …")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the results as JSON.")]
Norm = Annotated[bool, typer.Option(help="Keep embeddings' norms (N1) or not (N0).")]
Detector = Annotated[bool, typer.Option(help="Multiply by the detector's score (D1).")]
Devices = Annotated[
    int, typer.Option(min=1, help="Processes on this machine; with --device cuda, a GPU each.")
]
State = Annotated[
    Path | None,
    typer.Option(help="A file to keep the state in; run again to go on after an interruption."),
]


@app.command()
def pairs(
    features: Features,
    pairs: Annotated[
        Path, typer.Argument(help="LFW's pairs.txt, a CSV, 'path path 1', or a .bin set.")
    ],
    resamples: Resamples = 1000,
    output: Output = None,
) -> None:
    """Verification of pairs by LFW's 10-fold protocol."""
    from margrave.inference import judge_pairs

    console, store = _begin(features)
    _show_pairs(console, {pairs.name: judge_pairs(store, pairs, resamples)}, output)


@app.command()
def groups(
    features: Features,
    folder: Annotated[Path, typer.Argument(help="A list of pairs for each group (RFW's txts).")],
    resamples: Resamples = 1000,
    output: Output = None,
) -> None:
    """Pairs of several groups of people: mean, deviation and skewed error ratio (RFW)."""
    from margrave.cli.tables import pairs_notes, pairs_table, percent
    from margrave.inference import judge_groups

    console, store = _begin(features)
    found = judge_groups(store, folder, resamples)
    console.print(pairs_table(found.groups))
    console.print(pairs_notes(found.groups), soft_wrap=True)
    ratio = found.skewed_error_ratio
    console.print(
        f"mean {percent(found.mean)} %, deviation {percent(found.deviation)} points, skewed error "
        f"ratio {'-' if ratio is None else f'{ratio:.2f}'}"
    )
    write_output(output, found.to_json())


@app.command()
def youtube(
    features: Features,
    splits: Annotated[Path, typer.Argument(help="splits.txt of YTF.")],
    resamples: Resamples = 1000,
    output: Output = None,
) -> None:
    """Pairs of videos, their frames pooled (YTF)."""
    from margrave.inference import judge_youtube

    console, store = _begin(features)
    _show_pairs(console, {"YTF": judge_youtube(store, splits, resamples)}, output)


@app.command()
def ijb(
    features: Features,
    files: Annotated[Path, typer.Argument(help="The folder of IJB-B's or IJB-C's lists (meta).")],
    norm: Norm = True,
    detector: Detector = False,
    flip: Annotated[
        bool | None, typer.Option(help="Fuse mirror images (F2) or not (F1); else as stored.")
    ] = None,
    resamples: Resamples = 1000,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """IJB-B and IJB-C: templates 1:1, and open-set 1:N over both galleries."""
    from margrave.cli.progress import counted
    from margrave.cli.tables import open_set_table, templates_table
    from margrave.inference import judge_ijb

    console, store = _begin(features)
    with counted(console, "searching") as progress:
        verified, searched = judge_ijb(
            store,
            files,
            norm=norm,
            detector=detector,
            flip=flip,
            resamples=resamples,
            device=device,
            progress=progress,
        )
    if verified is not None:
        console.print(templates_table(verified))
    if searched is not None:
        console.print(open_set_table(searched))
    if verified is None and searched is None:
        raise ValueError(f"{files} holds neither pairs of templates nor the 1:N lists")
    write_output(
        output,
        {
            "verification": None if verified is None else verified.to_json(),
            "search": None if searched is None else searched.to_json(),
        },
    )


@app.command()
def templates(
    features: Features,
    table: Annotated[
        Path,
        typer.Argument(help="A table: path, template, subject; may have media, score, role."),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="A table: template_a, template_b, same. Without it, and without roles, all pairs."
        ),
    ] = None,
    surveillance: Annotated[
        bool,
        typer.Option(
            "--surveillance", help="Search gallery_1 by IJB-S's rule: ranks and DIR at FAR."
        ),
    ] = False,
    norm: Norm = True,
    detector: Detector = False,
    flip: Annotated[
        bool | None, typer.Option(help="Fuse mirror images (F2) or not (F1); else as stored.")
    ] = None,
    resamples: Resamples = 1000,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Templates of your own: 1:1, open-set 1:N (roles gallery_1, gallery_2, probe), IJB-S."""
    from margrave.cli.progress import counted
    from margrave.cli.tables import (
        all_to_all_table,
        detection_table,
        identification_table,
        open_set_table,
        templates_table,
    )
    from margrave.inference import judge_templates

    console, store = _begin(features)
    with counted(console, "comparing") as progress:
        found = judge_templates(
            store,
            table,
            pairs,
            norm=norm,
            detector=detector,
            flip=flip,
            surveillance=surveillance,
            resamples=resamples,
            device=device,
            progress=progress,
        )
    if found.verification is not None:
        console.print(templates_table(found.verification))
    if found.all_pairs is not None:
        console.print(all_to_all_table(found.all_pairs))
    if found.search is not None:
        console.print(open_set_table(found.search))
    if found.closed is not None:
        console.print(identification_table(found.closed))
        console.print(detection_table(found.surveillance))
    write_output(output, found.to_json())


@app.command()
def identification(
    features: Features,
    files: Annotated[
        Path, typer.Argument(help="TinyFace's Testing_Set, or a CSV: path,identity,role.")
    ],
    ranks: Annotated[str, typer.Option(help="With commas.")] = "1,5,20",
    resamples: Resamples = 1000,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Closed-set search with several mates and distractors (TinyFace)."""
    from margrave.cli.progress import counted
    from margrave.cli.tables import identification_table
    from margrave.inference import judge_identification

    console, store = _begin(features)
    with counted(console, "searching") as progress:
        found = judge_identification(
            store,
            files,
            ranks=whole_numbers("--ranks", ranks),
            resamples=resamples,
            device=device,
            progress=progress,
        )
    console.print(identification_table(found))
    write_output(output, found.to_json())


@app.command()
def megaface(
    context: typer.Context,
    probes: Annotated[Path, typer.Argument(help="Features of FaceScrub's probes.")],
    distractors: Annotated[Path, typer.Argument(help="Features of the distractors.")],
    probe_noise: Annotated[
        Path | None, typer.Option(help="A list of noisy probes (facescrub_noises.txt).")
    ] = None,
    distractor_noise: Annotated[
        Path | None, typer.Option(help="A list of noisy distractors (megaface_noises.txt).")
    ] = None,
    resamples: Resamples = 1000,
    device: Device = "cpu",
    devices: Devices = 1,
    state: State = None,
    output: Output = None,
) -> None:
    """MegaFace challenge 1: rank 1 and 10, and TAR down to FAR 1e-6, against distractors."""
    from margrave.cli.processes import own_device, share_out
    from margrave.cli.progress import counted
    from margrave.distributed import joined_world
    from margrave.inference import judge_megaface

    if share_out(context, devices):
        return
    with joined_world() as world:
        console, store = _begin(probes, world)
        _, others = _begin(distractors, world)
        with counted(console, "comparing") as progress:
            found = judge_megaface(
                store,
                others,
                probe_noise=probe_noise,
                distractor_noise=distractor_noise,
                resamples=resamples,
                device=own_device(device),
                world=world,
                progress=progress,
                state=state,
            )
        _show_everybody(console, found, world, output, state)


@app.command("all-to-all")
def all_to_all(
    context: typer.Context,
    features: Features,
    distractors: Annotated[
        Path | None, typer.Option(help="Features of strangers, compared with everybody.")
    ] = None,
    far: Annotated[
        str | None, typer.Option(help="With commas; else the smallest that there are pairs for.")
    ] = None,
    resamples: Resamples = 1000,
    device: Device = "cpu",
    devices: Devices = 1,
    state: State = None,
    output: Output = None,
) -> None:
    """Everybody with everybody: Trillion-Pairs, MFR and LFR on any labelled set."""
    from margrave.cli.processes import own_device, share_out
    from margrave.cli.progress import counted
    from margrave.distributed import joined_world
    from margrave.inference import judge_all_to_all

    far_targets = None if far is None else numbers("--far", far)
    if share_out(context, devices):
        return
    with joined_world() as world:
        console, store = _begin(features, world)
        others = None if distractors is None else _begin(distractors, world)[1]
        with counted(console, "comparing") as progress:
            found = judge_all_to_all(
                store,
                others,
                far_targets=far_targets,
                resamples=resamples,
                device=own_device(device),
                world=world,
                progress=progress,
                state=state,
            )
        _show_everybody(console, found, world, output, state)


def open_features(console: Console, features: Path, check: bool = True) -> FeatureStore:
    """The store, checked."""
    from margrave.cli.progress import counted
    from margrave.inference import FeatureStore

    with counted(console, "checking features") as progress:
        return FeatureStore(features, verify=check, progress=progress)


def _begin(features: Path, world: World | None = None) -> tuple[Console, FeatureStore]:
    """Of several processes that share the work, the first checks and tells."""
    from margrave.cli.console import Console

    first = world is None or world.rank == 0
    console = Console(highlight=False, quiet=not first)
    return console, open_features(console, features, check=first)


def _show_pairs(console: Console, results: dict[str, Any], output: Path | None) -> None:
    from margrave.cli.tables import pairs_notes, pairs_table

    console.print(pairs_table(results))
    console.print(pairs_notes(results), soft_wrap=True)
    write_output(output, {name: result.to_json() for name, result in results.items()})


def _show_everybody(
    console: Console,
    found: AllToAllResult,
    world: World,
    output: Path | None,
    state: Path | None,
) -> None:
    from margrave.cli.tables import all_to_all_table
    from margrave.distributed import gather_objects
    from margrave.inference import state_of_rank

    console.print(all_to_all_table(found))
    if world.rank == 0:
        write_output(output, found.to_json())
    # What was needed to go on is not needed any more, once the first rank has written the result.
    gather_objects(None, world)
    if state is not None:
        state_of_rank(state, world).unlink(missing_ok=True)
