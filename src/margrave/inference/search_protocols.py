"""Stored features among others: TinyFace, MegaFace, and everybody with everybody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from margrave.data.protocol_files import (
    facescrub_identity,
    read_identification_table,
    read_noise_list,
    read_tinyface,
)
from margrave.distributed import World
from margrave.evaluation import (
    NOBODY,
    AllToAllResult,
    IdentificationResult,
    evaluate_all_to_all,
    evaluate_identification,
    unit_rows,
)
from margrave.inference.embedder import Progress
from margrave.inference.feature_store import ChosenRows, FeatureStore
from margrave.inference.file_keeper import FileKeeper, state_of_rank

MEGAFACE_FAR_TARGETS = (1e-4, 1e-5, 1e-6)
NOISE = 1e-3
"""How far a noisy probe is put from its identity's centre, each number either way (MegaFace)."""


def reachable_targets(pairs: int) -> tuple[float, ...]:
    """The four smallest powers of ten, from 1e-9 on, that so many impostor pairs can speak of."""
    powers = [10.0**-power for power in range(1, 10)]
    return tuple(far for far in powers if far * pairs >= 1)[-4:] or (0.1,)


def judge_identification(
    store: FeatureStore,
    files: str | Path,
    *,
    ranks: Sequence[int] = (1, 5, 20),
    resamples: int = 1000,
    device: str = "cpu",
    progress: Progress | None = None,
) -> IdentificationResult:
    """TinyFace, or a table of your own: probes against a gallery with distractors.

    Args:
        store: the features, by the names that the files use.
        files: TinyFace's folder (Testing_Set), or a table (path, identity, role).
        ranks: of the cumulative match characteristic.
        resamples: bootstrap replicates; 0 for none.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).
    """
    files = Path(files)
    if files.is_dir():
        listed = read_tinyface(files)
        probes, probe_labels = listed.probes, listed.probe_labels
        gallery = (*listed.gallery, *listed.distractors)
        nobody = np.full(len(listed.distractors), NOBODY)
        gallery_labels = np.concatenate([listed.gallery_labels, nobody])
    else:
        table = read_identification_table(files)
        names = np.array(table.names, dtype=object)
        is_probe, is_distractor = table.roles == "probe", table.roles == "distractor"
        probes, probe_labels = names[is_probe].tolist(), table.identities[is_probe]
        gallery = names[~is_probe].tolist()
        gallery_labels = np.where(is_distractor, NOBODY, table.identities)[~is_probe]
    return evaluate_identification(
        ChosenRows(store.rows, store.rows_of(probes, files)),
        probe_labels,
        ChosenRows(store.rows, store.rows_of(gallery, files)),
        gallery_labels,
        ranks=ranks,
        resamples=resamples,
        device=device,
        progress=progress,
    )


