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

from margrave.checkpoints import CARD_KEY, ModelCard, check_pixel_statistics, read_card
from margrave.files import atomic_write, external_weights, ordinary
from margrave.registry import suggest

Pixels = float | tuple[float, float, float]

REPEATED = (0, 0, 0)
"""Images tried again: a few features may be dropped alike once."""

KINDS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
"""Types of pixels that a model may declare."""


class OnnxBackbone(nn.Module):
    """A network in an ONNX file, called like any other; it can be used but not trained.

    Models exported for a fixed batch get their images in batches of that size. Models that take
    (B, S, S, 3) get them so, and models that take uint8 get pixels in [0, 255].

    Args:
        path: the .onnx file, with one input (B, 3, S, S) or (B, S, S, 3) and an output (B, D).
        threads: of the processor; by default as many as torch uses.
        device: ``cpu`` or ``cuda``; by default CUDA where onnxruntime has it.
        output: which of several outputs is the embedding.

    Attributes:
        content_digest: SHA-256 of the file, of the files beside it that hold its weights, and of
            the output's name where there are several.
        external_weights: those files.
        image_size: S, None if the model leaves it open.
        metadata: what the file says of itself, by key.
        takes_bytes: whether the input is uint8, which the model normalises itself.
        one_at_a_time: whether images are given one by one, because a batch gives other embeddings.

    Raises:
        ValueError: no such file, a damaged one, or other inputs and outputs; onnxruntime is not
            installed.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        device: str | None = None,
        output: str | None = None,
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
        # Warnings about a model's initializers are its exporter's business, and errors are raised.
        options.log_severity_level = 4
        offered = onnxruntime.get_available_providers()
        kinds = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if device is None:
            providers = [name for name in reversed(kinds.values()) if name in offered]
        elif kinds.get(device.split(":")[0]) in offered:
            providers = [kinds[device.split(":")[0]]]
        else:
            known = ", ".join(kind for kind, name in kinds.items() if name in offered)
            raise ValueError(f"device = {device!r} cannot be used for {path}; choices: {known}")
        self.path = Path(path)
        self.external_weights = external_weights(self.path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions share no base of their own
            raise ValueError(f"{path}: damaged or no ONNX model ({_reason(error)})") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._read_input()
        self._output = self._choose_output(output)
        self.one_at_a_time = False
        self.content_digest = _digest(self.path, self.external_weights)
        if len(self._session.get_outputs()) > 1:
            # Another output is another embedding.
            named = f"{self.content_digest} {self._output}"
            self.content_digest = hashlib.sha256(named.encode()).hexdigest()
        # Says on which device and in which type images are to come.
        self.placed = nn.Parameter(torch.empty(0), requires_grad=False)

    def _read_input(self) -> None:
        inputs = self._session.get_inputs()
        shapes = [list(each.shape) for each in inputs]
        expected = "expected one (B, 3, S, S) or (B, S, S, 3)"
        if len(inputs) != 1 or len(shapes[0]) != 4:
            raise ValueError(f"{self.path} takes {shapes}; {expected}")
        batch, *rest = shapes[0]
        self._channels_last = rest[0] not in (3, "3") and rest[2] in (3, "3")
        sides = rest[:2] if self._channels_last else rest[1:]
        sizes = {side for side in sides if isinstance(side, int) and side > 0}
        if not (self._channels_last or rest[0] in (3, "3")) or len(sizes) > 1:
            raise ValueError(f"{self.path} takes {shapes}; {expected}")
        if inputs[0].type not in KINDS:
            raise ValueError(
                f"{self.path} takes pixels of type {inputs[0].type}; expected {', '.join(KINDS)}"
            )
        self._input = inputs[0].name
        self._dtype = KINDS[inputs[0].type]
        self.takes_bytes = self._dtype == np.uint8
        self._batch = batch if isinstance(batch, int) and batch > 0 else None
        self.image_size = sizes.pop() if sizes else None

    def _choose_output(self, name: str | None) -> str:
        outputs = {each.name: list(each.shape) for each in self._session.get_outputs()}
        listed = ", ".join(f"{each} {shape}" for each, shape in outputs.items())
        name = name or self._output_of_card()
        if name is None and len(outputs) > 1:
            raise ValueError(
                f"{self.path} gives {len(outputs)} outputs: {listed}; choose the embedding when "
                "importing it: margrave import ... --output NAME (output=)"
            )
        name = next(iter(outputs)) if name is None else name
        if not isinstance(name, str) or name not in outputs:
            raise ValueError(f"{self.path} has no output {name!r}; {suggest(str(name), outputs)}")
        # A model that declares no shape at all shows it when it is tried.
        if len(outputs[name]) not in (0, 2):
            raise ValueError(f"{self.path} gives {listed}; expected one (B, D)")
        return name

    def _output_of_card(self) -> str | None:
        if CARD_KEY not in self.metadata:
            return None
        return read_card(self.metadata[CARD_KEY], self.path).backbone.get("output")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, D).

        Raises:
            ValueError: onnxruntime cannot run the model, or it gives another number of rows.
        """
        pixels = images.float().contiguous().cpu().numpy()
        step = 1 if self.one_at_a_time else self._batch or max(1, len(pixels))
        parts = [
            self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)
        ] or [self._run(pixels)]
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """One embedding for each of so many images as the model takes at a time."""
        answer = self._answer(pixels)
        alone = self.one_at_a_time and answer.ndim == 2 and len(answer) > 0
        expected = len(answer) if alone else self._batch or len(pixels)
        if answer.ndim != 2 or len(answer) != expected:
            raise ValueError(
                f"{self.path} gives shape {answer.shape} for {expected} images, expected "
                f"({expected}, D); export it for any batch, or for a batch of 1"
            )
        return answer[: len(pixels)]

    def _answer(self, pixels: np.ndarray) -> np.ndarray:
        missing = (self._batch or len(pixels)) - len(pixels)
        if missing:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        if self._channels_last:
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        if self.takes_bytes:
            pixels = (pixels * 255).round().clip(0, 255)
        feed = {self._input: pixels.astype(self._dtype, copy=False)}
        try:
            answer: Any = self._session.run([self._output], feed)[0]
            return np.asarray(answer, np.float32)
        except Exception as error:  # onnxruntime's own exceptions share no base of their own
            shape = next(iter(feed.values())).shape
            raise ValueError(
                f"{self.path}: onnxruntime cannot run it on {shape}: {_reason(error)}"
            ) from error

    def check_rows(self, card: ModelCard) -> None:
        """Try two different images, each alone and both together; the rows must agree.

        Where they do not, the batch is fixed inside the graph, and images go one at a time from
        now on.

        Raises:
            ValueError: the model gives no single row for a single image, or another one each time.
        """
        generator = np.random.default_rng(0)
        # Coarse patterns: averages of fine noise hardly differ from one image to another.
        coarse = generator.uniform(0, 1, (2, 3, 4, 4)).astype(np.float32)
        places = np.arange(card.image_size) * 4 // card.image_size
        images = coarse[:, :, places][:, :, :, places]
        mean, deviation = (
            np.broadcast_to(np.asarray(value, np.float32), 3)[:, None, None]
            for value in (card.mean, card.deviation)
        )
        images = np.ascontiguousarray((images - mean) / deviation)
        self.one_at_a_time = True
        first, second, *again = (
            self._checked_row(images[index : index + 1]) for index in (0, 1, *REPEATED)
        )
        alone = np.stack([first, second])
        # Arithmetic differs with the shape of a batch, quantised arithmetic visibly.
        allowed = 1e-3 * np.linalg.norm(alone) + 0.05 * np.linalg.norm(first - second)
        if max(np.linalg.norm(first - row) for row in again) > allowed:
            raise ValueError(
                f"{self.path} gives another embedding each time for the same image: dropout or "
                "noise is in the graph; export it in evaluation mode"
            )
        self.one_at_a_time = self._batch == 1
        if self.one_at_a_time:
            return
        try:
            together = self._run(images)
        except ValueError:
            self.one_at_a_time = True
            return
        agree = together.shape == alone.shape and np.linalg.norm(together - alone) <= allowed
        self.one_at_a_time = not agree

    def _checked_row(self, image: np.ndarray) -> np.ndarray:
        answer = self._answer(image)
        if answer.ndim != 2 or len(answer) not in (1, self._batch):
            raise ValueError(
                f"{self.path} gives shape {answer.shape} for one image, expected (1, D)"
            )
        if not np.isfinite(answer).all():
            raise ValueError(f"{self.path} gives NaN or infinite numbers for an ordinary image")
        return answer[0]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _digest(path: Path, external: Sequence[Path]) -> str:
    """SHA-256 of a model; of several files, each with its name and size."""
    total = hashlib.sha256()
    try:
        for each in (path, *external):
            if external:
                name = each.relative_to(path.parent).as_posix() if each != path else ""
                total.update(f"{name}\0{each.stat().st_size}\0".encode())
            with open(each, "rb", opener=ordinary) as file:
                while block := file.read(2**20):
                    total.update(block)
    except OSError as error:
        raise ValueError(f"{path}: its weights cannot be read: {error}") from error
    return total.hexdigest()


