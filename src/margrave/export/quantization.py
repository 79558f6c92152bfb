"""Quantizes an exported model to int8, calibrated and measured on the user's pairs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from margrave.data import ReadableImages, normalize
from margrave.evaluation import Figure, Result
from margrave.export.graph import INPUT
from margrave.files import first_line
from margrave.inference import Embedder, embed_features, load_embedder
from margrave.models import CARD_KEY, ModelCard, OperatingPoint
from margrave.protocols import (
    EvaluationOptions,
    Pairs,
    compare_results,
    evaluate,
    points_of_result,
)

CALIBRATION_IMAGES = 256
"""Maximum number of images for calibration."""
CALIBRATION_BATCH = 16
"""Number of images per calibration batch."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized model's results, thresholds and cost, measured on the user's pairs.

    Attributes:
        original: the original model's result.
        result: the quantized model's result.
        differences: the quantized model's metrics minus the original's, with intervals.
        loss: largest loss of TAR at any FAR that the pairs support, in percentage points. The pairs
            support a FAR if it allows at least one false accept among their impostor pairs.
        points: the quantized model's operating points, chosen on the pairs, for those FARs of the
            original card that the pairs support.
        unsupported_fars: FARs of the original card that the pairs do not support.
        calibration_images: number of calibration images.
    """

    original: Result
    result: Result
    differences: Result
    loss: float
    points: tuple[OperatingPoint, ...]
    unsupported_fars: tuple[float, ...]
    calibration_images: int


def quantize_graph(
    path: Path,
    original: Embedder,
    pairs: Pairs,
    images: str | None,
    *,
    allowed_loss: float = 0.5,
    resamples: int = 1000,
) -> Quantized:
    """Quantize an exported graph to int8 in place (static quantization), and measure the TAR loss.

    Weights get one scale per channel. Up to 256 images of the pairs calibrate the ranges of the
    activations, without the pairs' labels.

    Args:
        path: the float32 ONNX file, replaced by the quantized one.
        original: the model from which the file was exported.
        pairs: verification pairs on which the quantized model is calibrated and both models are
            evaluated.
        images: where the pairs' images are; None for a .bin file, which contains them.
        allowed_loss: maximum loss of TAR, in percentage points (see ``Quantized.loss``).
        resamples: number of bootstrap replicates for the intervals.

    Raises:
        ValueError: there are too few pairs for any FAR, the graph cannot be quantized, or the loss
            exceeds `allowed_loss`.

    Source: Jacob et al., Quantization and training of neural networks for efficient
    integer-arithmetic-only inference (2018), arXiv:1712.05877.
    """
    faces = pairs.open_images(images, original.card.image_size)
    calibration_indices = np.unique(
        np.linspace(0, len(faces) - 1, min(CALIBRATION_IMAGES, len(faces))).astype(int)
    )
    calibration_pixels = _calibration_pixels(original, faces, calibration_indices)
    _quantize(path, _calibration_batches(original, calibration_pixels))
    options = EvaluationOptions(resamples=resamples)
    # `pairs.pairs` is the file that lists the pairs; without it, pairs are drawn from the images.
    pairs_name = pairs.pairs.name if pairs.pairs else Path(images or "").name

    def measure(embedder: Embedder, model_name: str) -> Result:
        features = embed_features(embedder, faces, model=model_name, source=pairs_name)
        return evaluate(pairs, features, options)[0]

    original_result = measure(original, "original")
    int8_result = measure(load_embedder(path, fit=original.fit, device="cpu"), "int8")
    supported_fars = _supported_fars(original_result)
    losses = {far: _tar_loss(original_result, int8_result, far) for far in supported_fars}
    worst_far = max(losses, key=lambda far: losses[far])
    if losses[worst_far] > allowed_loss:
        tar_before, tar_after = (
            result.figure("TAR", FAR=worst_far).value or 0.0
            for result in (original_result, int8_result)
        )
        raise ValueError(
            f"int8 costs {losses[worst_far]:.2f} percentage points of TAR at FAR {worst_far:g} on "
            f"{pairs_name or 'the pairs'} ({100 * tar_before:.2f} to {100 * tar_after:.2f} %), "
            f"more than --allowed-loss {allowed_loss:g}; nothing was written; export without "
            "--int8, or raise --allowed-loss"
        )
    card_fars = [point.far for point in original.card.operating_points]
    supported_card_fars = [far for far in card_fars if far in supported_fars]
    return Quantized(
        original=original_result,
        result=int8_result,
        # `compare_results` needs at least 2 replicates.
        differences=compare_results(
            original_result, int8_result, supported_fars, max(resamples, 2)
        ),
        loss=losses[worst_far],
        points=points_of_result(int8_result, supported_card_fars) if supported_card_fars else (),
        unsupported_fars=tuple(far for far in card_fars if far not in supported_card_fars),
        calibration_images=len(calibration_pixels),
    )


def _supported_fars(result: Result) -> list[float]:
    """The FAR targets of a result that allow at least one false accept among its impostor pairs."""
    figures: Sequence[Figure] = result.figures
    fars = [
        float(figure.at["FAR"])
        for figure in figures
        if figure.metric == "TAR" and not figure.stratum and not figure.too_few
    ]
    if not fars:
        raise ValueError(
            f"{result.counts.get('pairs', 0)} pairs are too few to measure TAR at any FAR; give "
            "at least 10 pairs of different identities"
        )
    return fars


def _tar_loss(before: Result, after: Result, far: float) -> float:
    """The loss of TAR at a FAR, in percentage points; positive if ``after`` has the lower TAR."""
    tar_before, tar_after = (
        result.figure("TAR", FAR=far).value or 0.0 for result in (before, after)
    )
    return 100 * (tar_before - tar_after)


def _calibration_pixels(
    embedder: Embedder, faces: ReadableImages, indices: np.ndarray
) -> list[torch.Tensor]:
    """Read and prepare the images with these indices; skip unreadable images."""
    pixels = []
    for index in indices.tolist():
        try:
            pixels.append(embedder.prepare(faces.read(index), faces.name(index)))
        except ValueError:
            continue
    return pixels


def _calibration_batches(
    embedder: Embedder, pixels: list[torch.Tensor]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of normalized images as inputs of the graph."""
    for start in range(0, len(pixels), CALIBRATION_BATCH):
        batch = torch.stack(pixels[start : start + CALIBRATION_BATCH])
        images = normalize(batch, embedder.card.mean, embedder.card.std)
        yield {INPUT: images.contiguous().numpy()}


def _quantize(path: Path, batches: Iterator[dict[str, np.ndarray]]) -> None:
    """Quantize a graph in place; `batches` calibrate the ranges of the activations."""
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ValueError(
            "int8 needs onnx and onnxruntime, which are not installed: "
            "pip install 'margrave[export]'"
        ) from error

    class BatchReader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    # onnxruntime's quantization logs its advice with the root logger.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            simplified, int8 = Path(folder, "simplified.onnx"), Path(folder, "int8.onnx")
            quant_pre_process(str(path), str(simplified), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(simplified),
                str(int8),
                BatchReader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            path.write_bytes(int8.read_bytes())
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ValueError(f"the model cannot be quantized: {first_line(error)}") from error
    finally:
        root.setLevel(level)


def write_metadata(path: Path, card: ModelCard) -> None:
    """Write a card into an ONNX file's metadata, replacing an existing one."""
    import onnx

    model = onnx.load(str(path))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**metadata, CARD_KEY: card.to_json()})
    onnx.save(model, str(path))
