"""Exports a model file to an ONNX file and checks that both give the same embeddings."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from margrave.data import ReadableImages
from margrave.export.graph import write_graph
from margrave.export.parity import Parity, check_parity, compare_embedders
from margrave.export.quantization import Quantized, quantize_graph, write_metadata
from margrave.files import atomic_write
from margrave.inference import Embedder, load_embedder
from margrave.models import Model, ModelCard, open_model
from margrave.models.onnx_card import card_path
from margrave.protocols import Pairs


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported file, and how its embeddings compare with the original model's.

    Attributes:
        path: the ONNX file.
        card: the model card in the file's metadata.
        parity: two comparisons of the float32 graph with the original model: on faces, then on
            random pixels.
        quantized: results and accuracy loss of the int8 model; None for a float32 file.
    """

    path: Path
    card: ModelCard
    parity: tuple[Parity, ...]
    quantized: Quantized | None = None


def export_model(
    source: str | Path,
    target: str | Path,
    *,
    faces: ReadableImages | None = None,
    num_faces: int = 64,
    int8: bool = False,
    pairs: Pairs | None = None,
    images: str | None = None,
    allowed_loss: float = 0.5,
    resamples: int = 1000,
    trust_code: bool = False,
) -> Exported:
    """Export a model to ONNX, with its card and thresholds, and check its embeddings.

    The file is written only if the float32 graph gives the same embeddings as the original and,
    with `int8`, the loss of TAR is at most `allowed_loss`.

    Args:
        source: a Margrave model file or a run's folder.
        target: the .onnx file to write.
        faces: aligned faces to compare both models on; None uses synthetic faces.
        num_faces: number of faces to compare, at least 2.
        int8: quantize weights and activations to 8 bits.
        pairs: verification pairs on which int8 is calibrated and its loss is measured, as for
            ``margrave evaluate pairs``. Required with `int8`, unused without it.
        images: where the pairs' images are; None for a .bin file, which contains them.
        allowed_loss: maximum TAR that int8 may lose, in percentage points, at any FAR that the
            pairs support (see ``Quantized.loss``).
        resamples: number of bootstrap replicates for the intervals.
        trust_code: import and run the custom network code that the model names.

    Raises:
        ValueError: the target is not valid; the model is an ONNX model already or not a PyTorch
            network; the extra ``export`` is not installed; `int8` is set without `pairs`; the
            exported model differs from the original; or int8 loses more TAR than allowed.
    """
    source, target = Path(source), Path(target)
    check_target(target)
    if int8 and pairs is None:
        raise ValueError(
            "--int8 shifts scores, so its cost must be measured on your pairs: give --pairs "
            "FOLDER, LIST or .bin, as for margrave evaluate pairs (in Python: pairs=)"
        )
    model = open_model(source, device="cpu", trust_code=trust_code)
    if not model.state:  # an ONNX model or dlib's
        if model.card.backbone.get("kind") == "onnx":
            raise ValueError(f"{model.path} is an ONNX model already; there is nothing to export")
        raise ValueError(f"{model.path} is not a torch network, so it cannot be exported")
    original = Embedder(model.backbone, model.card, model.card.fit)
    card = _create_onnx_card(model)
    quantized = None
    with tempfile.TemporaryDirectory() as folder, atomic_write(target) as temporary:
        graph = Path(folder, "float32.onnx")
        write_graph(model.backbone, card, graph)
        exported = load_embedder(graph, device="cpu")
        parity = compare_embedders(original, exported, faces, num_faces=num_faces)
        check_parity(parity, str(model.path))
        if pairs is not None and int8:
            quantized = quantize_graph(
                graph,
                original,
                pairs,
                images,
                allowed_loss=allowed_loss,
                resamples=resamples,
            )
            # The original's thresholds and reference scores are not valid for int8 scores.
            card = replace(card, operating_points=quantized.points, reference=None)
            write_metadata(graph, card)
        temporary.write_bytes(graph.read_bytes())
        # Check that the file loads before it gets its final name.
        load_embedder(temporary, device="cpu")
    return Exported(path=target, card=card, parity=parity, quantized=quantized)


def _create_onnx_card(model: Model) -> ModelCard:
    """Copy a model's card for its export: the kind becomes onnx, the source names the original."""
    origin = model.card.source or str(model.path)
    kind = model.card.backbone["kind"]
    return replace(model.card, backbone={"kind": "onnx"}, source=f"{kind} exported from {origin}")


def check_target(target: Path) -> None:
    """Check that a new ONNX file can be written at `target`.

    Raises:
        ValueError: `target` is a folder or does not end in .onnx; or `target` or the card
            file next to it exists already.

    >>> check_target(Path("model.pt"))
    Traceback (most recent call last):
        ...
    ValueError: model.pt: the name of an exported model must end in .onnx; use model.onnx
    """
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file in it: {target / 'model.onnx'}")
    if target.suffix != ".onnx":
        suggestion = target.with_suffix(".onnx")
        raise ValueError(
            f"{target}: the name of an exported model must end in .onnx; use {suggestion}"
        )
    for path in (target, card_path(target)):
        if path.exists():
            raise ValueError(f"{path} exists already: remove it, or choose another name")
