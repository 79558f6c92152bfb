"""Templates: sets of images of one identity, pooled into one embedding (IJB-B, IJB-C, YTF).

Every result states how images were weighted, as a code such as N1D0F2. N1 keeps the norms of the
embeddings, N0 normalizes the embeddings. D1 multiplies them by the face detector's score, D0 does
not. F2 adds the flipped image's embedding, F1 does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.inputs import as_array, as_rows
from margrave.evaluation.pair_bootstrap import check_identities
from margrave.evaluation.results import Figure, Result
from margrave.evaluation.roc import area_under, check_pairs, nearest_points, roc_curve
from margrave.evaluation.tail_bootstrap import TailIdentities, tail_length
from margrave.files import read_rows
from margrave.search.score_blocks import Rows

IJB_FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ROWS_PER_READ = 4096
# Number of template pairs to score at a time.
_PAIRS_PER_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How images are weighted within their template.

    Attributes:
        norm: True keeps the embedding's norm, which grows with the image's quality (N1).
        detector: True multiplies the embedding by the face detector's score (D1).
        flip: True adds the flipped image's embedding before weighting (F2).

    >>> Pooling().code
    'N1D0F2'
    """

    norm: bool = True
    detector: bool = False
    flip: bool = True

    @property
    def code(self) -> str:
        """The code that results state, such as N1D0F2."""
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
    """Pool the images of each template into one unit embedding.

        t = unit(Σ_media mean_frames(weight · (f + f_flipped)))

    f and f_flipped are the embeddings of an image and of its flipped image. ``pooling`` determines
    the weight and whether f_flipped is added.

    A medium is a still image or a video; its frames are averaged first, so that long videos do not
    dominate. A member is one image in one template; an image may be a member of several templates.
    The embeddings are read once, in order; only the templates are held in memory.

    Args:
        embeddings: (N, D) raw embeddings.
        templates: (M,) number or name of each member's template.
        media: (M,) number or name of each member's medium; all frames of a video have the same.
        flipped: (N, D) raw embeddings of the flipped images, required for F2.
        detector_scores: (M,) the face detector's score of each member, required for D1.
        rows: (M,) index of each member's row in ``embeddings``; by default 0 to M − 1.
        pooling: the weighting; by default N1D0F2, or N1D0F1 without ``flipped``.

    Returns:
        (T,) the templates' numbers or names, ascending, and (T, D) float64 unit embeddings.

    Raises:
        ValueError: lengths differ, ``templates`` or ``media`` is not one-dimensional, a detector
            score is not finite, a row is out of range, a template's sum is zero or not finite, or
            detector scores or flipped embeddings are missing.

    Source: Maze et al., "IARPA Janus Benchmark – C" (2018); InsightFace, eval_ijbc.py.

    >>> numbers, pooled = pool_templates(np.eye(3), np.array([7, 7, 9]), np.array([1, 2, 1]))
    >>> numbers.tolist(), pooled.round(3).tolist()
    ([7, 9], [[0.707, 0.707, 0.0], [0.0, 0.0, 1.0]])
    """
    pooling = pooling or Pooling(flip=flipped is not None)
    embeddings, flipped = as_rows(embeddings), as_rows(flipped)
    templates, media = as_array(templates), as_array(media)
    rows = np.arange(len(templates)) if rows is None else np.asarray(rows)
    if templates.ndim != 1 or media.ndim != 1:
        raise ValueError(
            f"templates and media have shapes {templates.shape} and {media.shape}; pass one "
            "template and one medium per member, each a number or a name"
        )
    member_weights = _member_weights(pooling, detector_scores, len(templates))
    if not len(templates) == len(media) == len(rows) == len(member_weights):
        raise ValueError(
            f"got {len(templates)} templates, {len(media)} media, {len(rows)} rows and "
            f"{len(member_weights)} scores; pass one of each per member"
        )
    count = embeddings.shape[0]
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError(
            f"rows must be between 0 and {count - 1}, got {rows.min()} to {rows.max()}"
        )
    if not pooling.flip:
        flipped = None
    elif flipped is None or flipped.shape != embeddings.shape:
        raise ValueError(
            f"{pooling.code} requires the flipped images' embeddings, of shape "
            f"{embeddings.shape}; embed them too, or pool without them (flip=False)"
        )
    template_ids, template_index = np.unique(templates, return_inverse=True)
    media_ids, medium_index = np.unique(media, return_inverse=True)
    # A medium in two templates counts as two media.
    medium_key = template_index * len(media_ids) + medium_index
    medium_of_member = np.unique(medium_key, return_inverse=True)[1]
    weights = member_weights / np.bincount(medium_of_member)[medium_of_member]
    order = np.argsort(rows, kind="stable")
    sums = torch.zeros(len(template_ids), embeddings.shape[1], dtype=torch.float64)
    # Where the members of each block of rows begin and end in `order`.
    limits = np.searchsorted(rows[order], np.arange(0, count + ROWS_PER_READ, ROWS_PER_READ))
    for start, low, high in zip(range(0, count, ROWS_PER_READ), limits, limits[1:], strict=False):
        if low == high:
            continue
        members = order[low:high]
        members = members[np.argsort(template_index[members], kind="stable")]
        block_templates, offsets = np.unique(template_index[members], return_index=True)
        block = _read_block(embeddings, flipped, start)
        weight = torch.from_numpy(weights[members])
        block_rows = torch.from_numpy(rows[members] - start)
        if not pooling.norm:
            lengths = torch.linalg.vector_norm(block, dim=1)
            weight /= torch.where(lengths > 0, lengths, 1)[block_rows]
        # Images are summed in the embeddings' dtype within a block, and in float64 across blocks.
        block_sums = embedding_bag(
            block_rows,
            block,
            torch.from_numpy(offsets),
            mode="sum",
            per_sample_weights=weight.to(block),
        )
        sums.index_add_(0, torch.from_numpy(block_templates), block_sums.double())
    lengths = sums.norm(dim=1, keepdim=True)
    bad = (~(torch.isfinite(lengths) & (lengths > 0)))[:, 0].nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"the embeddings of {len(bad)} templates sum to zero or are not finite, the first is "
            f"template {template_ids[int(bad[0])]}; check their images' embeddings and scores for "
            "zeros, infinity and NaN"
        )
    return template_ids, (sums / lengths).numpy()


