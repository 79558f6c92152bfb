"""Functions that template protocols share: pooling, 1:1 verification, open-set identification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from margrave.evaluation import (
    Pooling,
    Result,
    evaluate_open_set,
    evaluate_templates,
    mean_of_galleries,
    pool_templates,
    subjects_of_pairs,
    template_scores,
)
from margrave.files.text import malformed, read_lines
from margrave.inference import Features
from margrave.protocols.contract import EvaluationOptions


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """P pairs of templates.

    Attributes:
        first: (P,) int64 number of each pair's first template.
        second: (P,) int64 number of each pair's second template.
        same: (P,) bool, True if both templates show the same subject.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateSubjects:
    """T templates of known subjects.

    Attributes:
        templates: (T,) int64 template numbers, each once, in order of appearance.
        subjects: (T,) int64 subject of each template.
    """

    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class PooledTemplates:
    """T pooled templates.

    Attributes:
        numbers: (T,) the templates' numbers, ascending.
        embeddings: (T, D) unit embeddings.
        code: the code for how images were weighted and fused, such as N1D0F2; see ``Pooling``.
    """

    numbers: np.ndarray
    embeddings: np.ndarray
    code: str

    def rows_of(self, templates: np.ndarray) -> np.ndarray:
        """The row index of each template, given the templates' numbers.

        Raises:
            ValueError: a template has no images.
        """
        rows = np.searchsorted(self.numbers, templates).clip(max=len(self.numbers) - 1)
        if len(missing := np.flatnonzero(self.numbers[rows] != templates)):
            raise ValueError(
                f"template {templates[missing[0]]} has no images in the list of templates"
            )
        return rows

    def select(self, selected: TemplateSubjects) -> tuple[np.ndarray, np.ndarray]:
        """(embeddings, subjects) of some of the templates, such as those of a gallery."""
        return self.embeddings[self.rows_of(selected.templates)], selected.subjects


def pool(
    features: Features,
    names: Sequence[str],
    templates: np.ndarray,
    media: np.ndarray,
    source: Path,
    *,
    norm: bool,
    flip: bool | None,
    detector_scores: np.ndarray | None,
) -> PooledTemplates:
    """Pool features into templates.

    Args:
        features: the images' features.
        names: (N,) the images' names.
        templates: (N,) template of each image.
        media: (N,) medium of each image.
        source: the path of the list of images, for messages.
        norm: True keeps the embeddings' norms (N1); False normalizes the embeddings (N0).
        flip: True fuses flipped images (F2), False does not (F1); None fuses them if the features
            contain them.
        detector_scores: (N,) detector scores to weight images by (D1); None for no weights (D0).

    Raises:
        ValueError: an image has no features, or pooling fails (see ``pool_templates``).
    """
    pooling = Pooling(
        norm=norm,
        detector=detector_scores is not None,
        flip=features.flipped is not None if flip is None else flip,
    )
    numbers, embeddings = pool_templates(
        features.embeddings,
        templates,
        media,
        flipped=features.flipped,
        detector_scores=detector_scores,
        rows=features.rows_of(names, source),
        pooling=pooling,
    )
    return PooledTemplates(numbers, embeddings, pooling.code)


def verify_templates(
    pooled: PooledTemplates, pairs: TemplatePairs, subjects: np.ndarray | None, resamples: int
) -> Result:
    """Evaluate pairs of templates (1:1).

    Args:
        pooled: the templates.
        pairs: the pairs.
        subjects: (P, 2) subjects of each pair's templates; None derives them from the genuine
            pairs.
        resamples: number of bootstrap replicates; 0 for none.
    """
    scores = template_scores(pooled.numbers, pooled.embeddings, pairs.first, pairs.second)
    if subjects is None:
        subjects = subjects_of_pairs(pairs.first, pairs.second, pairs.same)
    return evaluate_templates(
        scores,
        pairs.same,
        pooled.code,
        templates=len(pooled.numbers),
        subjects=subjects,
        resamples=resamples,
    ).result("1:1")


def identify_open_set(
    pooled: PooledTemplates,
    galleries: Sequence[TemplateSubjects],
    probe: TemplateSubjects,
    options: EvaluationOptions,
) -> Result:
    """Evaluate open-set identification of the probes (1:N), averaged over the galleries."""
    mean_rates = mean_of_galleries(
        [
            evaluate_open_set(*pooled.select(probe), *pooled.select(gallery), **options.search)
            for gallery in galleries
        ]
    )
    return replace(mean_rates, rules=f"{mean_rates.rules}, {pooled.code}").result("1:N")


def check_template_pairs(path: str | Path, pairs: TemplatePairs, lines_above: int = 0) -> None:
    """Check that a file labels no pair of templates both genuine and impostor.

    Args:
        path: the file, for messages.
        pairs: the pairs in the order of the file's lines.
        lines_above: the number of lines above the first pair, not counting blank ones.

    Raises:
        ValueError: there are no pairs, or a pair has both labels; the message names both lines.
    """
    if not len(pairs.same):
        raise ValueError(f"{path} holds no pairs of templates; check the file")
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    if 2 * (int(high.max()) + 1) ** 2 >= 2**63:
        # Renumber the templates, so that the keys below fit into int64.
        renumbered = np.unique(np.concatenate([low, high]), return_inverse=True)[1]
        low, high = renumbered[: len(low)], renumbered[len(low) :]
    # A key holds the label in its last bit and the two templates in the other bits.
    keys = 2 * (low * (int(high.max()) + 1) + high) + pairs.same
    ordered = np.sort(keys)
    # A contradictory pair has two keys that differ only in the last bit, so that some of them
    # are adjacent when sorted.
    contradictory = np.flatnonzero(ordered[1:] ^ ordered[:-1] == 1)
    if len(contradictory):
        key = ordered[contradictory[0]]
        # The index of the first pair with either key.
        earlier, later = sorted(int(np.argmax(keys == either)) for either in (key, key ^ 1))
        lines = islice(read_lines(path), lines_above + earlier, None)
        earlier_line_number = next(lines)[0]
        line_number, line = next(islice(lines, later - earlier - 1, None))
        raise malformed(
            path,
            line_number,
            line,
            f"the pair to have the label of line {earlier_line_number}; correct one of the two "
            "lines",
        )
