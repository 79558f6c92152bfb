"""Every official network, rebuilt from its keys and shapes, gives the answers it gave."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from margrave import backbones, models
from margrave.models import importers

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones"
KINDS = {
    "adaface_ir_101": "ir_101",
    "adaface_ir_152": "ir_152",
    "adaface_ir_18": "ir_18",
    "adaface_ir_34": "ir_34",
    "adaface_ir_50": "ir_50",
    "adaface_ir_se_50": "ir_se_50",
    "curricularface_ir_101": "curricular_ir_101",
    "curricularface_ir_50": "curricular_ir_50",
    "curricularface_ir_se_50": "curricular_ir_se_50",
    "curricularface_mbf": "curricular_mbf",
    "insightface_iresnet100": "iresnet100",
    "insightface_iresnet18": "iresnet18",
    "insightface_iresnet34": "iresnet34",
    "insightface_iresnet50": "iresnet50",
    "insightface_mbf": "mbf",
    "insightface_mbf_large": "mbf_large",
    "insightface_vit_s": "vit_s",
    "insightface_vit_t": "vit_t",
}


def official_tensor(key: str, shape: tuple[int, ...], salt: str) -> torch.Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    noise = np.random.default_rng(crc32((salt + key).encode())).standard_normal(shape)
    if key.endswith("running_var"):
        values = 0.5 + np.abs(noise)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * noise
    elif len(shape) == 1:
        values = 0.25 + 0.05 * noise if "prelu" in key.lower() else 1 + 0.1 * noise
    else:
        values = noise * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_official_answers(name):
    golden = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    salt = str(golden["salt"])
    official = {
        str(key): official_tensor(str(key), tuple(json.loads(str(shape))), salt)
        for key, shape in zip(golden["keys"], golden["shapes"], strict=True)
    }
    imported = importers.convert(official)
    assert imported.backbone == {"kind": KINDS[name], "embedding_size": 512, "image_size": 112}
    with torch.device("meta"):
        backbone = backbones.create(imported.backbone)
    models.load_strictly(backbone, imported.state, name, imported.names)
    assert len(backbone.state_dict()) == len(official)
    assert sum(weight.numel() for weight in backbone.parameters()) == int(golden["parameters"])

    pixels = np.random.default_rng(crc32((salt + name).encode())).uniform(-1, 1, (2, 3, 112, 112))
    images = torch.from_numpy(pixels.astype(np.float32))
    if name.startswith("adaface"):
        # The same pixels, which AdaFace's network was given as BGR.
        images = images.flip(1)
    with torch.inference_mode():
        features = backbone.eval()(images).numpy()
    if name.startswith("adaface"):
        norm = np.linalg.norm(features, axis=1, keepdims=True)
        assert np.abs(norm - golden["output_1"]).max() <= 1e-5 * golden["output_1"].max()
        features = features / norm
    magnitude = np.abs(golden["output_0"]).max()
    assert np.abs(features - golden["output_0"]).max() <= 1e-5 * magnitude
