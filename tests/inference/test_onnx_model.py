"""ONNX models of fixed and of any batch, whose preprocessing is stated and never guessed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from margrave.checkpoints import ModelCard
from margrave.inference import OnnxBackbone, import_onnx, load_embedder

SHARED = Path(__file__).parents[3] / "shared" / "models" / "mobilefacenet.onnx"


def _model(
    path: Path, batch: int | str = "batch", size: int | str = 4, card: ModelCard | None = None
) -> Path:
    """Gives the mean of each channel of its input."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels"], ["embedding"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if card is not None:
        helper.set_model_props(model, {"margrave": card.to_json()})
    onnx.save(model, path)
    return path


def _red(count: int = 5) -> list[np.ndarray]:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, :, 0] = 255
    return [image] * count


@pytest.mark.parametrize("batch", ["batch", 1, 2, 16])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_channels_and_batches(batch: int | str, order: str, tmp_path: Path) -> None:
    source = _model(tmp_path / "means.onnx", batch)
    import_onnx(
        source, tmp_path / "ours.onnx", mean=(0.5, 0.0, 0.25), deviation=0.5, colour_order=order
    )
    embedder = load_embedder(tmp_path / "ours.onnx")
    found, mirrored = embedder.embed_images(_red())
    # The statistics are in the order that the model's own channels have.
    expected = [1.0, 0.0, -0.5] if order == "rgb" else [-1.0, 0.0, 1.5]
    np.testing.assert_allclose(found, [expected] * 5, atol=1e-6)
    np.testing.assert_allclose(mirrored, found, atol=1e-6)
    assert embedder.card.image_size == 4


def test_preprocessing_is_never_guessed(tmp_path: Path) -> None:
    source = _model(tmp_path / "means.onnx", size="height")
    with pytest.raises(ValueError, match="does not say how its images are prepared"):
        load_embedder(source)
    with pytest.raises(ValueError, match=r"its mean, colour_order, image_size; state them: --mean"):
        import_onnx(source, tmp_path / "ours.onnx", mean=None, deviation=0.5, colour_order=None)
    card = import_onnx(
        source, tmp_path / "ours.onnx", mean=0, deviation=1, colour_order="rgb", image_size=6
    )
    assert load_embedder(tmp_path / "ours.onnx").card == card and card.image_size == 6


def test_a_model_that_says_it_itself_is_taken_at_its_word(tmp_path: Path) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=4, mean=0.0, deviation=1.0)
    embedder = load_embedder(_model(tmp_path / "means.onnx", card=card))
    assert embedder.card == card
    np.testing.assert_allclose(embedder.embed_images(_red(2))[0], [[1, 0, 0]] * 2, atol=1e-6)
    wrong = ModelCard(backbone={"kind": "onnx"}, image_size=5)
    with pytest.raises(ValueError, match="images of 4, its card says 5"):
        load_embedder(_model(tmp_path / "wrong.onnx", card=wrong))


def test_files_that_are_no_embedders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        OnnxBackbone(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match="damaged or no ONNX model"):
        OnnxBackbone(tmp_path / "text.onnx")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "same",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "same.onnx")
    with pytest.raises(ValueError, match=r"expected one \(B, 3, S, S\)"):
        OnnxBackbone(tmp_path / "same.onnx")


@pytest.mark.skipif(
    not SHARED.exists() and not os.environ.get("MARGRAVE_REQUIRE_SHARED"),
    reason="the pretrained embedder is not here",
)
def test_the_pretrained_embedder(tmp_path: Path) -> None:
    import_onnx(
        SHARED,
        tmp_path / "mobilefacenet.onnx",
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        colour_order="rgb",
    )
    embedder = load_embedder(tmp_path / "mobilefacenet.onnx")
    images = [np.full((112, 112, 3), grey, np.uint8) for grey in (0, 100, 200)]
    plain, _ = embedder.embed_images(images)
    alone, _ = embedder.embed_images(images[2:])
    assert plain.shape == (3, 128)
    np.testing.assert_allclose(plain[2], alone[0], rtol=1e-5)