def _read_block(embeddings: Rows, flipped: Rows | None, start: int) -> torch.Tensor:
    """The ``ROWS_PER_READ`` rows from ``start``, with the flipped images' embeddings added."""
    stop = min(start + ROWS_PER_READ, embeddings.shape[0])
    block = _read_tensor(embeddings, start, stop)
    # Not in place: the block may be a view of the caller's array.
    return block if flipped is None else block + _read_tensor(flipped, start, stop)


def _read_tensor(rows: Rows, start: int, stop: int) -> torch.Tensor:
    """The rows from ``start`` to before ``stop``: float64 stays, other dtypes become float32."""
    block = rows[start:stop] if not isinstance(rows, np.ndarray) else read_rows(rows, start, stop)
    values = torch.from_numpy(block)
    return values if values.dtype == torch.float64 else values.float()


def _member_weights(
    pooling: Pooling, detector_scores: np.ndarray | None, members: int
) -> np.ndarray:
    """(members,) the detector scores if the pooling uses them, otherwise ones."""
    if not pooling.detector:
        return np.ones(members)
    if detector_scores is None:
        raise ValueError(
            f"{pooling.code} requires detector_scores; pass them, or pool with detector=False"
        )
    scores = np.asarray(detector_scores, np.float64)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"detector_scores[{bad}] = {scores[bad]} must be finite")
    return scores


@dataclass(frozen=True)
class TemplateResult:
    """The result of a 1:1 verification of templates.

    Attributes:
        rules: the protocol's rules, with the pooling's code.
        templates: number of templates.
        pairs: number of pairs of templates.
        genuine: number of genuine pairs.
        nearest: TAR at the FAR nearest to each target, as in published results; the FAR may exceed
            the target.
        accept_rates: TAR at the largest FAR that does not exceed each target.
        area_under_roc: exact area under the ROC curve.
    """

    rules: str
    templates: int
    pairs: int
    genuine: int
    nearest: tuple[AcceptRate, ...]
    accept_rates: tuple[AcceptRate, ...]
    area_under_roc: float

    def result(self, name: str = "") -> Result:
        """Convert to the common result format.

        Args:
            name: the name of the set of pairs.
        """
        return Result(
            protocol="templates",
            name=name,
            rules=self.rules,
            figures=(
                *(rate.figure() for rate in self.accept_rates),
                *(rate.figure(rule="nearest FAR, as published") for rate in self.nearest),
                Figure(metric="AUC", value=self.area_under_roc, percent=False),
            ),
            counts={"templates": self.templates, "pairs": self.pairs, "genuine": self.genuine},
        )


