"""ONNX models of fixed and of any batch, whose preprocessing is stated and never guessed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from margrave.inference import load_embedder
from margrave.models import ModelCard, OnnxBackbone, OperatingPoint, import_onnx

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
    import_onnx(source, tmp_path / "ours.onnx", mean=(0.5, 0.0, 0.25), std=0.5, color_order=order)
    embedder = load_embedder(tmp_path / "ours.onnx")
    plain, mirrored = embedder.embed_images(_red())
    # The statistics are in the order that the model's own channels have.
    expected = [1.0, 0.0, -0.5] if order == "rgb" else [-1.0, 0.0, 1.5]
    np.testing.assert_allclose(plain, [expected] * 5, atol=1e-6)
    np.testing.assert_allclose(mirrored, plain, atol=1e-6)
    assert embedder.card.image_size == 4


@pytest.mark.parametrize("batch", ["batch", 1, 2, 16])
def test_an_empty_batch_gives_no_rows(batch: int | str, tmp_path: Path) -> None:
    backbone = OnnxBackbone(_model(tmp_path / "means.onnx", batch))
    for backbone.one_at_a_time in (False, True):
        assert backbone(torch.zeros(0, 3, 4, 4)).shape == (0, 3)


def test_preprocessing_is_never_guessed(tmp_path: Path) -> None:
    source = _model(tmp_path / "means.onnx", size="height")
    with pytest.raises(
        ValueError, match=r"create one: margrave import .* --mean MEAN --std STD --color"
    ):
        load_embedder(source)
    stated = r"its mean, color_order, image_size; state them: --mean MEAN --color-order rgb"
    with pytest.raises(ValueError, match=stated):
        import_onnx(source, tmp_path / "ours.onnx", mean=None, std=0.5, color_order=None)
    _, card = import_onnx(
        source, tmp_path / "ours.onnx", mean=0, std=1, color_order="rgb", image_size=6
    )
    assert load_embedder(tmp_path / "ours.onnx").card == card and card.image_size == 6


def test_a_stated_image_size_replaces_the_cards(tmp_path: Path) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=6, mean=0.0, std=1.0)
    source = _model(tmp_path / "means.onnx", size="height", card=card)
    nothing = {"mean": None, "std": None, "color_order": None}
    _, imported = import_onnx(source, tmp_path / "ours.onnx", **nothing, image_size=8)
    assert imported.image_size == 8
    assert import_onnx(source, tmp_path / "same.onnx", **nothing)[1].image_size == 6


def test_thresholds_of_other_preprocessing_are_not_kept(tmp_path: Path) -> None:
    points = (OperatingPoint(far=0.1, threshold=0.3),)
    card = ModelCard(
        backbone={"kind": "onnx"}, image_size=6, mean=0.0, std=1.0, operating_points=points
    )
    source = _model(tmp_path / "means.onnx", size="height", card=card)
    stated = {"mean": None, "std": 1.0, "color_order": None}
    _, imported = import_onnx(source, tmp_path / "same.onnx", **stated)
    assert imported.operating_points == points
    stated["color_order"] = "bgr"
    with pytest.warns(UserWarning, match="measured with other preprocessing"):
        _, imported = import_onnx(source, tmp_path / "other.onnx", **stated)
    assert imported.operating_points == ()


def test_a_model_that_says_it_itself_is_taken_at_its_word(tmp_path: Path) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=4, mean=0.0, std=1.0)
    embedder = load_embedder(_model(tmp_path / "means.onnx", card=card))
    assert embedder.card == card
    np.testing.assert_allclose(embedder.embed_images(_red(2))[0], [[1, 0, 0]] * 2, atol=1e-6)
    wrong = ModelCard(backbone={"kind": "onnx"}, image_size=5)
    with pytest.raises(ValueError, match="images of 4 pixels, but its card says 5"):
        load_embedder(_model(tmp_path / "wrong.onnx", card=wrong))


def test_files_that_are_no_embedders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        OnnxBackbone(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"damaged or no(t an)? ONNX model"):
        OnnxBackbone(tmp_path / "text.onnx")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "same",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "same.onnx")
    with pytest.raises(ValueError, match=r"expected one input of shape \(B, 3, S, S\)"):
        OnnxBackbone(tmp_path / "same.onnx")


def _graph(path: Path, nodes, inputs, outputs, constants=(), **saved) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path, **saved)
    return path


def _value(name: str, shape, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _patches(path: Path, tail, shape=("N", "D"), batch: int | str = "N") -> Path:
    """A projection of 4 x 4 pixels to 5 numbers, `e`, and what makes the embedding of them."""
    weight = np.random.default_rng(0).standard_normal((48, 5)).astype(np.float32)
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([1, -1]), "one"),
        numpy_helper.from_array(np.array([-1, 5]), "rows"),
        numpy_helper.from_array(np.array(0.5, np.float32), "ratio"),
        numpy_helper.from_array(np.array(True), "training"),
    ]
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["e"]),
        *tail,
    ]
    return _graph(path, nodes, [_value("x", [batch, 3, 4, 4])], [_value("y", shape)], constants)


FIXED_INSIDE = {
    "first row": [helper.make_node("Gather", ["e", "zero"], ["y"], axis=0)],
    "flattened": [helper.make_node("Reshape", ["e", "one"], ["y"])],
    "mean": [helper.make_node("ReduceMean", ["e"], ["y"], axes=[0], keepdims=1)],
    "mixed": [
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Add", ["e", "m"], ["y"]),
    ],
    "rows that other rows move": [
        helper.make_node("Softmax", ["e"], ["s"], axis=0),
        helper.make_node("Add", ["e", "s"], ["y"]),
    ],
}


def _various(count: int = 5) -> list[np.ndarray]:
    return [
        np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8) for seed in range(count)
    ]


def _import(source: Path, **stated):
    target = source.with_name(f"imported {source.name}")
    stated = {"mean": 0.5, "std": 0.5, "color_order": "rgb"} | stated
    import_onnx(source, target, **stated)
    return load_embedder(target)


@pytest.mark.parametrize(
    ("tail", "batch"), [*((tail, "N") for tail in FIXED_INSIDE), ("first row", 3), ("mixed", 3)]
)
def test_images_go_alone_where_a_batch_would_change_them(tail, batch, tmp_path: Path) -> None:
    shape = ["N", "D"] if tail in ("mixed", "rows that other rows move") else [1, "D"]
    embedder = _import(_patches(tmp_path / "m.onnx", FIXED_INSIDE[tail], shape, batch))
    assert isinstance(embedder.backbone, OnnxBackbone) and embedder.backbone.one_at_a_time
    embeddings, _ = embedder.embed_images(_various(), flips=False)
    assert embeddings.shape == (5, 5) and len(np.unique(embeddings, axis=0)) == 5
    for index, image in enumerate(_various()):
        alone, _ = embedder.embed_images([image], flips=False)
        np.testing.assert_allclose(embeddings[index], alone[0], rtol=1e-5)


def test_a_batch_of_images_that_do_not_move_each_other_goes_together(tmp_path: Path) -> None:
    embedder = _import(_patches(tmp_path / "m.onnx", [helper.make_node("Neg", ["e"], ["y"])]))
    assert isinstance(embedder.backbone, OnnxBackbone) and not embedder.backbone.one_at_a_time


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (
            [helper.make_node("Dropout", ["e", "ratio", "training"], ["y"])],
            "a different embedding each time for the same image",
        ),
        (
            [
                helper.make_node("Concat", ["e", "e"], ["c"], axis=1),
                helper.make_node("Reshape", ["c", "rows"], ["y"]),
            ],
            r"returns shape \(2, 5\) for one image, expected \(1, D\)",
        ),
        ([helper.make_node("Log", ["e"], ["y"])], "NaN or infinite"),
        ([helper.make_node("Add", ["e", "one"], ["y"])], "damaged or no(t an)? ONNX model"),
        (
            [helper.make_node("MatMul", ["e", "w"], ["y"])],
            r"(onnxruntime cannot run it on shape \(1, 3, 4, 4\)|damaged or no(t an)? ONNX model)",
        ),
    ],
)
def test_models_without_one_embedding_per_image_are_refused(
    tail, message: str, tmp_path: Path
) -> None:
    source = _patches(tmp_path / "m.onnx", tail)
    with pytest.raises(ValueError, match=rf"m\.onnx.*{message}"):
        _import(source)
    assert not (tmp_path / "imported m.onnx").exists()


def test_a_size_that_the_graph_cannot_take_is_refused_on_import(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((48, 5), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    inputs, outputs = [_value("x", ["N", 3, "H", "W"])], [_value("y", ["N", "D"])]
    source = _graph(tmp_path / "m.onnx", nodes, inputs, outputs, [weight])
    with pytest.raises(
        ValueError, match=r"m\.onnx: onnxruntime cannot run it on shape \(1, 3, 6, 6\)"
    ):
        _import(source, image_size=6)


def test_rows_are_counted_without_an_import_too(tmp_path: Path) -> None:
    backbone = OnnxBackbone(_patches(tmp_path / "m.onnx", FIXED_INSIDE["mean"], [1, "D"]))
    with pytest.raises(ValueError, match=r"returns shape \(1, 5\) for 2 images"):
        backbone(torch.zeros(2, 3, 4, 4))


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Neg", ["means"], ["negated"]),
    ]
    outputs = [_value("means", ["N", 3]), _value("negated", ["N", 3])]
    source = _graph(tmp_path / "two.onnx", nodes, [_value("x", ["N", 3, 4, 4])], outputs)
    with pytest.raises(ValueError, match=r"2 outputs: means .*, negated .*--output NAME"):
        _import(source)
    with pytest.raises(ValueError, match="no output 'negatd'; did you mean 'negated'"):
        _import(source, output="negatd")
    embedder = _import(source, output="negated")
    np.testing.assert_allclose(embedder.embed_images(_red(2))[0], [[-1, 1, 1]] * 2, atol=1e-6)
    digests = {OnnxBackbone(source, output=name).content_digest for name in ("means", "negated")}
    assert len(digests) == 2


def test_the_message_about_a_shape_names_the_chosen_output_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Neg", ["x"], ["maps"]),
    ]
    outputs = [_value("means", ["N", 3]), _value("maps", ["N", 3, 4, 4])]
    source = _graph(tmp_path / "two.onnx", nodes, [_value("x", ["N", 3, 4, 4])], outputs)
    with pytest.raises(ValueError, match=r"has the output maps \['N', 3, 4, 4\]; expected"):
        _import(source, output="maps")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_pixels_come_in_the_declared_shape_and_type(
    channels_last: bool, kind: int, tmp_path: Path
) -> None:
    shape, axes = (["N", 4, 4, 3], [1, 2]) if channels_last else (["N", 3, 4, 4], [2, 3])
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["c"], ["y"], axes=axes, keepdims=0),
    ]
    source = _graph(tmp_path / "m.onnx", nodes, [_value("x", shape, kind)], [_value("y", ["N", 3])])
    if kind == TensorProto.UINT8:
        with pytest.raises(ValueError, match="takes uint8 pixels and normalizes them itself"):
            _import(source)
        embedder = _import(source, mean=None, std=None)
        expected = [255, 0, 0]
    else:
        embedder = _import(source)
        expected = [1, -1, -1]
    np.testing.assert_allclose(embedder.embed_images(_red(2))[0], [expected] * 2, atol=1e-3)


def test_weights_beside_the_model_belong_to_its_digest(tmp_path: Path) -> None:
    def digest(seed: int) -> str:
        (tmp_path / "w.data").unlink(missing_ok=True)
        weight = np.random.default_rng(seed).standard_normal((48, 5)).astype(np.float32)
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ]
        path = _graph(
            tmp_path / "m.onnx",
            nodes,
            [_value("x", ["N", 3, 4, 4])],
            [_value("y", ["N", 5])],
            [numpy_helper.from_array(weight, "w")],
            save_as_external_data=True,
            location="w.data",
            size_threshold=0,
        )
        return OnnxBackbone(path).content_digest

    assert digest(0) == digest(0) != digest(1)
    _import(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"needs its external files \(w\.data\)"):
        import_onnx(
            tmp_path / "m.onnx",
            tmp_path / "elsewhere" / "m.onnx",
            mean=0.5,
            std=0.5,
            color_order="rgb",
        )
    (tmp_path / "w.data").unlink()
    with pytest.raises(ValueError, match=r"m\.onnx.* damaged or no(t an)? ONNX model"):
        OnnxBackbone(tmp_path / "m.onnx")


@pytest.mark.skipif(
    not SHARED.exists() and not os.environ.get("MARGRAVE_REQUIRE_SHARED"),
    reason="the pretrained embedder is not here",
)
def test_the_pretrained_embedder(tmp_path: Path) -> None:
    import_onnx(
        SHARED,
        tmp_path / "mobilefacenet.onnx",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        color_order="rgb",
    )
    embedder = load_embedder(tmp_path / "mobilefacenet.onnx")
    images = [np.full((112, 112, 3), gray, np.uint8) for gray in (0, 100, 200)]
    plain, _ = embedder.embed_images(images)
    alone, _ = embedder.embed_images(images[2:])
    assert plain.shape == (3, 128)
    np.testing.assert_allclose(plain[2], alone[0], rtol=1e-5)


def test_the_gpu_that_is_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    cuda = "CUDAExecutionProvider"
    session, chosen = onnxruntime.InferenceSession, []

    def record(path: str, options: object, *, providers: list, provider_options: object) -> object:
        chosen.append((providers, provider_options))
        return session(path, providers=["CPUExecutionProvider"])

    path = _model(tmp_path / "means.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda])
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    OnnxBackbone(path, device="cuda")
    OnnxBackbone(path, device="cuda:1")
    assert chosen == [([cuda], None), ([cuda], [{"device_id": "1"}])]
    with pytest.raises(ValueError, match="cannot be run on device = 'cuda:x'"):
        OnnxBackbone(path, device="cuda:x")
