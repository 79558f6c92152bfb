"""The doctor's round through a model: its weights, and what it makes of faces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from margrave import backbones
from margrave.checkpoints import (
    CARD_KEY,
    ModelCard,
    adopt,
    check_pixel_statistics,
    convert,
    load_model,
    load_strictly,
    read_card,
    read_checkpoint,
)
from margrave.data import FaceImages, ReadableImages, balanced_pairs
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.image_checks import SHOWN
from margrave.doctor.measurements import Progress
from margrave.doctor.untrained import check_training
from margrave.evaluation import area_under, roc_curve
from margrave.files import is_onnx, is_safetensors, onnx_tensors
from margrave.inference import Embedder, load_embedder
from margrave.inference.onnx_model import OnnxBackbone, Pixels, card_path
from margrave.synthetic import SyntheticFaces

QUALITIES = (1.0, 0.5, 0.25, 0.125)
"""Sides, as shares of the image's, that images are shrunk to and enlarged from."""
NORMALISATIONS = {
    "[-1, 1] (mean 0.5, deviation 0.5)": (0.5, 0.5),
    "[0, 1] (mean 0, deviation 1)": (0.0, 1.0),
    "ImageNet's (mean 0.449, deviation 0.226)": (0.449, 0.226),
    "0 to 255 (mean 0, deviation 1/255)": (0.0, 1 / 255),
}
CLEARLY_BETTER = 0.03
PIXELS = 16
"""Side of the small pictures that a model is compared with."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What ``margrave import`` takes where a file does not show it by itself.

    Attributes:
        key: where the weights are, if a checkpoint holds several networks.
        backbone: the network's specification, for weights of no known layout.
        mean, deviation: of pixels in [0, 1].
        colour_order: ``rgb`` or ``bgr``.
        image_size: of a side, where an ONNX model leaves it open.
        output: of an ONNX model, among several.
    """

    key: str | None = None
    backbone: Mapping[str, Any] | None = None
    mean: Pixels | None = None
    deviation: Pixels | None = None
    colour_order: Literal["rgb", "bgr"] | None = None
    image_size: int | None = None
    output: str | None = None


def examine_model(
    path: str | Path,
    images: FaceImages | None = None,
    most: int = 400,
    trust_code: bool = False,
    progress: Progress = lambda done, total: None,
    options: ImportOptions = ImportOptions(),
) -> list[Finding]:
    """Everything that is wrong with a model file or another project's checkpoint, the worst first.

    Args:
        path: Margrave's model file, a checkpoint of a known project, or an ONNX model, whatever
            they are called.
        images: labelled faces to try colour orders and normalisations on.
        most: use this many of them.
        trust_code: allow a network of somebody's own, whose module is imported.
        progress: called with (images done, images in all).
        options: what the file does not show by itself.
    """
    path = Path(path)
    if is_onnx(path):
        opened = _open_onnx(path, options)
    else:
        try:
            state, card = load_model(path)
        except ValueError as not_ours:
            opened = _open_checkpoint(path, not_ours, options)
        else:
            opened = _open_model(path, state, card, trust_code)
    findings = opened.findings
    if opened.embedder is not None and not any(each.severity == "serious" for each in findings):
        faces = images or SyntheticFaces(num_identities=20, images_per_identity=2)
        findings += check_collapse(opened.embedder, faces)
        if images is not None:
            prepared = check_preparation(opened.embedder, images, most, progress)
            findings += map(_as_hint, prepared) if opened.assumed else prepared
            unsure = [each for each in findings if each.fault == "training_not_checked"]
            if unsure and better_than_pixels(opened.embedder, images, most):
                findings = [each for each in findings if each not in unsure]
    return ranked(findings)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model that was opened, as far as it could be.

    Attributes:
        findings: so far.
        embedder: to try it with.
        assumed: whether its images' preparation is assumed and not stated.
    """

    findings: list[Finding]
    embedder: Embedder | None = None
    assumed: bool = False


def _as_hint(finding: Finding) -> Finding:
    """A preparation that was only assumed may be wrong: another one is advice."""
    known = finding.fault in ("wrong_colour_order", "wrong_normalisation")
    if not known:
        return finding
    return replace(
        finding,
        fault="likely_preparation",
        severity="note",
        remedy="state it: --mean, --std and --colour-order, here and for margrave import",
    )


def _open_model(
    path: Path, state: Mapping[str, torch.Tensor], card: ModelCard, trust_code: bool
) -> _Opened:
    """Margrave's own model file."""
    findings = [*check_weights(state), _described(card)]
    if any(finding.severity == "serious" for finding in findings):
        return _Opened(findings=findings)
    try:
        return _Opened(findings=findings, embedder=load_embedder(path, trust_code=trust_code))
    except ValueError as error:
        return _Opened(findings=[*findings, _misfit(error)])


