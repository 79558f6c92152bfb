"""Evaluation of your own templates: 1:1, open-set 1:N, or surveillance search (IJB-S)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from margrave.evaluation import (
    Result,
    detection_rates,
    evaluate_all_to_all,
    evaluate_identification,
)
from margrave.inference import Features
from margrave.protocols.all_to_all import measurable_targets
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol
from margrave.protocols.pooled_templates import (
    PooledTemplates,
    TemplateSubjects,
    identify_open_set,
    pool,
    verify_templates,
)
from margrave.protocols.template_tables import (
    TemplateTable,
    read_template_pair_table,
    read_template_table,
)

SURVEILLANCE_RANKS = (1, 5, 10)


@PROTOCOLS.register("templates")
class Templates(Protocol):
    """Evaluate your own templates: 1:1 verification, open-set 1:N, or IJB-S's search.

    Templates with the roles gallery_1, gallery_2 and probe are evaluated 1:N. A table of pairs is
    evaluated 1:1. Without roles and without such a table, all pairs of templates are compared.
    """

    positional: ClassVar[tuple[str, ...]] = ("table",)

    table: Path
    """A CSV with the columns path, template, subject and, optionally, media, score and role."""
    pairs: Path | None = None
    """A CSV with the columns template_a, template_b and same."""
    surveillance: bool = False
    """Search gallery_1 by IJB-S's rules; report rank-k rates, and DIR at FAR."""
    norm: bool = True
    """Keep the embeddings' norms (N1), or normalize the embeddings (N0)."""
    detector: bool = False
    """Weight each image by the detector score in the table (D1)."""
    flip: bool | None = None
    """Fuse flipped images (F2) or not (F1); by default F2 if the features contain them."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """One result for 1:1 and one for 1:N, as the tables allow; else one for all pairs."""
        table = read_template_table(self.table)
        if self.detector and np.isnan(table.scores).any():
            unscored = table.names[int(np.isnan(table.scores).argmax())]
            raise ValueError(
                f"{self.table} has no score for {unscored}; add the detector's scores in a column "
                "named score, or leave out --detector"
            )
        pooled = pool(
            features,
            table.names,
            table.templates,
            table.media,
            self.table,
            norm=self.norm,
            flip=self.flip,
            detector_scores=table.scores if self.detector else None,
        )
        # All lines of a template have the same subject and role, so take its first line. The order
        # is that of pooled.numbers: ascending template numbers.
        first_line = np.unique(table.templates, return_index=True)[1]
        subjects, roles = table.subjects[first_line], table.roles[first_line]
        templates_of = {
            role: TemplateSubjects(pooled.numbers[roles == role], subjects[roles == role])
            for role in ("gallery_1", "gallery_2", "probe")
        }
        probe = templates_of.pop("probe")
        galleries = [gallery for gallery in templates_of.values() if len(gallery.templates)]
        can_search = bool(len(probe.templates)) and bool(galleries)
        if self.surveillance and not (can_search and len(templates_of["gallery_1"].templates)):
            raise ValueError(
                f"{self.table} has no template of role gallery_1 or none of role probe; "
                "--surveillance needs both"
            )
        results = []
        if self.pairs is not None:
            results.append(self._verify(pooled, table, subjects, options.resamples))
        elif not can_search:
            results.append(_compare_all_pairs(pooled, subjects, options))
        if can_search and self.surveillance:
            results.append(_search_surveillance(pooled, templates_of["gallery_1"], probe, options))
        elif can_search:
            results.append(identify_open_set(pooled, galleries, probe, options))
        return results

    def _verify(
        self, pooled: PooledTemplates, table: TemplateTable, subjects: np.ndarray, resamples: int
    ) -> Result:
        """Evaluate the table of pairs, whose labels must agree with the templates' subjects."""
        assert self.pairs is not None
        pairs = read_template_pair_table(self.pairs, table.template_numbers)
        sides = (pairs.first, pairs.second)
        pair_subjects = np.stack([subjects[pooled.rows_of(side)] for side in sides], 1)
        contradictory = np.flatnonzero((pair_subjects[:, 0] == pair_subjects[:, 1]) != pairs.same)
        if len(contradictory):
            names = {number: name for name, number in table.template_numbers.items()}
            first, second = (names[int(side[contradictory[0]])] for side in sides)
            raise ValueError(
                f"{self.pairs}: same = {int(pairs.same[contradictory[0]])} for the templates "
                f"{first} and {second} contradicts their subjects in {self.table}; correct one of "
                "the two files"
            )
        return verify_templates(pooled, pairs, pair_subjects, resamples)


def _compare_all_pairs(
    pooled: PooledTemplates, subjects: np.ndarray, options: EvaluationOptions
) -> Result:
    return evaluate_all_to_all(
        pooled.embeddings,
        subjects,
        rules=f"templates, all pairs, {pooled.code}",
        far_targets=measurable_targets(subjects),
        **options.search,
    ).result("all pairs")


def _search_surveillance(
    pooled: PooledTemplates,
    gallery: TemplateSubjects,
    probe: TemplateSubjects,
    options: EvaluationOptions,
) -> Result:
    """Search a gallery by IJB-S's rules: closed-set rank-k rates, and DIR at FAR."""
    probe_and_gallery = (*pooled.select(probe), *pooled.select(gallery))
    detection = detection_rates(*probe_and_gallery, ranks=SURVEILLANCE_RANKS, **options.search)
    closed_set = evaluate_identification(
        *probe_and_gallery, ranks=SURVEILLANCE_RANKS, **options.search
    )
    rules = f"{closed_set.rules}; DIR at FAR; {pooled.code}"
    result = replace(closed_set, rules=rules).result("search")
    figures = [figure for rate in detection for figure in rate.figures()]
    return replace(result, figures=(*result.figures, *figures))
