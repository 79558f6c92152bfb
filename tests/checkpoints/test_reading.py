"""Other people's files: what is found in them, and what is refused."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from margrave.checkpoints import read_checkpoint
from margrave.checkpoints.reading import strip_prefixes

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Touching:
    """On unpickling, makes a file: proof that code ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class Evaluating:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    "content",
    (
        {"fc.weight": WEIGHT},
        {"module.fc.weight": WEIGHT},
        {"state_dict": {"model.fc.weight": WEIGHT}, "epoch": 3},
        {"model": {"_orig_mod.module.fc.weight": WEIGHT}},
        {"model": {"state_dict": {"backbone.fc.weight": WEIGHT}}},
        {"fc.weight": torch.nn.Parameter(WEIGHT), "epoch": 3, "name": "example"},
        {"state_dict_backbone": {"fc.weight": WEIGHT}, "global_step": 9},
    ),
)
@pytest.mark.parametrize("legacy", (False, True))
def test_weights_are_found_in_their_wrappers(tmp_path, content, legacy):
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    state = read_checkpoint(path)
    assert list(state) == ["fc.weight"]
    assert torch.equal(state["fc.weight"], WEIGHT)
    assert not state["fc.weight"].requires_grad


def test_safetensors(tmp_path):
    save_file({"model.net.fc.weight": WEIGHT}, tmp_path / "weights.safetensors")
    state = read_checkpoint(tmp_path / "weights.safetensors")
    assert torch.equal(state["net.fc.weight"], WEIGHT)


def test_a_head_beside_its_backbone(tmp_path):
    content = {"state_dict_backbone": {"a": WEIGHT}, "state_dict_softmax_fc": {"weight": WEIGHT}}
    torch.save(content, tmp_path / "checkpoint_gpu_0.pt")
    assert list(read_checkpoint(tmp_path / "checkpoint_gpu_0.pt")) == ["a", "head.weight"]


def test_a_bare_tensor(tmp_path):
    torch.save(WEIGHT, tmp_path / "rank_0_softmax_weight.pt")
    assert list(read_checkpoint(tmp_path / "rank_0_softmax_weight.pt")) == ["weight"]


def test_settings_and_scores_beside_the_weights_are_ignored(tmp_path, monkeypatch):
    # A stand-in for the class that old Lightning files name, which need not be installed.
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, parent, module)
        content = {
            "state_dict": {"model.fc.weight": WEIGHT},
            "hyper_parameters": argparse.Namespace(margin=0.4, folder=pathlib.Path("a")),
            "callbacks": {module.ModelCheckpoint: {"best": np.float64(0.99)}},
            "scores": np.arange(3.0),
            "counts": collections.OrderedDict(a=1),
        }
        torch.save(content, tmp_path / "last.ckpt")
    admitted = set(torch.serialization.get_safe_globals())
    assert list(read_checkpoint(tmp_path / "last.ckpt")) == ["fc.weight"]
    assert set(torch.serialization.get_safe_globals()) == admitted


@pytest.mark.parametrize("legacy", (False, True))
def test_a_file_that_needs_code_is_refused_unrun(tmp_path, legacy):
    proof = tmp_path / "proof"
    path = tmp_path / "weights.pth"
    content = {"fc.weight": WEIGHT, "callback": Touching(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights.pth: refused, .* nothing was executed"):
        read_checkpoint(path)
    assert not proof.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    torch.save({"fc.weight": WEIGHT, "callback": Evaluating()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="it asks for 'eval' to be run"):
        read_checkpoint(tmp_path / "weights.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evaluating(), protocol=2))
    with pytest.raises(ValueError, match="it asks for 'eval' to be run"):
        read_checkpoint(tmp_path / "plain.pth")
    (tmp_path / "system.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"it asks for 'os.system' to be run"):
        read_checkpoint(tmp_path / "system.pth")


@pytest.mark.parametrize("suffix", (".pth", ".ckpt", ".safetensors"))
@pytest.mark.parametrize("kept", (0, 1, 7, 100, -1))
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({"fc.weight": WEIGHT}, path)
    else:
        torch.save({"fc.weight": WEIGHT}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"weights{suffix}: damaged or no"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_refused(tmp_path, suffix, seed):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(np.random.default_rng(seed).bytes(200 * seed + 3))
    with pytest.raises(ValueError, match=f"weights{suffix}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    (
        ({"epoch": 3, "accuracy": 0.9}, "holds no tensors; found epoch, accuracy"),
        ({}, "holds no tensors; found nothing"),
        ({"state_dict": {}}, "holds no tensors"),
        ([WEIGHT], "holds a list, not a state dict"),
    ),
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent.pth: no such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_two_networks_under_one_name_are_refused():
    with pytest.raises(ValueError, match=r"'model.fc.weight' and 'fc.weight' both mean"):
        strip_prefixes({"model.fc.weight": WEIGHT, "fc.weight": WEIGHT})


def test_a_deflated_file_that_unpacks_beyond_measure_is_refused(tmp_path):
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(150 * 2**20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"bomb\.pth has \d+ bytes and asks for more than"):
        read_checkpoint(bomb)
    plain.unlink()


def test_tensors_that_repeat_few_numbers_are_refused(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1).expand(2**30)}}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"wide\.pth has \d+ bytes and asks for more than"):
        read_checkpoint(path)
