"""Margrave's own files come back as they were written, or are refused."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from margrave import former_names
from margrave.files import atomic_write
from margrave.models import ModelCard, load_model, read_card, save_model

STATE = {
    "conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
    "norm.num_batches_tracked": torch.tensor(7),
    "half": torch.randn(5).bfloat16(),
}
CARD = ModelCard(
    backbone={"kind": "iresnet", "block_counts": [1, 1, 1, 1], "image_size": 64},
    image_size=64,
    mean=0.4,
    std=0.2,
    source="a test",
)


def write_card(path, **changes):
    fields = {**json.loads(json.dumps(CARD.__dict__)), **changes}
    save_file({"weight": torch.zeros(1)}, path, metadata={"margrave": json.dumps(fields)})


def test_a_model_comes_back_exactly(tmp_path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_model(path, STATE, CARD)
    state, card = load_model(path)
    assert card == CARD
    assert state.keys() == STATE.keys()
    for key, tensor in STATE.items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor)
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    weight = torch.randn(4)
    save_model(tmp_path / "m.safetensors", {"a": weight, "b": weight, "c": weight[1:]}, CARD)
    state, _ = load_model(tmp_path / "m.safetensors")
    assert torch.equal(state["b"], weight) and torch.equal(state["c"], weight[1:])


@settings(max_examples=25, deadline=None)
@given(
    mean=st.floats(-1, 1),
    std=st.floats(1e-3, 10),
    image_size=st.integers(1, 1000),
    source=st.text(st.characters(codec="utf-8")),
)
def test_any_card_comes_back(tmp_path_factory, mean, std, image_size, source):
    path = tmp_path_factory.getbasetemp() / "card.safetensors"
    card = ModelCard(
        backbone={"kind": "mbf"},
        mean=mean,
        std=std,
        image_size=image_size,
        source=source,
    )
    save_model(path, {"weight": torch.zeros(1)}, card)
    assert load_model(path)[1] == card


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"backbone": {}}, "with a 'kind'"),
        ({"backbone": "mbf"}, "with a 'kind'"),
        ({"image_size": 0}, "image_size = 0"),
        ({"image_size": 112}, "image_size = 112, but the backbone's image_size is 64"),
        ({"mean": -(10**400)}, "mean = -1000"),
        ({"std": 0.0}, "std = 0.0"),
        ({"std": "wide"}, "std = 'wide'"),
        ({"color_order": "bgr"}, "color_order = 'bgr', must be 'rgb'"),
        ({"source": None}, "source = None"),
        ({"format_version": 3}, "format_version = 3, but this version of Margrave reads 1"),
    ),
)
def test_wrong_cards_are_refused_made_or_read(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ModelCard(**{**CARD.__dict__, **changes})
    write_card(tmp_path / "model.safetensors", **changes)
    with pytest.raises(ValueError, match=rf"model.safetensors: its card is invalid: .*{message}"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("mean", "text"), ((math.nan, "NaN"), (math.inf, "Infinity")))
def test_numbers_that_json_does_not_have_are_refused(tmp_path, mean, text):
    with pytest.raises(ValueError, match=f"mean = {mean}"):
        ModelCard(**{**CARD.__dict__, "mean": mean})
    write_card(tmp_path / "model.safetensors", mean=mean)
    with pytest.raises(ValueError, match=f"its card is damaged .*{text} is not a JSON number"):
        load_model(tmp_path / "model.safetensors")


def test_an_unknown_field_is_named(tmp_path):
    write_card(tmp_path / "model.safetensors", meen=0.5)
    with pytest.raises(ValueError, match="unknown field 'meen'; did you mean 'mean'"):
        load_model(tmp_path / "model.safetensors")


def test_a_newer_format_is_told_before_its_new_fields(tmp_path):
    write_card(tmp_path / "model.safetensors", format_version=9, novelty=1)
    with pytest.raises(ValueError, match="format_version = 9"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ("{", "[]", "{}"))
def test_a_damaged_card_is_refused(tmp_path, text):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"margrave": text})
    with pytest.raises(ValueError, match=r"model.safetensors: its card is"):
        load_model(path)


@pytest.mark.parametrize("kept", (0, 5, 60, -1))
def test_truncated_files_are_refused(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_model(path, STATE, CARD)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged or not a model file"):
        load_model(path)


def test_foreign_and_missing_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        ValueError, match=r"foreign.safetensors: this safetensors file has no Margrave card"
    ):
        load_model(tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"absent.safetensors: no such file"):
        load_model(tmp_path / "absent.safetensors")


def test_a_card_that_is_no_json_is_refused_and_nothing_written(tmp_path):
    card = ModelCard(backbone={"kind": "mbf", "device": torch.device("cpu")})
    with pytest.raises(ValueError, match="cannot be written"):
        save_model(tmp_path / "model.safetensors", STATE, card)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": 10**400},
        {"std": 10**400},
        {"image_size": 10**9},
        {"image_size": True},
        {"operating_points": [{"far": 0.1, "threshold": 0.5, "true_accept_rate": "x"}]},
        {"operating_points": [{"far": 0.1, "threshold": 0.5, "threshold_interval": [1, 2, 3]}]},
        {"operating_points": [{"far": 0.1, "threshold": 0.5, "measured_on": 3}]},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_numbers_beyond_measure_are_refused(fields: dict) -> None:
    text = json.dumps({"backbone": {"kind": "mbf"}, **fields})
    with pytest.raises(ValueError, match=r"x\.safetensors: its card is invalid"):
        read_card(text, "x.safetensors")


@pytest.mark.parametrize(("former", "name"), former_names.CARD.items())
def test_fields_are_read_under_the_names_of_0_1(former: str, name: str) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, std=(0.1, 0.2, 0.3), color_order="bgr")
    fields = json.loads(card.to_json())
    fields[former] = fields.pop(name)
    assert read_card(json.dumps(fields), "x.safetensors") == card
    with pytest.raises(ValueError, match=rf"damaged \(both '{name}' and its former name"):
        read_card(json.dumps({**fields, name: fields[former]}), "x.safetensors")
