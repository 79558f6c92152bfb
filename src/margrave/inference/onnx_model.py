"""Embedders in ONNX: any project's exported network, run by onnxruntime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from margrave.checkpoints import CARD_KEY, ModelCard, atomic_write, read_card

Pixels = float | Sequence[float]


class OnnxBackbone(nn.Module):
    """A network in an ONNX file, called like any other; it can be used but not trained.

    Models exported for a fixed batch get their images in batches of that size.

    Args:
        path: the .onnx file, with one input (B, 3, S, S) and one output (B, D).
        threads: of the processor; by default as many as torch uses.
        device: ``cpu`` or ``cuda``; by default CUDA where onnxruntime has it.

    Attributes:
        content_digest: SHA-256 of the file.
        image_size: S, None if the model leaves it open.
        metadata: what the file says of itself, by key.

    Raises:
        ValueError: no such file, a damaged one, or other inputs and outputs; onnxruntime is not
            installed.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, device: str | None = None
    ) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"{path} needs onnxruntime, which is not installed: pip install 'margrave[onnx]'"
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Warnings about a model's initializers are its exporter's business.
        options.log_severity_level = 3
        offered = onnxruntime.get_available_providers()
        kinds = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if device is None:
            providers = [name for name in reversed(kinds.values()) if name in offered]
        elif kinds.get(device.split(":")[0]) in offered:
            providers = [kinds[device.split(":")[0]]]
        else:
            known = ", ".join(kind for kind, name in kinds.items() if name in offered)
            raise ValueError(f"device = {device!r} cannot be used for {path}; choices: {known}")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions share no base of their own
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: damaged or no ONNX model ({reason})") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(each.shape) for each in (*inputs, *outputs)]
        if len(inputs) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (3, "3"):
            raise ValueError(f"{path} takes {shapes[: len(inputs)]}; expected one (B, 3, S, S)")
        if len(outputs) != 1 or len(shapes[1]) != 2:
            raise ValueError(f"{path} gives {shapes[len(inputs) :]}; expected one (B, D)")
        self._input = inputs[0].name
        self._half = inputs[0].type == "tensor(float16)"
        self._batch = shapes[0][0] if isinstance(shapes[0][0], int) else None
        size = shapes[0][2]
        self.image_size = size if isinstance(size, int) else None
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.content_digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        # Says on which device and in which type images are to come.
        self.placed = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, D)."""
        pixels = images.float().contiguous().cpu().numpy()
        pixels = pixels.astype(np.float16) if self._half else pixels
        step = self._batch or max(1, len(pixels))
        found = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            missing = step - len(part)
            if missing and self._batch:
                part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            answer: Any = self._session.run(None, {self._input: part})[0]
            found.append(torch.from_numpy(np.asarray(answer, np.float32)))
        return torch.cat(found)[: len(pixels)].to(images.device)


def card_path(path: str | Path) -> Path:
    """Where the card of an ONNX model lies that holds none itself."""
    return Path(f"{path}.card.json")


def load_onnx(path: str | Path, device: str | None = None) -> tuple[OnnxBackbone, ModelCard]:
    """The network and its card, from the file's own metadata or from the card beside it.

    Raises:
        ValueError: neither says how images are prepared; a card that does not fit.
    """
    backbone = OnnxBackbone(path, device=device)
    beside = card_path(path)
    if beside.is_file():
        card = read_card(beside.read_text(encoding="utf-8"), beside)
    elif CARD_KEY in backbone.metadata:
        card = read_card(backbone.metadata[CARD_KEY], path)
    else:
        raise ValueError(
            f"{path} does not say how its images are prepared, and nobody can guess it; state it "
            "once: margrave import MODEL.onnx COPY.onnx --mean 0.5 --deviation 0.5 "
            "--colour-order rgb, with the numbers of its authors (for pixels in [0, 1])"
        )
    if backbone.image_size not in (None, card.image_size):
        raise ValueError(
            f"{path} takes images of {backbone.image_size}, its card says {card.image_size}"
        )
    return backbone, card


def import_onnx(
    source: str | Path,
    target: str | Path,
    *,
    mean: Pixels | None,
    deviation: Pixels | None,
    colour_order: str | None,
    image_size: int | None = None,
) -> ModelCard:
    """Copy an ONNX model and write beside it how its images are prepared.

    Args:
        source: the model.
        target: where the copy goes; its card becomes ``target.card.json``.
        mean: of pixels in [0, 1], one number or one per channel in the model's own order.
        deviation: likewise.
        colour_order: ``rgb`` or ``bgr``.
        image_size: of a side, where the model leaves it open.

    Raises:
        ValueError: something is not stated that the model does not say itself, or cannot be.
    """
    backbone = OnnxBackbone(source)
    stated = {"mean": mean, "deviation": deviation, "colour_order": colour_order}
    for name, value in (("mean", mean), ("deviation", deviation)):
        if value is not None and np.abs(value).max() > 1:
            raise ValueError(
                f"{name} = {value}; state it for pixels in [0, 1]: divide what is said of pixels "
                "in [0, 255] by 255"
            )
    if image_size and backbone.image_size not in (None, image_size):
        raise ValueError(
            f"image_size = {image_size}, but {source} takes images of {backbone.image_size} only; "
            "leave image_size out"
        )
    known: dict[str, Any] = {}
    if CARD_KEY in backbone.metadata:
        known = asdict(read_card(backbone.metadata[CARD_KEY], source))
    known |= {name: value for name, value in stated.items() if value is not None}
    known.setdefault("image_size", image_size or backbone.image_size)
    missing = [name for name in stated if name not in known]
    if missing or known["image_size"] is None:
        missing += ["image_size"] * (known["image_size"] is None)
        options = " ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ValueError(f"{source} does not say its {', '.join(missing)}; state them: {options}")
    known["backbone"] = {"kind": "onnx"}
    known["source"] = known.get("source") or f"imported from {Path(source).name}"
    card = ModelCard(**known)
    with atomic_write(target) as temporary:
        temporary.write_bytes(Path(source).read_bytes())
        try:
            OnnxBackbone(temporary)
        except ValueError as error:
            raise ValueError(
                f"{source} cannot be used without files beside it; export it into one file "
                f"(external_data=False): {error}"
            ) from error
    write_card(target, card)
    return card


def write_card(path: str | Path, card: ModelCard) -> None:
    """The card beside an ONNX model, replacing an older one."""
    with atomic_write(card_path(path)) as temporary:
        temporary.write_text(json.dumps(json.loads(card.to_json()), indent=1) + "\n")
