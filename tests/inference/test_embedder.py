"""Embedding images: preprocessing, flips, and what cannot be embedded."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave import backbones
from margrave.inference import Embedder, embed_features, load_embedder
from margrave.models import ModelCard, save_model
from margrave.synthetic import SyntheticFaces

BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "embedding_size": 8,
    "image_size": 32,
}


@pytest.fixture
def embedder() -> Embedder:
    torch.manual_seed(0)
    card = ModelCard(backbone=BACKBONE, image_size=32)
    return Embedder(backbones.create(BACKBONE).eval(), card, batch_size=5)


@pytest.fixture(scope="module")
def faces() -> SyntheticFaces:
    return SyntheticFaces(num_identities=20, images_per_identity=4, image_size=40)


def test_photos_are_warned_about_and_crops_are_not(embedder: Embedder) -> None:
    with pytest.warns(UserWarning, match="look like photos, not aligned face crops"):
        embedder.embed([np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640, 3), np.uint8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed([np.zeros((112, 112, 3), np.uint8)] * 3)


def test_it_prints_as_one_line(embedder: Embedder) -> None:
    assert repr(embedder).startswith("Embedder(IResNet, image_size=32, mean=0.5, std=0.5, ")
    assert len(repr(embedder)) < 200


def test_batches_and_flips(embedder: Embedder, faces: SyntheticFaces) -> None:
    images = [faces.read(index) for index in range(7)]
    plain, mirrored = embedder.embed_images(images)
    assert plain.shape == mirrored.shape == (7, 8)
    alone, _ = embedder.embed_images([images[6][:, ::-1]], flips=False)
    np.testing.assert_allclose(alone[0], mirrored[6], rtol=1e-4, atol=1e-5)


def test_pixels_are_scaled_to_minus_one_to_one(embedder: Embedder) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    expected = embedder.backbone(torch.ones(1, 3, 32, 32)).detach().numpy()
    result, _ = embedder.embed_images([white], flips=False)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_a_model_file_embeds_the_same(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    save_model(tmp_path / "model.safetensors", embedder.backbone.state_dict(), embedder.card)
    again = load_embedder(tmp_path)
    first, _ = embedder.embed_images(faces, np.array([0, 3]))
    second, _ = again.embed_images(faces, np.array([0, 3]))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_features_in_memory(embedder: Embedder, faces: SyntheticFaces) -> None:
    counted = []
    features = embed_features(embedder, faces, progress=lambda done, total: counted.append(total))
    assert counted[-1] == len(faces) == len(features)
    own, flipped = embedder.embed_images(faces, np.array([3]))
    np.testing.assert_allclose(features.rows[3:4], own + flipped, rtol=1e-3, atol=1e-4)
    assert features.origin.weights and features.has_images(faces)
    np.testing.assert_array_equal(features.labels, faces.labels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8, 3), np.nan), "with NaN or infinite pixels"),
        (np.zeros((8, 8), np.uint8), r"image 0 has shape \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "dtype float32"),
    ],
)
def test_images_that_do_not_fit_are_named(
    embedder: Embedder, image: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embedder.embed_images([image])


def test_nothing_to_embed(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="no images to embed"):
        embedder.embed_images([])


def test_a_network_of_somebodys_own_needs_trust(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(48, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    card = ModelCard(backbone={"kind": "their_net:Net"}, image_size=4)
    state = backbones.create(card.backbone).state_dict()
    save_model(tmp_path / "model.safetensors", state, card)
    with pytest.raises(ValueError, match=r"if you trust it, give --trust-code"):
        load_embedder(tmp_path)
    assert load_embedder(tmp_path, trust_code=True).card.backbone["kind"] == "their_net:Net"


def test_a_card_cannot_name_a_function_to_call(tmp_path: Path) -> None:
    card = ModelCard(backbone={"kind": "os:system", "command": f"touch {tmp_path}/called"})
    save_model(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, card)
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"os:system"):
            load_embedder(tmp_path, trust_code=trust)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("answer", "shape"),
    [
        (lambda images: images.flatten(1).mean(0, keepdim=True), r"\(1, 3072\)"),
        (lambda images: images.flatten(), r"\(15360,\)"),
        (lambda images: images, r"\(5, 3, 32, 32\)"),
        (lambda images: (images.flatten(1), images.flatten(1).norm(dim=1)), "tuple"),
    ],
)
def test_a_network_must_give_one_row_per_image(answer, shape: str) -> None:
    class Net(torch.nn.Linear):
        def forward(self, input):
            return answer(input)

    embedder = Embedder(Net(1, 1), ModelCard(backbone=BACKBONE, image_size=32))
    pixels = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=rf"Net returned {shape} for 5 images, expected .* one emb"
    ):
        embedder.embed_pixels(pixels)
    with pytest.raises(ValueError, match=rf"Net returned {shape} for 5 images"):
        embedder.embed_images(list(pixels.permute(0, 2, 3, 1).numpy()))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "vit", "depth": 10**8},
        {"kind": "vit", "width": 10**7},
        {"kind": "vit", "mlp_ratio": float("inf")},
        {"kind": "iresnet", "block_counts": [10**7, 1, 1, 1]},
        {"kind": "iresnet50", "embedding_size": 10**9},
        {"kind": "iresnet", "channels": [2**62, 8, 8, 8]},
    ],
    ids=str,
)
def test_a_card_describes_no_more_than_its_weights(tmp_path: Path, changes: dict) -> None:
    network = backbones.create({"kind": "mbf"})
    save_model(tmp_path / "model.safetensors", network.state_dict(), ModelCard(backbone=changes))
    with pytest.raises(ValueError, match=r"model\.safetensors(:| is damaged: )"):
        load_embedder(tmp_path)