def _described(card: ModelCard) -> Finding:
    order = card.colour_order.upper()
    return Finding(
        fault="model",
        severity="note",
        said=f"{card.backbone['kind']}, {card.image_size} x {card.image_size} {order}, "
        f"(pixel - {card.mean}) / {card.deviation}{card.source and f'; {card.source}'}",
        remedy="none needed",
        share=0.0,
    )


def _open_onnx(path: Path, options: ImportOptions) -> _Opened:
    """An ONNX model, with the preparation that its card states, or options, or none does."""
    findings: list[Finding] = []
    try:
        state = {name: torch.from_numpy(np.array(values)) for name, values in onnx_tensors(path)}
        findings += check_weights(state)
        network = OnnxBackbone(path, output=options.output or _stated_output(path))
    except ValueError as error:
        return _Opened(findings=[*findings, _unusable(error)])
    stated = (options.mean, options.deviation, options.colour_order)
    if stated == (None, None, None):
        try:
            embedder = load_embedder(path)
        except ValueError as error:
            if card_path(path).is_file() or CARD_KEY in network.metadata:
                return _Opened(findings=[*findings, _unusable(error)])
        else:
            findings.append(_described(embedder.card))
            return _Opened(findings=findings, embedder=embedder)
    assumed = None in stated and not network.takes_bytes
    mean, deviation = (0.0, 1.0) if network.takes_bytes else (0.5, 0.5)
    try:
        check_pixel_statistics(mean=options.mean, deviation=options.deviation)
        card = ModelCard(
            backbone={"kind": "onnx"},
            image_size=network.image_size or options.image_size or 112,
            mean=mean if options.mean is None else options.mean,
            deviation=deviation if options.deviation is None else options.deviation,
            colour_order=options.colour_order or "rgb",
        )
        network.check_rows(card)
    except ValueError as error:
        return _Opened(findings=[*findings, _unusable(error)])
    if assumed:
        findings.append(
            Finding(
                fault="preparation_not_checked",
                severity="unchecked",
                said="whether its images are prepared rightly is not checked, because the file "
                "does not say how; here RGB, mean 0.5 and std 0.5 are assumed where not stated",
                remedy=f"margrave import {path} COPY.onnx --mean 0.5 --std 0.5 --colour-order rgb, "
                "with the numbers of its authors (for pixels in [0, 1])",
                share=0.0,
            )
        )
    else:
        findings.append(_described(card))
    return _Opened(
        findings=findings, embedder=Embedder(network.eval(), card, card.fit), assumed=assumed
    )


def _stated_output(path: Path) -> str | None:
    """The output that the card beside an ONNX model names."""
    beside = card_path(path)
    if not beside.is_file():
        return None
    return read_card(beside.read_text(encoding="utf-8"), beside).backbone.get("output")


