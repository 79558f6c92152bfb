"""Which files hold an ONNX model's weights, wherever in its graph the tensors are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from margrave.files import external_weights


def _external(location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="16")
    return tensor


def _model(path: Path, *tensors: onnx.TensorProto, nodes=()) -> Path:
    graph = helper.make_graph(list(nodes), "graph", [], [], list(tensors))
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_weights_of_the_graph_of_its_nodes_and_of_inner_graphs(tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [_external("inner.bin")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=_external("folder/constant.bin")),
        helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner),
    ]
    path = _model(tmp_path / "m.onnx", _external("w.bin"), _external("w.bin"), nodes=nodes)
    names = ["folder/constant.bin", "inner.bin", "w.bin"]
    assert external_weights(path) == [tmp_path / name for name in names]
    inside = numpy_helper.from_array(np.ones(3), "inside")
    assert external_weights(_model(tmp_path / "n.onnx", inside)) == []


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "C:\\w.bin"])
def test_weights_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.onnx has weights in .* outside its folder"):
        external_weights(_model(tmp_path / "m.onnx", _external(location)))


@pytest.mark.parametrize("seed", range(50))
def test_damaged_models_are_refused_or_read(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    path = _model(tmp_path / "m.onnx", _external("w.bin"))
    data = bytearray(path.read_bytes())
    for place in generator.integers(0, len(data), 3):
        data[place] = generator.integers(0, 256)
    path.write_bytes(data[: generator.integers(1, len(data) + 1)])
    try:
        external_weights(path)
    except ValueError as error:
        assert "m.onnx" in str(error)


def test_messages_within_each_other_without_end_are_refused(tmp_path: Path) -> None:
    data = b""
    # A graph in an attribute of a node of a graph, and so on.
    for number in (*(6, 5, 1) * 200, 7):
        length, size = len(data), b""
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        data = bytes([number << 3 | 2]) + size + bytes([length]) + data
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.onnx.*nested more than 64 levels"):
        external_weights(path)


def test_a_field_that_only_other_readers_see_is_refused(tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx", _external("w.bin"))
    content = path.read_bytes()
    # The graph is field 7; onnxruntime drops the bit of its number that is beyond the 32nd.
    changed = content.replace(b"\x3a", b"\xba\x80\x80\x80\x10", 1)
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="a field's number is too large"):
        external_weights(path)