def card_path(path: str | Path) -> Path:
    """Where the card of an ONNX model lies that holds none itself."""
    return Path(f"{path}.card.json")


def load_onnx(path: str | Path, device: str | None = None) -> tuple[OnnxBackbone, ModelCard]:
    """The network and its card, from the file's own metadata or from the card beside it.

    The model is tried, see ``OnnxBackbone.check_rows``.

    Raises:
        ValueError: neither says how images are prepared; a card that does not fit; a model that
            does not give one embedding per image.
    """
    beside = card_path(path)
    card = None
    if beside.is_file():
        card = read_card(beside.read_text(encoding="utf-8"), beside)
    output = None if card is None else card.backbone.get("output")
    backbone = OnnxBackbone(path, device=device, output=output)
    if card is None and CARD_KEY in backbone.metadata:
        card = read_card(backbone.metadata[CARD_KEY], path)
    if card is None:
        raise ValueError(
            f"{path} does not say how its images are prepared, and nobody can guess it; state it "
            "once: margrave import MODEL.onnx COPY.onnx --mean 0.5 --std 0.5 "
            "--colour-order rgb, with the numbers of its authors (for pixels in [0, 1])"
        )
    if backbone.image_size not in (None, card.image_size):
        raise ValueError(
            f"{path} takes images of {backbone.image_size}, its card says {card.image_size}"
        )
    _check_bytes(backbone, card.mean, card.deviation)
    backbone.check_rows(card)
    return backbone, card