def _open_checkpoint(path: Path, not_ours: ValueError, options: ImportOptions) -> _Opened:
    """What another project's checkpoint is, or that it is none."""
    try:
        state = read_checkpoint(path, options.key)
    except ValueError as error:
        damaged = is_safetensors(path)
        unreadable = Finding(
            fault="unreadable_checkpoint",
            severity="serious",
            said=str(not_ours if damaged else error),
            remedy="do as it says; else fetch it again, or save it anew: "
            "torch.save(model.state_dict(), PATH)",
        )
        return _Opened(findings=[unreadable])
    findings = list(check_weights(state))
    stated = (options.colour_order, options.mean, options.deviation)
    try:
        if options.backbone is None:
            imported = convert(state, *stated)
            network = backbones.create(imported.backbone)
        else:
            network = backbones.create(options.backbone)
            imported = adopt(state, network, options.backbone, *stated)
    except ValueError as error:
        findings.append(
            Finding(
                fault="unknown_layout",
                severity="serious",
                said=str(error),
                remedy="margrave import lists the projects whose checkpoints it reads; name a "
                "network of your own here as there: --backbone my_module:MyNetwork",
            )
        )
        return _Opened(findings=findings)
    try:
        load_strictly(network, imported.state, str(path), imported.names)
    except ValueError as error:
        return _Opened(findings=[*findings, _misfit(error)])
    kind, notes = imported.backbone["kind"], "; ".join(imported.notes)
    findings.append(
        Finding(
            fault="foreign_checkpoint",
            severity="note",
            said=f"a checkpoint of layout {imported.layout} ({kind}), for "
            f"(pixel - {imported.mean}) / {imported.deviation}; {notes}",
            remedy=f"margrave import {path} MODEL.safetensors turns it into a model file",
            share=0.0,
        )
    )
    card = ModelCard(
        backbone=imported.backbone,
        image_size=imported.backbone.get("image_size", options.image_size or 112),
        mean=imported.mean,
        deviation=imported.deviation,
    )
    return _Opened(findings=findings, embedder=Embedder(network.eval(), card))


def _unusable(error: ValueError) -> Finding:
    return Finding(
        fault="unusable_onnx_model",
        severity="serious",
        said=str(error),
        remedy="margrave import MODEL.onnx COPY.onnx states how its images are prepared",
    )


def _misfit(error: ValueError) -> Finding:
    return Finding(
        fault="misfitting_weights",
        severity="serious",
        said=str(error),
        remedy="weights and network do not belong together: export the model again",
    )


