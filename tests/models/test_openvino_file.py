"""OpenVINO runs the models that onnxruntime runs, with the same checks and in our own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from margrave.inference import load_embedder
from margrave.models import ModelCard, OpenVinoBackbone, open_model, openvino_file, save_model


def _model(path: Path, batch: int | str = "batch", size: int | str = 4, rows: bool = True) -> Path:
    """Gives the mean of each channel of its input; or one row for all images."""
    axes = [2, 3] if rows else [0, 2, 3]
    shape = [batch, 3] if rows else [1, 3]
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=int(not rows))]
    nodes += [helper.make_node("Flatten", ["m"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    card = ModelCard(backbone={"kind": "onnx"}, image_size=4, mean=0.0, std=1.0)
    helper.set_model_props(model, {"margrave": card.to_json()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_rows_are_those_of_onnxruntime(batch: int | str, tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx", batch)
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (5, 4, 4, 3), np.uint8))
    given = load_embedder(path, runtime="openvino")
    assert isinstance(given.backbone, OpenVinoBackbone)
    expected, _ = load_embedder(path, device="cpu").embed_images(images)
    np.testing.assert_allclose(given.embed_images(images)[0], expected, rtol=1e-6)
    first = given.backbone(torch.zeros(2, 3, 4, 4))
    given.backbone(torch.ones(2, 3, 4, 4))
    # Later images leave earlier embeddings alone.
    assert not first.any()


def test_metadata_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx")
    one, other = (open_model(path, runtime=name) for name in ("onnxruntime", "openvino"))
    assert one.card == other.card and one.digest == other.digest


def test_errors_are_in_our_own_words(tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"cannot be run on device = 'cuda'; choices: .*cpu"):
        open_model(path, runtime="openvino", device="cuda")
    with pytest.raises(ValueError, match="runtime = 'openvin'; did you mean 'openvino'"):
        open_model(path, runtime="openvin")
    backbone = OpenVinoBackbone(path)
    with pytest.raises(ValueError, match=r"openvino cannot run it on shape \(1, 3, 5, 5\)"):
        backbone(torch.zeros(1, 3, 5, 5))
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"damaged or no(t an)? ONNX model"):
        OpenVinoBackbone(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="no such file"):
        OpenVinoBackbone(tmp_path / "nothing.onnx")
    one_row = OpenVinoBackbone(_model(tmp_path / "row.onnx", rows=False))
    with pytest.raises(ValueError, match=r"returns shape \(1, 3\) for 2 images"):
        one_row(torch.zeros(2, 3, 4, 4))


def test_signals_are_handled_after_models_are_closed(tmp_path: Path) -> None:
    """As two runtimes, opened and closed in turns, end a process on processors with AMX."""
    path = _model(tmp_path / "m.onnx")
    program = f"""
import faulthandler, gc, os, signal
faulthandler.enable()
from pathlib import Path
from margrave.models.openvino_file import OpenVinoBackbone
first = OpenVinoBackbone(Path({str(path)!r}))
second = OpenVinoBackbone(Path({str(path)!r}))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_it_is_for_onnx_models_and_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "m.safetensors"
    save_model(own, {"a": torch.zeros(1)}, ModelCard(backbone={"kind": "mbf"}))
    with pytest.raises(
        ValueError, match=r"is not an ONNX model, .*: margrave export .* MODEL\.onnx"
    ):
        open_model(own, runtime="openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_file, "_core", openvino_file._core.__wrapped__)
    with pytest.raises(ValueError, match=r"pip install 'margrave\[openvino\]'"):
        open_model(_model(tmp_path / "m.onnx"), runtime="openvino")
