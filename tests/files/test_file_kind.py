"""Content decides what kind a file is."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from margrave.files import file_kind, is_onnx, is_safetensors, onnx_tensors


def onnx_model(path: Path, weights: dict[str, np.ndarray], external: bool = False) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    outside = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(model, path, **(outside if external else {}))
    return path


def test_kinds(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    tensors = {"weight": torch.ones(3)}
    torch.save(tensors, path)
    assert file_kind(path) == "checkpoint"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert file_kind(path) == "checkpoint"
    save_file(tensors, path)
    assert file_kind(path) == "safetensors" and is_safetensors(path)
    path.write_bytes(pickle.dumps(([b"jpeg"], [True])))
    assert file_kind(path) == "pickle" and not is_onnx(path)
    onnx_model(path, {})
    assert file_kind(path) == "onnx" and is_onnx(path)
    path.write_bytes((0xCED7230A).to_bytes(4, "little") + bytes(12))
    assert file_kind(path) == "records"


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\x07", b"text", b"\xff" * 64, b"\x3a\xff"])
def test_nothing_known(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(content)
    # A damaged file is still what its name says, so that its reader names the damage.
    assert file_kind(path) == "unknown" and is_onnx(path)
    assert file_kind(tmp_path) == file_kind(tmp_path / "missing") == "unknown"


def test_cut_onnx_files_are_unknown(tmp_path: Path) -> None:
    path = onnx_model(tmp_path / "model", {"w": np.ones((4, 4), np.float32)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert file_kind(path) in ("unknown", "onnx")


@pytest.mark.parametrize("external", [False, True])
def test_weights_of_onnx_models(external: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = {
        "single": draw.normal(size=(3, 2, 1)).astype(np.float32),
        "half": draw.normal(size=5).astype(np.float16),
        "double": draw.normal(size=(2, 2)),
        "bytes": draw.integers(-9, 9, (4, 3)).astype(np.int8),
    }
    skipped = {"shape": np.array([1, -1])}
    path = onnx_model(tmp_path / "model.onnx", weights | skipped, external)
    read = dict(onnx_tensors(path))
    assert read.keys() == weights.keys()
    assert all(np.array_equal(read[name], value) for name, value in weights.items())
    if external:
        (tmp_path / "w.data").write_bytes(b"short")
        with pytest.raises(ValueError, match="is truncated"):
            list(onnx_tensors(path))


def test_damaged_onnx_weights(tmp_path: Path) -> None:
    path = onnx_model(tmp_path / "model.onnx", {"w": np.ones((8, 8), np.float32)})
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(draw.integers(1, 4)):
            damaged[draw.integers(len(content))] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            for _, values in onnx_tensors(path):
                assert values.nbytes <= len(content)
        except ValueError as error:
            assert "model.onnx" in str(error)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert file_kind(tmp_path / "model.onnx") == "unknown"


def test_many_tiny_fields_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\x08\x01" * 10_000_000)
    assert file_kind(tmp_path / "model") == "unknown"