def judge_megaface(
    probes: FeatureStore,
    distractors: FeatureStore,
    *,
    probe_noise: str | Path | None = None,
    distractor_noise: str | Path | None = None,
    seed: int = 0,
    resamples: int = 1000,
    device: str = "cpu",
    world: World | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> AllToAllResult:
    """MegaFace challenge 1: FaceScrub probes against a million distractors.

    Noisy probes are put beside their identity's centre and noisy distractors left out, as the
    cleaned lists of InsightFace are used.

    Args:
        probes: features of FaceScrub's probes.
        distractors: features of the distractors.
        probe_noise: a list of noisy probes' file names.
        distractor_noise: a list of noisy distractors' paths.
        seed: of the noise and of the bootstrap.
        resamples: bootstrap replicates; 0 for none.
        device: where products are computed.
        world: ranks that share the work.
        progress: called with (comparisons done, comparisons in all).
        state: a file where an interrupted evaluation leaves its state.
    """
    probes.check_comparable(distractors)
    labels = probes.labels
    if (labels < 0).any():
        labels = np.unique(
            [facescrub_identity(name) for name in probes.names], return_inverse=True
        )[1]
    rows = unit_rows(probes.rows[0 : len(probes)])
    noise: list[list[str]] = []
    if probe_noise is not None:
        noisy = read_noise_list(probe_noise)
        noise.append(sorted(noisy))
        bad = np.array([PurePath(name).name in noisy or name in noisy for name in probes.names])
        _check_noise(probe_noise, noisy, bad, probes)
        rows = _beside_centres(rows, labels, bad, np.random.default_rng(seed))
    clean = np.array([row not in distractors.unreadable for row in range(len(distractors))])
    if distractor_noise is not None:
        noisy = read_noise_list(distractor_noise)
        noise.append(sorted(noisy))
        bad = np.array([name in noisy for name in distractors.names])
        _check_noise(distractor_noise, noisy, bad, distractors)
        clean &= ~bad
    chosen = ChosenRows(distractors.rows, np.flatnonzero(clean))
    return evaluate_all_to_all(
        rows.astype(np.float32),
        labels,
        chosen,
        protocol="MegaFace challenge 1",
        own_impostors=False,
        far_targets=MEGAFACE_FAR_TARGETS,
        ranks=(1, 10),
        resamples=resamples,
        seed=seed,
        device=device,
        world=world,
        progress=progress,
        keeper=_keeper(state, ["megaface", seed, noise], world, probes, distractors),
    )


def _check_noise(
    path: str | Path, noisy: frozenset[str], bad: np.ndarray, store: FeatureStore
) -> None:
    """A list that names none of the images was written for others."""
    if noisy and not bad.any():
        raise ValueError(
            f"{path} names none of the images of {store.folder}: it has {min(noisy)!r}, these are "
            f"like {store.name(0)!r}; embed the folder that its names are relative to"
        )


def _beside_centres(
    rows: np.ndarray, labels: np.ndarray, noisy: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Unit rows whose noisy ones lie beside the centre of their identity's clean ones."""
    rows = rows.copy()
    for label in np.unique(labels[noisy]):
        clean = rows[(labels == label) & ~noisy]
        if not len(clean):
            raise ValueError(f"all images of identity {label} are noisy; it has no centre")
        places = np.flatnonzero((labels == label) & noisy)
        moved = clean.mean(0) + generator.uniform(-NOISE, NOISE, (len(places), rows.shape[1]))
        rows[places] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return rows


def judge_all_to_all(
    store: FeatureStore,
    distractors: FeatureStore | None = None,
    *,
    far_targets: Sequence[float] | None = None,
    resamples: int = 1000,
    device: str = "cpu",
    world: World | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> AllToAllResult:
    """Every two labelled faces, and each of them with every distractor.

    Args:
        store: labelled features.
        distractors: features of strangers.
        far_targets: by default the four smallest powers of ten that there are impostor pairs for.
        resamples: bootstrap replicates; 0 for none.
        device: where products are computed.
        world: ranks that share the work.
        progress: called with (comparisons done, comparisons in all).
        state: a file where an interrupted evaluation leaves its state.

    Raises:
        ValueError: images without identity, as ``evaluate_all_to_all``.
    """
    readable = np.array([row not in store.unreadable for row in range(len(store))])
    labelled = np.flatnonzero(readable & (store.labels >= 0))
    if not len(labelled):
        raise ValueError(f"{store.folder} holds no labelled images; give a folder of identities")
    others = None
    if distractors is not None:
        store.check_comparable(distractors)
        kept = [row for row in range(len(distractors)) if row not in distractors.unreadable]
        others = ChosenRows(distractors.rows, np.array(kept))
    if far_targets is None:
        strangers = 0 if others is None else others.shape[0]
        far_targets = reachable_targets(
            len(labelled) * (len(labelled) - 1) // 2 + len(labelled) * strangers
        )
    return evaluate_all_to_all(
        ChosenRows(store.rows, labelled),
        store.labels[labelled],
        others,
        far_targets=far_targets,
        resamples=resamples,
        device=device,
        world=world,
        progress=progress,
        keeper=_keeper(state, ["all-to-all", list(far_targets)], world, store, distractors),
    )


def _keeper(
    path: str | Path | None,
    settings: list[Any],
    world: World | None,
    *stores: FeatureStore | None,
) -> FileKeeper | None:
    """A keeper for exactly this evaluation."""
    if path is None:
        return None
    world = world or World()
    features = [store.digest for store in stores if store is not None]
    what = json.dumps([settings, world.size, features])
    return FileKeeper(state_of_rank(path, world), what)
