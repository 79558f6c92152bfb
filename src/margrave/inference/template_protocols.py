"""Templates of stored features: IJB-B, IJB-C, IJB-S, and tables of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data.protocol_files import (
    TemplatePairs,
    TemplateSubjects,
    find_ijb_files,
    read_landmarks,
    read_template_images,
    read_template_pair_table,
    read_template_pairs,
    read_template_subjects,
    read_template_table,
)
from margrave.evaluation import (
    AllToAllResult,
    DetectionRate,
    IdentificationResult,
    OpenSetResult,
    Pooling,
    TemplateResult,
    detection_rates,
    evaluate_all_to_all,
    evaluate_identification,
    evaluate_open_set,
    evaluate_templates,
    mean_of_galleries,
    pool_templates,
    subjects_of_pairs,
    template_scores,
)
from margrave.inference.embedder import Progress
from margrave.inference.feature_store import FeatureStore
from margrave.inference.search_protocols import reachable_targets


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
    if detector and np.isnan(listed.scores).any():
        bare = listed.names[int(np.isnan(listed.scores).argmax())]
        raise ValueError(
            f"{table} has no score for {bare}; give the detector's scores in a column score, or "
            "leave out --detector"
        )
    numbers, pooled = pool_templates(
        store.embeddings,
        listed.templates,
        listed.media,
        flipped=store.flipped,
        detector_scores=listed.scores if detector else None,
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
            far_targets=reachable_targets(len(pooled) * (len(pooled) - 1) // 2),
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
