"""Published protocols over stored features: their own files in, results out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from margrave.data import PairList, read_named_pairs, read_pairs_bin
from margrave.data.protocol_files import (
    TemplatePairs,
    TemplateSubjects,
    facescrub_identity,
    find_ijb_files,
    read_group_pairs,
    read_identification_table,
    read_landmarks,
    read_noise_list,
    read_template_images,
    read_template_pair_table,
    read_template_pairs,
    read_template_subjects,
    read_template_table,
    read_tinyface,
    read_youtube_pairs,
)
from margrave.distributed import World
from margrave.evaluation import (
    NOBODY,
    AllToAllResult,
    DetectionRate,
    Difference,
    IdentificationResult,
    OpenSetResult,
    PairResult,
    Pooling,
    TemplateResult,
    compare_pairs,
    detection_rates,
    evaluate_all_to_all,
    evaluate_identification,
    evaluate_open_set,
    evaluate_pairs,
    evaluate_templates,
    mean_of_galleries,
    pool_templates,
    subjects_of_pairs,
    template_scores,
    unit_rows,
)
from margrave.inference.embedder import Progress
from margrave.inference.feature_store import ChosenRows, FeatureStore
from margrave.inference.file_keeper import FileKeeper, state_of_rank

MEGAFACE_FAR_TARGETS = (1e-4, 1e-5, 1e-6)
NOISE = 1e-3
"""How far a noisy probe is put from its identity's centre, each number either way (MegaFace)."""


@dataclass(frozen=True)
class GroupsResult:
    """Verification of several groups of people, each with pairs of its own (RFW).

    Attributes:
        protocol: the rules.
        groups: each group's verification.
        mean: of the groups' accuracies.
        deviation: their population standard deviation.
        skewed_error_ratio: the largest error over the smallest; None where the smallest is 0.
    """

    protocol: str
    groups: Mapping[str, PairResult]
    mean: float
    deviation: float
    skewed_error_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def judge_pairs(store: FeatureStore, pairs: str | Path, resamples: int = 1000) -> PairResult:
    """LFW's protocol over pairs of stored features.

    Args:
        store: the features.
        pairs: a .bin set whose images the store holds in order, a table (.csv: path_a, path_b,
            same), or a list in LFW's format.
        resamples: bootstrap replicates; 0 for none.

    Raises:
        ValueError: malformed pairs, or images that the store lacks.
    """
    return _judge_pair_list(store, _open_pairs(store, pairs), resamples)


def _open_pairs(store: FeatureStore, pairs: str | Path) -> PairList:
    if str(pairs).lower().endswith(".bin"):
        listed, images = read_pairs_bin(pairs)
        embedded = store.description["images"]
        if embedded.get("content_digest") != images.content_digest:
            raise ValueError(
                f"{store.folder} holds features of {len(store)} images of "
                f"{embedded['source']!r}, not of the {len(images)} in {pairs}; embed that very "
                f"file: margrave embed MODEL {pairs} FEATURES"
            )
        return listed
    return read_named_pairs(pairs, store.names)


def _judge_pair_list(store: FeatureStore, pairs: PairList, resamples: int) -> PairResult:
    first, second, identities = _sides(store, pairs)
    result = evaluate_pairs(first, second, pairs.same, pairs.folds, identities, resamples=resamples)
    code = "F1" if store.flipped is None else "F2"
    return PairResult(**{**vars(result), "protocol": f"{result.protocol}; {code}"})


