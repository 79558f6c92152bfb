"""Examines a model: its weights and its embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from margrave.data import FaceImages
from margrave.doctor.embedding_checks import (
    better_than_pixels,
    check_collapse,
    check_preparation,
)
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.model_opening import open_for_examination
from margrave.models import ImportOptions
from margrave.progress import Progress
from margrave.synthetic import SyntheticFaces


def examine_model(
    path: str | Path,
    images: FaceImages | None = None,
    max_pairs: int = 400,
    trust_code: bool = False,
    progress: Progress = lambda done, total: None,
    options: ImportOptions | None = None,
) -> list[Finding]:
    """Find the faults of a model file or another project's checkpoint, worst first.

    Args:
        path: a Margrave model file, a run's folder, a checkpoint of a supported project, or an ONNX
            model. The file's kind is detected from its content.
        images: labeled faces, with which other color orders and normalizations are tried; None
            skips this.
        max_pairs: maximum number of pairs of faces to compare.
        trust_code: import and run custom network code.
        progress: called with (preparations done, total preparations).
        options: what the file does not state, such as the preparation of images; None states
            nothing.
    """
    opened = open_for_examination(path, options or ImportOptions(), trust_code)
    findings = opened.findings
    if opened.embedder is not None and not any(
        finding.severity == "serious" for finding in findings
    ):
        faces = images
        if faces is None:
            faces = SyntheticFaces(num_identities=20, images_per_identity=2)
        findings += check_collapse(opened.embedder, faces)
        if images is not None:
            preparation_findings = check_preparation(
                opened.embedder, images, max_pairs, progress, opened.color_order
            )
            if opened.preparation_assumed:
                preparation_findings = map(_as_note, preparation_findings)
            findings += preparation_findings
            # If too few weights can be tested, embeddings can still show that the network was
            # trained: they then separate faces better than pixels do.
            unchecked = [finding for finding in findings if finding.fault == "training_not_checked"]
            if unchecked and better_than_pixels(opened.embedder, images, max_pairs):
                findings = [finding for finding in findings if finding not in unchecked]
    return ranked(findings)


def _as_note(finding: Finding) -> Finding:
    """Turn a finding that an assumed preparation is wrong into a note; return others unchanged."""
    if finding.fault not in ("wrong_color_order", "wrong_normalization"):
        return finding
    wrong_colors = finding.fault == "wrong_color_order"
    option_names = "--color-order" if wrong_colors else "--mean, --std and --color-order"
    return replace(
        finding,
        fault="likely_preparation",
        severity="note",
        remedy=f"give {option_names} to margrave doctor, and to margrave import",
    )