def check_weights(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Numbers that are none, statistics that no training leaves, and weights without training."""
    finite = True
    for fault, wrong, said, remedy in _WEIGHT_FAULTS:
        keys = [key for key, value in state.items() if wrong(key, value)]
        if keys:
            finite &= fault != "non_finite_weights"
            yield Finding(
                fault=fault,
                severity="serious",
                said=f"{len(keys)} of {len(state)} tensors {said}",
                remedy=remedy,
                share=len(keys) / len(state),
                examples=tuple(keys[:SHOWN]),
            )
    if finite:
        yield from check_training(state)


def _non_finite(key: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())


def _negative_variance(key: str, value: torch.Tensor) -> bool:
    return key.endswith("running_var") and value.numel() > 0 and bool((value < 0).any())


def _empty(key: str, value: torch.Tensor) -> bool:
    return value.ndim >= 2 and value.is_floating_point() and not bool(value.any())


_WEIGHT_FAULTS: tuple[tuple[str, Callable[[str, torch.Tensor], bool], str, str], ...] = (
    (
        "non_finite_weights",
        _non_finite,
        "hold infinite numbers or NaN",
        "go back to an earlier checkpoint: training had blown up when this was saved",
    ),
    (
        "negative_variances",
        _negative_variance,
        "of batch norms are negative variances",
        "the file is damaged, or was averaged wrongly: export it again",
    ),
    (
        "empty_weights",
        _empty,
        "are weights of zeros alone",
        "they were never filled in: export the trained model, not the freshly built one",
    ),
)


def check_collapse(embedder: Embedder, images: ReadableImages, most: int = 32) -> Iterator[Finding]:
    """Embeddings that do not tell faces apart, whoever they are of."""
    indices = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    plain = _embedded(embedder, images, indices)
    if not len(plain):
        return
    if not np.isfinite(plain).all():
        yield Finding(
            fault="non_finite_embeddings",
            severity="serious",
            said="its embeddings of ordinary faces are infinite or NaN",
            remedy="go back to an earlier checkpoint, or compute in float32",
        )
        return
    unit = plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-12)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    if np.median(cosines) > 0.95:
        yield Finding(
            fault="collapsed_embeddings",
            severity="serious",
            said=f"all faces get the same embedding (median cosine {np.median(cosines):.3f})",
            remedy="it has not learned, or its batch norms saw other images: check mean, deviation "
            "and colour order, and train longer or with a lower learning rate",
            figures={"median_cosine": round(float(np.median(cosines)), 4)},
        )


def _embedded(embedder: Embedder, images: ReadableImages, indices: np.ndarray) -> np.ndarray:
    """Embeddings of the images that can be read."""
    unreadable: dict[int, str] = {}
    plain, _ = embedder.embed_images(images, indices, flips=False, unreadable=unreadable)
    return plain[~np.isin(indices, list(unreadable))]


class _Recoloured:
    """Images with red and blue exchanged."""

    def __init__(self, images: ReadableImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.images.read(index)[..., ::-1])


def check_preparation(
    embedder: Embedder,
    images: FaceImages,
    most: int = 400,
    progress: Progress = lambda done, total: None,
) -> Iterator[Finding]:
    """Another colour order or normalisation under which the model tells the faces apart better."""
    pairs = balanced_pairs(np.asarray(images.labels), most // 20 * 20, seed=0)
    used, position = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    first, second = position.reshape(2, -1)
    same = np.asarray(pairs.same, bool)
    card = embedder.card
    own = np.mean(card.mean), np.mean(card.deviation)
    ways = {"as it is": (embedder, images), "bgr": (embedder, _Recoloured(images))} | {
        name: (replace(embedder, card=replace(card, mean=mean, deviation=deviation)), images)
        for name, (mean, deviation) in NORMALISATIONS.items()
        if not np.allclose((mean, deviation), own, atol=1e-3)
    }
    scores: dict[str, np.ndarray] = {}
    for number, (way, (embed, faces)) in enumerate(ways.items()):
        # Images that cannot be read leave zeros, alike for every way.
        plain, _ = embed.embed_images(faces, used, flips=False, unreadable={})
        plain = np.nan_to_num(plain)
        unit = plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-12)
        scores[way] = (unit[first] * unit[second]).sum(axis=1)
        progress(number + 1, len(ways))
    areas = {way: _area(values, same) for way, values in scores.items()}
    figures = {way: round(area, 4) for way, area in areas.items()}
    best = max(areas, key=lambda way: areas[way])
    gain = areas[best] - areas["as it is"]
    halved = gain > 0.005 and 1 - areas[best] < (1 - areas["as it is"]) / 2
    if (gain > CLEARLY_BETTER or halved) and _surely(scores[best], scores["as it is"], same):
        told = f"{areas[best]:.3f} instead of {areas['as it is']:.3f} under the ROC curve"
        colours = best == "bgr"
        yield Finding(
            fault="wrong_colour_order" if colours else "wrong_normalisation",
            severity="serious",
            said=f"the model tells these faces apart better when it is given "
            f"{'BGR images' if colours else f'pixels in {best}'}: {told}",
            remedy="import it again with --colour-order bgr"
            if colours
            else "write the right mean and deviation into its card: import or save it again",
            figures=figures,
        )
    elif areas["as it is"] < 0.6:
        yield Finding(
            fault="labels_disagree",
            severity="serious",
            said=f"the model sees no difference between pairs of one person and of two "
            f"(area under the ROC curve {areas['as it is']:.3f})",
            remedy="check the data with margrave doctor, and that its labels belong to its images: "
            "a shift by one does this; or the model is not trained for such faces",
            figures=figures,
        )


def better_than_pixels(embedder: Embedder, images: FaceImages, most: int = 400) -> bool:
    """Whether the model tells faces apart better than a comparison of their pixels does.

    Networks of random weights hardly do.
    """
    pairs = balanced_pairs(np.asarray(images.labels), most // 20 * 20, seed=0)
    used, position = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    first, second = position.reshape(2, -1)
    unreadable: dict[int, str] = {}
    plain, _ = embedder.embed_images(images, used, flips=False, unreadable=unreadable)
    pixels = np.zeros((len(used), PIXELS**2), np.float32)
    for row, index in enumerate(used.tolist()):
        if index not in unreadable:
            grey = cv2.cvtColor(images.read(index), cv2.COLOR_RGB2GRAY)
            small = cv2.resize(grey, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
            pixels[row] = small.ravel() - small.mean()
    same = np.asarray(pairs.same, bool)
    scores = []
    for rows in (np.nan_to_num(plain), pixels):
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        scores.append((unit[first] * unit[second]).sum(axis=1))
    return _surely(scores[0], scores[1], same)


def _area(scores: np.ndarray, same: np.ndarray) -> float:
    return float(area_under(roc_curve(scores, same)))


def _surely(better: np.ndarray, worse: np.ndarray, same: np.ndarray, resamples: int = 200) -> bool:
    """Whether the difference holds in nearly all resamples of the pairs."""
    generator = np.random.default_rng(0)
    wins = 0
    for _ in range(resamples):
        chosen = generator.integers(len(same), size=len(same))
        wins += _area(better[chosen], same[chosen]) > _area(worse[chosen], same[chosen])
    return wins >= 0.97 * resamples


def check_quality(
    embedder: Embedder, images: ReadableImages, reads_norm: bool, most: int = 64
) -> Iterator[Finding]:
    """Whether the feature norm falls as images get worse, as norm-adaptive margins take it to.

    Args:
        embedder: the model.
        images: any faces.
        reads_norm: whether the loss it was trained with reads the norm (AdaFace, MagFace).
        most: use this many of them.
    """
    indices = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    sharp = []
    for index in indices.tolist():
        # What cannot be read is a finding of its own.
        with contextlib.suppress(ValueError):
            sharp.append(images.read(index))
    if not sharp:
        return
    norms = np.stack(
        [_norms(embedder, [_worsened(image, share) for image in sharp]) for share in QUALITIES],
        axis=1,
    )
    # Spearman's ρ of norm and quality within each image.
    ranks = norms.argsort(axis=1).argsort(axis=1)
    quality = np.arange(len(QUALITIES))[::-1]
    spread = quality.var()
    rho = float(((ranks - ranks.mean()) * (quality - quality.mean())).mean(axis=1).mean() / spread)
    means = norms.mean(axis=0)
    shown = ", ".join(
        f"{mean:.3g} at 1/{round(1 / share)}" for mean, share in zip(means, QUALITIES, strict=True)
    )
    figures = {
        "rank_correlation": round(rho, 3),
        "norms": {
            f"1/{round(1 / s)}": round(float(m), 4) for s, m in zip(QUALITIES, means, strict=True)
        },
    }
    if rho < -0.3:
        yield Finding(
            fault="norm_against_quality",
            severity="serious" if reads_norm else "warning",
            said=f"the feature norm grows as images get worse (rank correlation with quality "
            f"{rho:.2f}; mean norm by resolution: {shown})",
            remedy="a norm-adaptive margin then pushes hardest on the worst images: check that no "
            "normalisation follows the embedding layer, train with AdaFace's augmentations, or use "
            "a loss that does not read the norm",
            figures=figures,
        )
    else:
        follows = "follows" if rho > 0.3 else "hardly depends on"
        yield Finding(
            fault="norm_and_quality",
            severity="warning" if reads_norm and rho <= 0.3 else "note",
            said=f"the feature norm {follows} image quality (rank correlation {rho:.2f}; mean norm "
            f"by resolution: {shown})",
            remedy="none needed"
            if rho > 0.3 or not reads_norm
            else "train longer and with AdaFace's augmentations, which show it bad images",
            share=0.0,
            figures=figures,
        )


def _norms(embedder: Embedder, images: list[np.ndarray]) -> np.ndarray:
    plain, _ = embedder.embed_images(images, flips=False)
    return np.linalg.norm(plain, axis=1)


def _worsened(image: np.ndarray, share: float) -> np.ndarray:
    height, width = image.shape[:2]
    if share == 1:
        return image
    small = (max(1, round(width * share)), max(1, round(height * share)))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)
