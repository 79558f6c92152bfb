"""Templates: sets of images of one person, pooled into one embedding (IJB-B, IJB-C, YTF).

Every figure carries a code of how images were weighed: N1 keeps the embeddings' norms (N0 makes
unit vectors of them), D1 multiplies by the face detector's score, F2 adds the mirror image's
embedding (F1 does without).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.score_blocks import Rows
from margrave.evaluation.tail_bootstrap import TailIdentities, tail_length
from margrave.evaluation.verification import area_under, check_pairs, nearest_points, roc_curve
from margrave.files import read_rows

IJB_FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How much each image counts within its template.

    Attributes:
        norm: keep the embedding's length, which grows with the image's quality (N1).
        detector: multiply by the detector's score (D1).
        flip: add the mirror image's embedding first (F2).

    >>> Pooling().code
    'N1D0F2'
    """

    norm: bool = True
    detector: bool = False
    flip: bool = True

    @property
    def code(self) -> str:
        """As printed beside every figure."""
        return f"N{int(self.norm)}D{int(self.detector)}F{1 + int(self.flip)}"


def pool_templates(
    embeddings: Rows,
    templates: np.ndarray,
    media: np.ndarray,
    *,
    flipped: Rows | None = None,
    detector_scores: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    pooling: Pooling | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One unit embedding per template: media are means of their frames, templates sums of media.

        t = unit(Σ_media mean_frames(weight · (f + f_flipped)))

    Reads the embeddings once, in order, and holds the templates alone.

    Args:
        embeddings: (N, D) raw.
        templates: (M,) integers, the template of each member.
        media: (M,) integers; members of one template with one number are frames of one medium.
        flipped: (N, D) of the mirror images, for F2.
        detector_scores: (M,) for D1.
        rows: (M,) which embedding each member is; by default the m-th.
        pooling: by default N1D0F2, or N1D0F1 without ``flipped``.

    Returns:
        (T,) the templates' numbers, ascending, and (T, D) float64 unit embeddings.

    Raises:
        ValueError: lengths that disagree, weights that are not finite, members that have no
            embedding, templates that cancel to nothing, missing scores or mirror images.

    Source: Maze et al., "IARPA Janus Benchmark – C" (2018); InsightFace, eval_ijbc.py.

    >>> numbers, pooled = pool_templates(np.eye(3), np.array([7, 7, 9]), np.array([1, 2, 1]))
    >>> numbers.tolist(), pooled.round(3).tolist()
    ([7, 9], [[0.707, 0.707, 0.0], [0.0, 0.0, 1.0]])
    """
    pooling = pooling or Pooling(flip=flipped is not None)
    templates, media = np.asarray(templates), np.asarray(media)
    rows = np.arange(len(templates)) if rows is None else np.asarray(rows)
    scores = _weights(pooling, detector_scores, len(templates))
    if not len(templates) == len(media) == len(rows) == len(scores):
        raise ValueError(
            f"{len(templates)} templates, {len(media)} media, {len(rows)} rows and {len(scores)} "
            "scores; give one of each per member"
        )
    count = embeddings.shape[0]
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError(f"members refer to rows {rows.min()} to {rows.max()} of {count}")
    mirrored = flipped if pooling.flip else None
    if pooling.flip and (flipped is None or flipped.shape != embeddings.shape):
        raise ValueError(
            f"{pooling.code} adds mirror images' embeddings of shape {embeddings.shape}; "
            "embed them too, or pool without (flip=False)"
        )
    numbers, template = np.unique(templates, return_inverse=True)
    media_numbers, medium = np.unique(media, return_inverse=True)
    medium = np.unique(template * len(media_numbers) + medium, return_inverse=True)[1]
    weights = scores / np.bincount(medium)[medium]
    order = np.argsort(rows, kind="stable")
    sums = torch.zeros(len(numbers), embeddings.shape[1], dtype=torch.float64)
    ends = np.searchsorted(rows[order], np.arange(0, count + ROWS_AT_ONCE, ROWS_AT_ONCE))
    for start, begin, end in zip(range(0, count, ROWS_AT_ONCE), ends, ends[1:], strict=False):
        if begin == end:
            continue
        members = order[begin:end]
        members = members[np.argsort(template[members], kind="stable")]
        pooled, firsts = np.unique(template[members], return_index=True)
        block = _read(embeddings, mirrored, start)
        weight = torch.from_numpy(weights[members])
        within = torch.from_numpy(rows[members] - start)
        if not pooling.norm:
            lengths = torch.linalg.vector_norm(block, dim=1)
            weight /= torch.where(lengths > 0, lengths, 1)[within]
        # A template's images of one block are added in the images' own type, its blocks in float64.
        part = embedding_bag(
            within,
            block,
            torch.from_numpy(firsts),
            mode="sum",
            per_sample_weights=weight.to(block),
        )
        sums.index_add_(0, torch.from_numpy(pooled), part.double())
    lengths = sums.norm(dim=1, keepdim=True)
    bad = (~(torch.isfinite(lengths) & (lengths > 0)))[:, 0].nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} templates have no direction, the first is {numbers[int(bad[0])]}; their "
            "images' embeddings or scores are zero, infinite or NaN"
        )
    return numbers, (sums / lengths).numpy()


def _read(embeddings: Rows, mirrored: Rows | None, start: int) -> torch.Tensor:
    """A block of rows, mirror images added."""
    stop = min(start + ROWS_AT_ONCE, embeddings.shape[0])
    block = _tensor(embeddings, start, stop)
    # Added anew: the first may be a view of what was given.
    return block if mirrored is None else block + _tensor(mirrored, start, stop)


def _tensor(rows: Rows, start: int, stop: int) -> torch.Tensor:
    part = rows[start:stop] if not isinstance(rows, np.ndarray) else read_rows(rows, start, stop)
    values = torch.from_numpy(part)
    return values if values.dtype == torch.float64 else values.float()


def _weights(pooling: Pooling, detector_scores: np.ndarray | None, members: int) -> np.ndarray:
    if not pooling.detector:
        return np.ones(members)
    if detector_scores is None:
        raise ValueError(f"{pooling.code} multiplies by the detector's scores; give them")
    scores = np.asarray(detector_scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"detector score {np.flatnonzero(~np.isfinite(scores))[0]} is not finite")
    return scores


@dataclass(frozen=True)
class TemplateResult:
    """What a 1:1 verification of templates found.

    Attributes:
        protocol: the rules, with the pooling's code.
        templates: how many.
        pairs: how many pairs of templates.
        genuine: how many show one person.
        nearest: TAR where the FAR is nearest to each target, as published figures have it: the
            realised FAR may exceed the target.
        accept_rates: TAR where the FAR does not exceed the target.
        area_under_roc: exact.
    """

    protocol: str
    templates: int
    pairs: int
    genuine: int
    nearest: tuple[AcceptRate, ...]
    accept_rates: tuple[AcceptRate, ...]
    area_under_roc: float

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def template_scores(
    numbers: np.ndarray, pooled: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """(P,) cosines of pairs of templates, by their numbers.

    Raises:
        ValueError: a template that was not pooled, named.
    """
    positions = []
    for wanted in (np.asarray(first), np.asarray(second)):
        place = np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)
        if len(missing := np.flatnonzero(numbers[place] != wanted)):
            raise ValueError(
                f"pair {missing[0]} names template {wanted[missing[0]]}, which has no images"
            )
        positions.append(place)
    scores = np.empty(len(positions[0]))
    for start in range(0, len(scores), 1 << 16):
        part = slice(start, start + (1 << 16))
        scores[part] = np.einsum("ij,ij->i", pooled[positions[0][part]], pooled[positions[1][part]])
    return scores


def evaluate_templates(
    scores: np.ndarray,
    same: np.ndarray,
    code: str,
    *,
    templates: int = 0,
    subjects: np.ndarray | None = None,
    far_targets: Sequence[float] = IJB_FAR_TARGETS,
    resamples: int = 1000,
    seed: int = 0,
) -> TemplateResult:
    """TAR at FAR over pairs of templates, by the published rule and by the strict one.

    Args:
        scores: (P,) from ``template_scores``.
        same: (P,) bool.
        code: the pooling's, see ``Pooling.code``.
        templates: how many there are, for the record.
        subjects: (P, 2) integers, the person of each side, for intervals over persons; see
            ``subjects_of_pairs`` where a protocol does not tell them. None resamples pairs.
        far_targets: each in (0, 1).
        resamples: bootstrap replicates; 0 for none.
        seed: of the replicates.

    Raises:
        ValueError: scores that are not finite, one class only, a target outside (0, 1).
    """
    scores, same = check_pairs(scores, same)
    roc = roc_curve(scores, same)
    impostors = np.flatnonzero(~same)
    ranked = impostors[np.argsort(-scores[impostors], kind="stable")]
    most = false_accepts_allowed(max(far_targets), len(impostors))
    tail = ranked[: tail_length(most)]
    identities = None
    if subjects is not None:
        people = np.unique(subjects, return_inverse=True)[1].reshape(-1, 2)
        identities = TailIdentities(
            genuine=people[same][:, 0],
            tail=people[tail],
            images=np.bincount(people[impostors].ravel(), minlength=people.max() + 1),
        )
    strict = accept_rates(
        scores[same],
        scores[tail],
        len(impostors),
        far_targets,
        identities=identities,
        resamples=resamples,
        seed=seed,
    )
    points = nearest_points(roc, far_targets, len(impostors), int(same.sum()))
    nearest = tuple(
        AcceptRate(
            far_target=float(target),
            far=float(roc.far[point]),
            tar=float(roc.tar[point]),
            threshold=float(roc.scores[point]),
            too_few_impostors=target * len(impostors) < 1,
        )
        for target, point in zip(far_targets, points, strict=True)
    )
    return TemplateResult(
        protocol=f"templates 1:1, {code}",
        templates=templates,
        pairs=len(same),
        genuine=int(same.sum()),
        nearest=nearest,
        accept_rates=strict,
        area_under_roc=float(area_under(roc)),
    )


def subjects_of_pairs(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(P, 2) numbers of persons: templates that genuine pairs join, directly or not, are one.

    Args:
        first: (P,) template of one side.
        second: (P,) of the other.
        same: (P,) bool.

    Raises:
        ValueError: an impostor pair between templates that genuine pairs join.

    >>> subjects_of_pairs(np.array([3, 4, 3]), np.array([4, 5, 9]), np.array([True, True, False]))
    array([[0, 0],
           [0, 0],
           [0, 3]])
    """
    numbers, place = np.unique(np.stack([first, second]), return_inverse=True)
    place = place.reshape(2, -1)
    person = np.arange(len(numbers))
    genuine = place[:, np.asarray(same, bool)]
    while True:
        # Everybody takes the smallest number among neighbours, then their neighbour's own.
        lowest = np.minimum(person[genuine[0]], person[genuine[1]])
        joined = person.copy()
        for side in genuine:
            np.minimum.at(joined, side, lowest)
        joined = joined[joined]
        if (joined == person).all():
            break
        person = joined
    found = person[place].T
    odd = np.flatnonzero((found[:, 0] == found[:, 1]) != np.asarray(same, bool))
    if len(odd):
        raise ValueError(
            f"pair {odd[0]} calls templates {first[odd[0]]} and {second[odd[0]]} different people, "
            "but other pairs join them; correct the list"
        )
    return found
