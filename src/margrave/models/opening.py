"""Opens every kind of model file that Margrave can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from margrave import backbones
from margrave.files import first_line, is_onnx
from margrave.models.digest import weights_digest
from margrave.models.dlib_file import (
    BASELINE,
    RECOGNITION,
    DlibBackbone,
    is_baseline,
    load_baseline,
)
from margrave.models.model_file import ModelCard, load_model, save_model
from margrave.models.onnx_card import card_path, load_onnx, runtime_class, write_card
from margrave.models.onnx_network import OnnxNetwork
from margrave.models.strict import load_strictly
from margrave.registry import names_from_file

MODEL_NAME = "model.safetensors"
"""The model's file name in a run's folder."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """An open model file, created by `open_model`.

    Attributes:
        path: the model file, even if `open_model` was given its folder.
        card: how to build the network, prepare its images and interpret its scores.
        state: the weights on the CPU; empty for ONNX models and for the baseline (dlib's model).
    """

    path: Path
    card: ModelCard
    state: Mapping[str, Tensor] = field(repr=False)
    # The network of an ONNX model or the baseline; None if it is to be built from card and state.
    _network: OnnxNetwork | DlibBackbone | None = field(default=None, repr=False)
    _device: str | None = field(default=None, repr=False)
    _trust_code: bool = field(default=False, repr=False)

    @cached_property
    def backbone(self) -> nn.Module:
        """The network in evaluation mode; it maps (B, 3, S, S) images to (B, D) embeddings.

        It is built on first access, so that reading the card and digest of a model with custom
        network code does not run that code.

        Raises:
            ValueError: the weights do not fit the card, the device is not available, or the card
                names custom code and ``trust_code`` is False.
        """
        if self._network is not None:
            return self._network.eval()
        with names_from_file(self.path, self._trust_code):
            backbone = backbones.create_for(self.state, self.card.backbone, str(self.path))
        load_strictly(backbone, self.state, str(self.path))
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return backbone.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            message = f"device = {device!r} is not available: {first_line(error)}"
            raise ValueError(message) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights; for an ONNX model and the baseline, of the model's files."""
        if self._network is not None:
            return self._network.content_digest
        return weights_digest(self.state)


def open_model(
    path: str | Path,
    *,
    device: str | None = None,
    trust_code: bool = False,
    runtime: str | None = None,
) -> Model:
    """Open a model file, a run's folder or an ONNX model; the kind is detected from the content.

    Args:
        path: a Margrave .safetensors file, a folder with a ``model.safetensors``, an .onnx file
            with a card in its metadata or next to it, or ``baseline`` for dlib's model (extra
            ``baseline``), unless a file or folder has this name.
        device: the network's device; None takes a CUDA device if there is one, except for OpenVINO
            and the baseline, which take the CPU.
        trust_code: import and run the custom network code that a card may name.
        runtime: the runtime for an ONNX model, ``onnxruntime`` (the default) or ``openvino``.

    Raises:
        ValueError: the file does not exist, is damaged, is another project's checkpoint (import it
            first) or is an ONNX model without a card; the runtime is unknown, not installed, or
            given for a model that is not ONNX; or the extra ``baseline`` is missing.

    >>> open_model("run")
    Traceback (most recent call last):
        ...
    ValueError: run: no such file or folder
    """
    if is_baseline(path):
        if runtime is not None:
            runtime_class(runtime)  # an unknown runtime raises an error that lists the choices
            raise ValueError(f"the baseline is not an ONNX model, so {runtime} cannot run it")
        network, card = load_baseline(device)
        return Model(path=network.path, card=card, state={}, _network=network)
    path = model_path(path)
    if is_onnx(path):
        network, card = load_onnx(path, device, runtime)
        return Model(path=path, card=card, state={}, _network=network)
    state, card = load_model(path)
    if runtime is not None:
        runtime_class(runtime)  # an unknown runtime raises an error that lists the choices
        raise ValueError(
            f"{path} is not an ONNX model, so {runtime} cannot run it; export it first: "
            f"margrave export {path} MODEL.onnx"
        )
    return Model(path=path, card=card, state=state, _device=device, _trust_code=trust_code)


def save_card(path: str | Path, card: ModelCard) -> Path:
    """Replace a model's card and keep its weights; for an ONNX model, write the card next to it.

    Args:
        path: the model, see `open_model`.
        card: the new card.

    Returns:
        the file that now contains the card.

    Raises:
        ValueError: the file is not a model, or is the baseline, whose card cannot be changed.
    """
    # For the baseline, `Model.path` is dlib's weight file.
    if is_baseline(path) or Path(path).name == RECOGNITION:
        raise ValueError(
            f"{BASELINE}: its card is part of Margrave and cannot be replaced; display the "
            "thresholds without saving them (margrave threshold --no-save)"
        )
    path = model_path(path)
    if is_onnx(path):
        write_card(path, card)
        return card_path(path)
    state, _ = load_model(path)
    save_model(path, state, card)
    return path


def model_path(path: str | Path) -> Path:
    """The model file: `path` itself, or the ``model.safetensors`` in it if it is a folder.

    Raises:
        ValueError: the path does not exist, or is a folder without a model.

    >>> model_path("model.onnx")
    Traceback (most recent call last):
        ...
    ValueError: model.onnx: no such file or folder
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    if (path / MODEL_NAME).is_file():
        return path / MODEL_NAME
    if (path / "config.yaml").is_file():
        raise ValueError(
            f"{path}: this run has no model yet; finish it: margrave train --resume {path}"
        )
    raise ValueError(
        f"{path} is a folder without {MODEL_NAME}, so it contains no model; give a model file or a "
        f"run's folder (if it contains images, give a model and --images {path})"
    )