def _check_bytes(backbone: OnnxBackbone, mean: Pixels | None, deviation: Pixels | None) -> None:
    unlike = not (
        np.all(np.equal(0 if mean is None else mean, 0))
        and np.all(np.equal(1 if deviation is None else deviation, 1))
    )
    if backbone.takes_bytes and unlike:
        raise ValueError(
            f"{backbone.path} takes uint8 pixels and normalises them itself, but mean = {mean} and "
            f"std = {deviation} are stated; leave both out"
        )


def import_onnx(
    source: str | Path,
    target: str | Path,
    *,
    mean: Pixels | None,
    deviation: Pixels | None,
    colour_order: str | None,
    image_size: int | None = None,
    output: str | None = None,
) -> tuple[OnnxBackbone, ModelCard]:
    """Copy an ONNX model and write beside it how its images are prepared.

    Args:
        source: the model.
        target: where the copy goes; its card becomes ``target.card.json``.
        mean: of pixels in [0, 1], one number or one per channel in the model's own order.
        deviation: likewise.
        colour_order: ``rgb`` or ``bgr``.
        image_size: of a side, where the model leaves it open.
        output: which of several outputs is the embedding.

    Returns:
        the network, already tried (see ``OnnxBackbone.check_rows``), and its card.

    Raises:
        ValueError: something is not stated that the model does not say itself, or cannot be;
            the model does not give one embedding per image.
    """
    backbone = OnnxBackbone(source, output=output)
    check_pixel_statistics(mean=mean, deviation=deviation)
    _check_bytes(backbone, mean, deviation)
    if backbone.takes_bytes:
        mean, deviation = 0.0, 1.0
    stated = {"mean": mean, "deviation": deviation, "colour_order": colour_order}
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
    output = output or known.get("backbone", {}).get("output")
    known["backbone"] = {"kind": "onnx", **({"output": output} if output else {})}
    known["source"] = known.get("source") or f"imported from {Path(source).name}"
    card = ModelCard(**known)
    backbone.check_rows(card)
    if backbone.external_weights and Path(source).parent.resolve() != Path(target).parent.resolve():
        names = ", ".join(each.name for each in backbone.external_weights[:3])
        raise ValueError(
            f"{source} cannot be used without files beside it ({names}); export it into one file "
            "(external_data=False), or import it into its own folder"
        )
    with atomic_write(target) as temporary:
        temporary.write_bytes(Path(source).read_bytes())
    write_card(target, card)
    return backbone, card


def write_card(path: str | Path, card: ModelCard) -> None:
    """The card beside an ONNX model, replacing an older one."""
    with atomic_write(card_path(path)) as temporary:
        temporary.write_text(json.dumps(json.loads(card.to_json()), indent=1) + "\n")
