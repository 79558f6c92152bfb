"""Other projects' keys are recognized, renamed and measured; what does not fit is named.

Official keys and shapes come from the golden files. Meta tensors stand for the weights, whose
values the golden tests of the backbones check.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave import backbones
from margrave.models import Checkpoint, load_strictly
from margrave.models.importers import convert, detect_layout

GOLDEN = Path(__file__).parents[2] / "golden" / "backbones"
LAYOUTS = {
    "adaface_ir_50": "adaface_ir",
    "adaface_ir_152": "adaface_ir",
    "adaface_ir_se_50": "adaface_ir",
    "curricularface_ir_101": "curricularface_ir",
    "curricularface_ir_se_50": "curricularface_ir",
    "curricularface_mbf": "curricularface_mobilefacenet",
    "insightface_iresnet18": "insightface_iresnet",
    "insightface_mbf": "insightface_mobilefacenet",
    "insightface_mbf_large": "insightface_mobilefacenet",
    "insightface_vit_t": "insightface_vit",
}


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    golden = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    return {
        str(key): tuple(json.loads(str(shape)))
        for key, shape in zip(golden["keys"], golden["shapes"], strict=True)
    }


def official(name: str, prefix: str = "", **changes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    sizes = {**shapes(name), **changes}
    return {prefix + key: torch.empty(shape, device="meta") for key, shape in sizes.items()}


def load(state: dict[str, torch.Tensor]) -> None:
    imported = convert(state)
    with torch.device("meta"):
        backbone = backbones.create(imported.backbone)
    load_strictly(backbone, imported.state, "weights.pth", imported.names)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layouts_are_recognized(name):
    assert detect_layout(official(name)) == LAYOUTS[name]


@pytest.mark.parametrize("name", ("adaface_ir_50", "insightface_mbf", "insightface_vit_t"))
@pytest.mark.parametrize("prefix", ("", "module.", "net.", "model.net."))
def test_prefixes_make_no_difference(name, prefix):
    assert convert(official(name, prefix)).backbone == convert(official(name)).backbone
    load(official(name, prefix))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_state_given_is_left_alone(name):
    state = official(name)
    before = dict(state)
    convert(state)
    assert state.keys() == before.keys()
    assert all(state[key] is before[key] for key in state)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_one_error_names_all_that_does_not_fit(name):
    state = official(name)
    missing, misshapen = [key for key in state if key.endswith("bias")][3:5]
    del state[missing]
    state[misshapen] = torch.empty(7, device="meta")
    state["something.else"] = torch.empty(1)
    with pytest.raises(ValueError, match=r"weights\.pth does not fit") as caught:
        load(state)
    message = str(caught.value)
    assert f"1 missing: {missing}" in message
    assert "1 unexpected: something.else" in message
    assert f"1 of the wrong shape: {misshapen}" in message and "is (7,), expected" in message


def test_counters_of_batches_may_be_missing():
    state = official("adaface_ir_50")
    load({key: state[key] for key in state if not key.endswith("num_batches_tracked")})


def test_a_block_lost_in_the_middle_is_named():
    state = official("adaface_ir_50")
    with pytest.raises(ValueError, match=r"missing: body\.9\.res_layer\.0\.weight"):
        load({key: state[key] for key in state if not key.startswith("body.9.")})


@pytest.mark.parametrize(
    ("name", "linear", "channels"),
    (
        ("adaface_ir_50", "output_layer.3.weight", 512),
        ("adaface_ir_152", "output_layer.3.weight", 2048),
        ("curricularface_ir_101", "output_layer.3.weight", 512),
        ("insightface_iresnet18", "fc.weight", 512),
    ),
)
def test_embedding_and_image_size_are_read_from_the_linear_layer(name, linear, channels):
    state = official(name, **{linear: (256, channels * 14 * 14)})
    assert convert(state).backbone["embedding_size"] == 256
    assert convert(state).backbone["image_size"] == 224
    state[linear] = torch.empty(256, channels * 14 * 14 + 1, device="meta")
    with pytest.raises(ValueError, match=rf"{linear} of .* do not form a square map"):
        convert(state)
    state[linear] = torch.empty(256, device="meta")
    with pytest.raises(ValueError, match=rf"{linear} has shape \(256,\), expected 2 dimensions"):
        convert(state)
    del state[linear]
    with pytest.raises(ValueError, match=rf"{linear} is missing"):
        convert(state)


def test_stages_that_cannot_be_told_apart_are_named():
    state = official("adaface_ir_50")
    del state["body.7.shortcut_layer.0.weight"]
    with pytest.raises(ValueError, match=r"found 3 stages, starting at blocks \[0, 3, 21\] of 24"):
        convert(state)


OWN = (
    {"kind": "iresnet", "block_counts": [1, 2, 1, 1], "channels": [8, 8, 16, 16]},
    {"kind": "mobilefacenet", "block_counts": [2, 1, 1, 1], "width_multiplier": 1},
    {"kind": "vit", "width": 32, "depth": 2, "mlp_ratio": 2.0, "patch_size": 8},
    {"kind": "vit_b"},
    {"kind": "iresnet34"},
    {"kind": "ir_18"},
    {"kind": "ir_se_50"},
    {"kind": "ir_se_152"},
    {"kind": "curricular_ir_50"},
)


@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec["kind"])
def test_unpublished_depths_and_widths_are_measured(spec):
    spec = {**spec, "embedding_size": 32, "image_size": 64 if "block_counts" in spec else 112}
    with torch.device("meta"):
        state = backbones.create(spec).state_dict()
        rebuilt = backbones.create(convert(state).backbone).state_dict()
    assert spec.items() <= convert(state).backbone.items()
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in rebuilt.items()
    }


def test_an_unpublished_adaface_depth_is_measured():
    state = official("adaface_ir_se_50")
    state = {key: state[key] for key in state if not key.startswith("body.23.")}
    backbone = convert(state).backbone
    assert backbone["kind"] == "iresnet" and backbone["block_counts"] == [3, 4, 14, 2]
    assert backbone["channel_gates"] and backbone["shortcut"] == "subsample"
    load(state)


def test_face_evolve_learns_its_last_norm():
    affine = {"output_layer.4.weight": (512,), "output_layer.4.bias": (512,)}
    state = official("curricularface_ir_se_50", **affine)
    assert convert(state).backbone["feature_affine"] == "full"
    load(state)


def colors(state: dict[str, torch.Tensor], key: str, **options) -> list[float]:
    state = {**state, key: torch.arange(3.0).reshape(1, 3, 1, 1).expand(64, 3, 3, 3)}
    imported = convert(state, **options)
    first = imported.state["conv1.weight"]
    noted = any("the weights expected BGR" in note for note in imported.notes)
    assert noted == (first[0, 0, 0, 0] == 2)
    return first[0, :, 0, 0].tolist()


def test_adaface_reads_bgr_and_the_others_rgb():
    rgb, bgr = [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]
    adaface = official("adaface_ir_50")
    cvlface = official("adaface_ir_50", "net.")
    assert detect_layout(cvlface) == "cvlface_ir"
    assert colors(adaface, "input_layer.0.weight") == bgr
    assert colors(adaface, "input_layer.0.weight", color_order="rgb") == rgb
    assert colors(cvlface, "net.input_layer.0.weight") == rgb
    assert colors(cvlface, "net.input_layer.0.weight", color_order="bgr") == bgr
    assert colors(official("curricularface_ir_101"), "input_layer.0.weight") == rgb
    assert colors(official("insightface_iresnet18"), "conv1.weight") == rgb


def test_assumptions_are_noted():
    assert any(
        "BGR, mean 0.5 and std 0.5 are assumed" in note
        for note in convert(official("adaface_ir_50")).notes
    )
    wide = {"kind": "vit", "width": 32, "depth": 1}
    with torch.device("meta"):
        state = backbones.create(wide).state_dict()
    assert any("8 attention heads are assumed" in note for note in convert(state).notes)


def magface(prefix: str) -> dict[str, torch.Tensor]:
    state = official("insightface_iresnet18", prefix)
    return state | {"fc.weight": torch.randn(512, 9)}


@pytest.mark.parametrize("prefix", ("features.module.", "module.features.", "features."))
def test_magface_reads_bgr_in_0_to_1(prefix):
    state = magface(prefix)
    load(state)
    imported = convert(state)
    assert imported.layout == "magface_iresnet"
    assert (imported.mean, imported.std) == (0.0, 1.0)
    assert torch.equal(imported.head_weight, state["fc.weight"].T)
    assert colors(state, f"{prefix}conv1.weight") == [2.0, 1.0, 0.0]


def facexzoo(name: str) -> dict[str, torch.Tensor]:
    state = official(name, "backbone.")
    if "mbf" in name:
        state = {key.replace(".output_layer.", "."): value for key, value in state.items()}
    return state | {"head.weight": torch.randn(512, 9)}


@pytest.mark.parametrize(
    ("name", "layout"),
    (
        ("curricularface_ir_se_50", "facexzoo_ir"),
        ("curricularface_mbf", "facexzoo_mobilefacenet"),
    ),
)
def test_facexzoo_saves_backbone_and_head_as_one_and_reads_bgr(name, layout):
    state = facexzoo(name)
    load(state)
    imported = convert(state)
    assert imported.layout == layout and imported.std == 128 / 255
    assert any("the weights expected BGR" in note for note in imported.notes)
    # The same names alone are CurricularFace's, unless FaceX-Zoo's counter lies beside them.
    alone = {key: state[key] for key in state if not key.startswith("head.")}
    assert convert(alone).layout.startswith("curricularface")
    assert convert(Checkpoint(alone, alone, other_keys=["epoch", "batch_id"])).layout == layout


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_what_names_do_not_show_is_noted_and_can_be_stated(name):
    state = official(name)
    (note,) = [note for note in convert(state).notes if "assumed from the tensor names" in note]
    assert note.endswith("override with --color-order, --mean, --std")
    stated = convert(state, "bgr", mean=(0.1, 0.2, 0.3), std=0.25)
    assert stated.mean == (0.3, 0.2, 0.1) and stated.std == 0.25
    assert not any("assumed from the tensor names" in note for note in stated.notes)
    assert convert(state, "rgb", mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"mean = 127.5, must be for pixels in \[0, 1\]"):
        convert(state, mean=127.5)


def test_names_that_projects_share_are_noted():
    for name, others in (
        ("insightface_iresnet18", "MagFace"),
        ("adaface_ir_50", "CVLface"),
        ("curricularface_ir_101", "FaceX-Zoo"),
    ):
        assert any(others in note for note in convert(official(name)).notes)


def test_a_head_in_the_file_is_taken_along():
    state = official("adaface_ir_50", "model.")
    state |= {"head.kernel": torch.randn(512, 9), "head.t": torch.zeros(1)}
    imported = convert(state)
    assert torch.equal(imported.head_weight, state["head.kernel"].T)
    assert any("tensors of the head left out: head.t" in note for note in imported.notes)
    assert not any(key.startswith("head.") for key in imported.state)
    assert convert(official("adaface_ir_50")).head_weight is None


def test_unknown_layouts_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"adaface_ir.*found keys: stem\.weight"):
        detect_layout({"stem.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="found keys: none"):
        convert({})


def test_unknown_color_orders_are_refused():
    with pytest.raises(ValueError, match="color_order = 'grb'"):
        convert(official("adaface_ir_50"), color_order="grb")