def template_scores(
    numbers: np.ndarray, pooled: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """(P,) cosines of pairs of templates.

    Args:
        numbers: (T,) the templates' numbers or names, ascending, from ``pool_templates``.
        pooled: (T, D) the templates' unit embeddings, from ``pool_templates``.
        first: (P,) number or name of each pair's first template.
        second: (P,) number or name of each pair's second template.

    Raises:
        ValueError: a pair's template is not among ``numbers``.
    """
    rows_of_sides = []
    for side in (np.asarray(first), np.asarray(second)):
        if not len(numbers):
            raise ValueError("there are no templates")
        rows = np.searchsorted(numbers, side).clip(max=len(numbers) - 1)
        if len(missing := np.flatnonzero(numbers[rows] != side)):
            raise ValueError(
                f"pair {missing[0]} names template {side[missing[0]]}, which has no images"
            )
        rows_of_sides.append(rows)
    first_rows, second_rows = rows_of_sides
    scores = np.empty(len(first_rows))
    for start in range(0, len(scores), _PAIRS_PER_CHUNK):
        chunk = slice(start, start + _PAIRS_PER_CHUNK)
        first_units, second_units = pooled[first_rows[chunk]], pooled[second_rows[chunk]]
        scores[chunk] = np.einsum("ij,ij->i", first_units, second_units)
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
    """TAR over pairs of templates at each FAR target, by two rules for the operating point.

    Published results use the FAR nearest to the target. The other rule uses the largest FAR that
    does not exceed the target.

    Args:
        scores: (P,) scores from ``template_scores``.
        same: (P,) bool, whether each pair is genuine.
        code: the pooling's code, see ``Pooling.code``.
        templates: number of templates, for the result.
        subjects: (P, 2) integers, the identity of each side, for a bootstrap over identities; use
            ``subjects_of_pairs`` if a protocol does not provide them. None resamples pairs.
        far_targets: FAR targets, each in (0, 1).
        resamples: number of bootstrap replicates; 0 for none.
        seed: seed of the bootstrap.

    Raises:
        ValueError: a score is not finite, genuine or impostor pairs are missing, ``subjects``
            contradict ``same``, or a target is not in (0, 1).
    """
    scores, same = check_pairs(scores, same)
    roc = roc_curve(scores, same)
    impostor_pairs = np.flatnonzero(~same)
    ranked_impostors = impostor_pairs[np.argsort(-scores[impostor_pairs], kind="stable")]
    max_allowed = false_accepts_allowed(max(far_targets), len(impostor_pairs))
    tail_pairs = ranked_impostors[: tail_length(max_allowed)]
    identities = None
    if subjects is not None:
        labels = check_identities(subjects, same)
        identities = TailIdentities(
            genuine=labels[same][:, 0],
            tail=labels[tail_pairs],
            occurrences=np.bincount(labels[impostor_pairs].ravel(), minlength=labels.max() + 1),
        )
    not_exceeding = accept_rates(
        scores[same],
        scores[tail_pairs],
        len(impostor_pairs),
        far_targets,
        identities=identities,
        resamples=resamples,
        seed=seed,
    )
    points = nearest_points(roc, far_targets, len(impostor_pairs), int(same.sum()))
    nearest = tuple(
        AcceptRate(
            far_target=float(target),
            far=float(roc.far[point]),
            tar=float(roc.tar[point]),
            threshold=float(roc.thresholds[point]),
            too_few_impostors=false_accepts_allowed(target, len(impostor_pairs)) < 1,
        )
        for target, point in zip(far_targets, points, strict=True)
    )
    return TemplateResult(
        rules=f"templates 1:1, {code}",
        templates=templates,
        pairs=len(same),
        genuine=int(same.sum()),
        nearest=nearest,
        accept_rates=not_exceeding,
        area_under_roc=float(area_under(roc)),
    )


def subjects_of_pairs(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(P, 2) the identity index of each template of each pair, derived from the genuine pairs.

    Templates that genuine pairs connect, directly or through other templates, have the same
    identity. An identity's index is the position of its first template in the ascending list of all
    templates.

    Args:
        first: (P,) number or name of each pair's first template.
        second: (P,) number or name of each pair's second template.
        same: (P,) bool, whether each pair is genuine.

    Raises:
        ValueError: genuine pairs connect the two templates of an impostor pair.

    >>> subjects_of_pairs(np.array([3, 4, 3]), np.array([4, 5, 9]), np.array([True, True, False]))
    array([[0, 0],
           [0, 0],
           [0, 3]])
    """
    numbers, index = np.unique(np.stack([first, second]), return_inverse=True)
    index = index.reshape(2, -1)
    label = np.arange(len(numbers))
    genuine = index[:, np.asarray(same, bool)]
    while True:
        # Connected components: a label is the index of a template of the same identity. Give each
        # template the smallest label among its neighbors, then replace each label by the label of
        # the template that it refers to. Repeat until no label changes.
        lowest = np.minimum(label[genuine[0]], label[genuine[1]])
        merged = label.copy()
        for side in genuine:
            np.minimum.at(merged, side, lowest)
        merged = merged[merged]
        if (merged == label).all():
            break
        label = merged
    subjects = label[index].T
    wrong = np.flatnonzero((subjects[:, 0] == subjects[:, 1]) != np.asarray(same, bool))
    if len(wrong):
        raise ValueError(
            f"pair {wrong[0]} labels templates {first[wrong[0]]} and {second[wrong[0]]} as "
            "different identities, but genuine pairs connect them; correct the list of pairs"
        )
    return subjects