def _sides(
    store: FeatureStore, pairs: PairList
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(P, D) and (P, D) embeddings of both sides, and (P, 2) identities where they are known."""
    used, place = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    rows = ChosenRows(store.rows, store.readable(used))[0 : len(used)]
    first, second = place.reshape(2, -1)
    identities = np.stack([store.labels[pairs.first], store.labels[pairs.second]], axis=1)
    # Folders need not be identities (RFW's are groups): then they contradict the pairs.
    consistent = ((identities[:, 0] == identities[:, 1]) == pairs.same).all()
    known = bool((identities >= 0).all() and consistent)
    return rows[first], rows[second], identities if known else None


def judge_difference(
    first: FeatureStore,
    second: FeatureStore,
    pairs: str | Path,
    far_targets: Sequence[float] = (1e-2, 1e-3),
    resamples: int = 1000,
) -> tuple[Difference, ...]:
    """Which of two models is better on the same pairs, and whether that means anything.

    Args:
        first: features by one model.
        second: of the same images by the other.
        pairs: as for ``judge_pairs``.
        far_targets: of the true accept rates compared.
        resamples: bootstrap replicates.

    Raises:
        ValueError: as ``judge_pairs``.
    """
    listed = _open_pairs(first, pairs)
    one, other, identities = _sides(first, listed)
    first_distances = np.square(unit_rows(one) - unit_rows(other)).sum(1)
    one, other, _ = _sides(second, _open_pairs(second, pairs))
    return compare_pairs(
        first_distances,
        np.square(unit_rows(one) - unit_rows(other)).sum(1),
        listed.same,
        listed.folds,
        identities,
        far_targets,
        resamples,
    )


def judge_groups(store: FeatureStore, folder: str | Path, resamples: int = 1000) -> GroupsResult:
    """Each group's pairs by LFW's protocol, and how far the groups lie apart (RFW).

    Args:
        store: the features of all groups' images.
        folder: with a list of pairs for each group, see ``read_group_pairs``.
        resamples: bootstrap replicates; 0 for none.

    Source: Wang et al., "Racial Faces in the Wild" (2019).
    """
    lists = read_group_pairs(folder)
    if packed := [path for path in lists.values() if path.suffix == ".bin"]:
        raise ValueError(
            f"{packed[0]} brings its own images: embed each group's .bin and judge it by "
            "margrave judge pairs; groups are lists of pairs of one folder's images"
        )
    groups = {name: judge_pairs(store, path, resamples) for name, path in lists.items()}
    accuracies = np.array([result.accuracy for result in groups.values()])
    errors = 1 - accuracies
    return GroupsResult(
        protocol="LFW 10-fold in each group",
        groups=groups,
        mean=float(accuracies.mean()),
        deviation=float(accuracies.std()),
        skewed_error_ratio=float(errors.max() / errors.min()) if errors.min() > 0 else None,
    )


def judge_ijb(
    store: FeatureStore,
    folder: str | Path,
    *,
    norm: bool = True,
    detector: bool = False,
    flip: bool | None = None,
    resamples: int = 1000,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[TemplateResult | None, OpenSetResult | None]:
    """IJB-B or IJB-C, 1:1 and, where the 1:N files are there, open-set 1:N over both galleries.

    Args:
        store: features of the images, by the names that the files use (``1.jpg``).
        folder: of the official files.
        norm: keep embeddings' norms (N1).
        detector: multiply by the detector's scores (D1).
        flip: fuse mirror images (F2); by default if the store has them.
        resamples: bootstrap replicates; 0 for none.
        device: where products are computed.
        progress: of the searches.

    Raises:
        ValueError: malformed or missing files, images without features.
    """
    files = find_ijb_files(folder)
    members = read_template_images(files.images)
    pooling = Pooling(
        norm=norm, detector=detector, flip=store.flipped is not None if flip is None else flip
    )
    scores = None
    if detector:
        if files.landmarks is None:
            raise ValueError(f"{folder} lacks name_5pts_score.txt, which has the detector's scores")
        landmarks = read_landmarks(files.landmarks)
        score_of = dict(zip(landmarks.names, landmarks.scores.tolist(), strict=True))
        missing = [name for name in members.names if name not in score_of]
        if missing:
            raise ValueError(f"{files.landmarks} has no line for {missing[0]}")
        scores = np.array([score_of[name] for name in members.names])
    numbers, pooled = pool_templates(
        store.embeddings,
        members.templates,
        members.media,
        flipped=store.flipped,
        detector_scores=scores,
        rows=store.rows_of(members.names, files.images),
        pooling=pooling,
    )
    verified = None
    if files.pairs is not None:
        verified = _verify_templates(
            numbers, pooled, read_template_pairs(files.pairs), pooling.code, None, resamples
        )
    if files.gallery_1 is None or files.gallery_2 is None or files.probe is None:
        return verified, None
    galleries = [read_template_subjects(path) for path in (files.gallery_1, files.gallery_2)]
    probe = read_template_subjects(files.probe)
    return verified, _open_set(
        numbers, pooled, galleries, probe, pooling.code, resamples, device, progress
    )


def _verify_templates(
    numbers: np.ndarray,
    pooled: np.ndarray,
    pairs: TemplatePairs,
    code: str,
    subjects: np.ndarray | None,
    resamples: int,
) -> TemplateResult:
    scores = template_scores(numbers, pooled, pairs.first, pairs.second)
    if subjects is None:
        # Their numbers are not told with the pairs, but follow from who is the same as whom.
        subjects = subjects_of_pairs(pairs.first, pairs.second, pairs.same)
    return evaluate_templates(
        scores, pairs.same, code, templates=len(numbers), subjects=subjects, resamples=resamples
    )


def _open_set(
    numbers: np.ndarray,
    pooled: np.ndarray,
    galleries: Sequence[TemplateSubjects],
    probe: TemplateSubjects,
    code: str,
    resamples: int,
    device: str,
    progress: Progress | None,
) -> OpenSetResult:
    def rows(side: TemplateSubjects) -> np.ndarray:
        return pooled[_places(numbers, side.templates)]

    found = mean_of_galleries(
        [
            evaluate_open_set(
                rows(probe),
                probe.subjects,
                rows(gallery),
                gallery.subjects,
                resamples=resamples,
                device=device,
                progress=progress,
            )
            for gallery in galleries
        ]
    )
    return OpenSetResult(**{**vars(found), "protocol": f"{found.protocol}, {code}"})


def _places(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)
    if len(missing := np.flatnonzero(numbers[place] != wanted)):
        raise ValueError(f"template {wanted[missing[0]]} has no images in the list of templates")
    return place


@dataclass(frozen=True)
class TemplatesResult:
    """What a table of templates allows to say.

    Attributes:
        protocol: the rules, with the pooling's code.
        verification: pairs of the list, if one was given.
        all_pairs: every two templates, where there was no list.
        search: open set over the galleries of the table.
        surveillance: detection and identification rates, where asked for (IJB-S).
        closed: closed-set ranks of the surveillance.
    """

    protocol: str
    verification: TemplateResult | None = None
    all_pairs: AllToAllResult | None = None
    search: OpenSetResult | None = None
    surveillance: tuple[DetectionRate, ...] = ()
    closed: IdentificationResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def judge_templates(
    store: FeatureStore,
    table: str | Path,
    pairs: str | Path | None = None,
    *,
    norm: bool = True,
    detector: bool = False,
    flip: bool | None = None,
    surveillance: bool = False,
    resamples: int = 1000,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TemplatesResult:
    """Templates of your own: 1:1, open-set 1:N, or surveillance search, as the table allows.

    Args:
        store: the features.
        table: see ``read_template_table``; its roles make galleries and probes.
        pairs: of templates to verify; without, and without roles, all are compared.
        norm: keep embeddings' norms (N1).
        detector: multiply by the table's scores (D1).
        flip: fuse mirror images (F2); by default if the store has them.
        surveillance: search ``gallery_1`` by IJB-S's rule (rank 1, 5, 10; DIR at FAR 1 and 10 %).
        resamples: bootstrap replicates; 0 for none.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        ValueError: malformed tables, images without features, roles that do not suffice.
    """
    listed = read_template_table(table)
    pooling = Pooling(
        norm=norm, detector=detector, flip=store.flipped is not None if flip is None else flip
    )
    numbers, pooled = pool_templates(
        store.embeddings,
        listed.templates,
        listed.media,
        flipped=store.flipped,
        detector_scores=listed.scores,
        rows=store.rows_of(listed.names, table),
        pooling=pooling,
    )
    # Every row of a template has one subject and one role.
    first_row = np.unique(listed.templates, return_index=True)[1]
    subjects, roles = listed.subjects[first_row], listed.roles[first_row]
    sides = {
        role: TemplateSubjects(numbers[roles == role], subjects[roles == role])
        for role in ("gallery_1", "gallery_2", "probe")
    }
    galleries = [sides[role] for role in ("gallery_1", "gallery_2") if len(sides[role].templates)]
    searching = bool(len(sides["probe"].templates)) and bool(galleries)
    if surveillance and not searching:
        raise ValueError(f"{table} names no gallery_1 or no probe in its column role")
    result: dict[str, Any] = {"protocol": f"templates, {pooling.code}"}
    if pairs is not None:
        listed_pairs = read_template_pair_table(pairs)
        place = [_places(numbers, side) for side in (listed_pairs.first, listed_pairs.second)]
        people = np.stack([subjects[side] for side in place], axis=1)
        odd = np.flatnonzero((people[:, 0] == people[:, 1]) != listed_pairs.same)
        if len(odd):
            raise ValueError(
                f"{pairs}:{odd[0] + 2}: its value of same contradicts the subjects in {table}"
            )
        result["verification"] = _verify_templates(
            numbers, pooled, listed_pairs, pooling.code, people, resamples
        )
    elif not searching:
        result["all_pairs"] = evaluate_all_to_all(
            pooled,
            subjects,
            protocol=f"templates, all pairs, {pooling.code}",
            far_targets=_reachable(len(pooled) * (len(pooled) - 1) // 2),
            resamples=resamples,
            device=device,
            progress=progress,
        )
    if searching and surveillance:
        probe, gallery = sides["probe"], galleries[0]
        search = (
            pooled[_places(numbers, probe.templates)],
            probe.subjects,
            pooled[_places(numbers, gallery.templates)],
            gallery.subjects,
        )
        result["surveillance"] = detection_rates(*search, resamples=resamples, device=device)
        result["closed"] = evaluate_identification(
            *search, ranks=(1, 5, 10), resamples=resamples, device=device
        )
    elif searching:
        result["search"] = _open_set(
            numbers, pooled, galleries, sides["probe"], pooling.code, resamples, device, progress
        )
    return TemplatesResult(**result)


def _reachable(pairs: int) -> tuple[float, ...]:
    """The four smallest powers of ten, from 1e-9 on, that so many impostor pairs can speak of."""
    powers = [10.0**-power for power in range(1, 10)]
    return tuple(far for far in powers if far * pairs >= 1)[-4:] or (0.1,)


def judge_youtube(store: FeatureStore, pairs: str | Path, resamples: int = 1000) -> PairResult:
    """YTF: frames of a video are pooled, pairs of videos judged by LFW's protocol.

    Args:
        store: features of the frames, named ``Person/number/frame.jpg``.
        pairs: ``splits.txt``.
        resamples: bootstrap replicates; 0 for none.

    Raises:
        ValueError: a malformed list, videos without frames in the store.

    Source: Wolf, Hassner, Maoz, "Face recognition in unconstrained videos" (2011), restricted.
    """
    listed = read_youtube_pairs(pairs)
    video_of: dict[str, list[int]] = {}
    for row, name in enumerate(store.names):
        if row not in store.unreadable:
            video_of.setdefault(PurePath(name).parent.as_posix(), []).append(row)
    videos = list(dict.fromkeys((*listed.first, *listed.second)))
    missing = [video for video in videos if video not in video_of]
    if missing:
        raise ValueError(
            f"{pairs} names {len(missing)} videos of which {store.folder} has no frames, "
            f"{missing[0]} the first; its names look like {store.name(0)!r}"
        )
    rows = np.concatenate([video_of[video] for video in videos])
    template = np.repeat(np.arange(len(videos)), [len(video_of[video]) for video in videos])
    pooling = Pooling(flip=store.flipped is not None)
    _, pooled = pool_templates(
        store.embeddings,
        template,
        np.zeros_like(template),
        flipped=store.flipped,
        rows=rows,
        pooling=pooling,
    )
    place = {video: number for number, video in enumerate(videos)}
    first, second = (
        np.array([place[video] for video in side]) for side in (listed.first, listed.second)
    )
    person = np.unique([PurePath(video).parts[0] for video in videos], return_inverse=True)[1]
    identities = np.stack([person[first], person[second]], axis=1)
    consistent = ((identities[:, 0] == identities[:, 1]) == listed.same).all()
    result = evaluate_pairs(
        pooled[first],
        pooled[second],
        listed.same,
        int(listed.fold.max()) + 1,
        identities if consistent else None,
        resamples=resamples,
    )
    protocol = f"{result.protocol}; videos pooled, {pooling.code}"
    return PairResult(**{**vars(result), "protocol": protocol})


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
        kept = [row for row in range(len(distractors)) if row not in distractors.unreadable]
        others = ChosenRows(distractors.rows, np.array(kept))
    if far_targets is None:
        strangers = 0 if others is None else others.shape[0]
        far_targets = _reachable(
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
