"""Other people's files: what is read from them, and what is refused."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from margrave.files import Budget
from margrave.models import load_model, read_checkpoint
from margrave.models.inert_content import check_tensors
from margrave.models.prefixes import strip_prefixes

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
    with pytest.raises(ValueError, match="because reading it would run 'eval'"):
        read_checkpoint(tmp_path / "weights.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evaluating(), protocol=2))
    with pytest.raises(ValueError, match="because reading it would run 'eval'"):
        read_checkpoint(tmp_path / "plain.pth")
    (tmp_path / "system.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"because reading it would run 'os.system'"):
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
    with pytest.raises(ValueError, match=f"weights{suffix}(:| is) damaged or no"):
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
        ({"epoch": 3, "accuracy": 0.9}, "contains no tensors; its keys: epoch, accuracy"),
        ({}, "contains no tensors; its keys: none"),
        ({"state_dict": {}}, "contains no tensors"),
        ([WEIGHT], "contains a list, not a state dict"),
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
    with pytest.raises(ValueError, match=r"'model.fc.weight' and 'fc.weight' both become"):
        strip_prefixes({"model.fc.weight": WEIGHT, "fc.weight": WEIGHT})


def test_a_deflated_file_that_unpacks_beyond_measure_is_refused(tmp_path):
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(150 * 2**20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"bomb\.pth has \d+ bytes but would take more than"):
        read_checkpoint(bomb)
    plain.unlink()


def test_tensors_that_repeat_few_numbers_are_refused(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1).expand(2**30)}}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"wide\.pth has \d+ bytes but would take more than"):
        read_checkpoint(path)


def test_a_tensor_under_several_names_is_charged_once():
    tied = torch.zeros(2**20)
    size = tied.nbytes
    content = {"embedding": tied, "output": tied, "views": [tied[:5], tied.view(2, -1)]}
    check_tensors(content, Budget(size, "tied.pth", allowance=0))
    with pytest.raises(ValueError, match=r"tied\.pth has \d+ bytes but would take more than"):
        check_tensors(content, Budget(size - 1, "tied.pth", allowance=0))
    repeated = torch.zeros(1).expand(2**20)
    with pytest.raises(ValueError, match=r"wide\.pth has \d+ bytes but would take more than"):
        check_tensors([repeated, repeated], Budget(2 * size - 1, "wide.pth", allowance=0))


STATE = {"fc.weight": WEIGHT, "fc.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    (
        {"net_state_dict": STATE, "epoch": 3},
        {"their own name": STATE},
        {"checkpoint": {"weights": STATE}},
        {"iteration": torch.tensor(5), "G": STATE},
        {"G": STATE, "optimizer": {"state": {0: {"exp_avg": WEIGHT}}, "average": STATE}},
        {"state_dict": STATE, "same": STATE},
        {"state_dict": STATE, "model": {f"module.{name}": STATE[name] + 0 for name in STATE}},
        {"state_dict": STATE, "head": {"a": WEIGHT, "b": WEIGHT, "c": WEIGHT}},
        {**STATE, "fc.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    ),
)
def test_a_state_dict_is_found_under_whatever_key_holds_it(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth")) == ["fc.weight", "fc.bias"]


def test_a_small_state_dict_under_a_usual_key_is_not_the_network(tmp_path):
    network = {**STATE, **{f"conv{number}.weight": WEIGHT for number in range(3)}}
    torch.save({"model": {"table": WEIGHT}, "net": network}, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth").keys() == network.keys()


def test_several_networks_are_listed_and_chosen_by_key(tmp_path):
    other = {"fc.weight": WEIGHT + 1, "fc.bias": torch.ones(2)}
    content = {"student": {"net": STATE}, "teacher": {"net": other}, "pair": {"a.w": WEIGHT}}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"several networks; choose one with --key .*student.net"):
        read_checkpoint(path)
    assert torch.equal(read_checkpoint(path, key="teacher.net")["fc.weight"], WEIGHT + 1)
    assert list(read_checkpoint(path, key="a")) == ["w"]
    with pytest.raises(ValueError, match=r"no weights under 'x'; choices: student.net \(2 tens"):
        read_checkpoint(path, key="x")


AVERAGE = {"fc.weight": WEIGHT * 2, "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    (
        {"state_dict": STATE, "state_dict_ema": AVERAGE},
        {"model": STATE, "ema": {f"module.{name}": value for name, value in AVERAGE.items()}},
        {"model": STATE, "ema": {"state_dict": AVERAGE, "decay": 0.9}},
        {
            "state_dict": {f"model.{name}": value for name, value in STATE.items()}
            | {f"ema_model.module.{name}": value for name, value in AVERAGE.items()}
            | {"ema_model.n_averaged": torch.tensor(7)}
        },
        {"ema": AVERAGE},
        {"model": STATE, "model_ema": {"fc.weight": WEIGHT * 2}},
    ),
)
def test_moving_averages_are_preferred_and_noted(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    state = read_checkpoint(tmp_path / "weights.pth")
    assert sorted(state) == ["fc.bias", "fc.weight"]
    assert torch.equal(state["fc.weight"], WEIGHT * 2)
    assert any("used moving averages (EMA)" in note for note in state.notes)
    partial = "model_ema" in content
    assert partial == any(
        "not averaged, so taken from the plain weights: fc.bias" in n for n in state.notes
    )


def test_torchs_averaged_model_is_noted(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    torch.save(averaged.state_dict(), tmp_path / "weights.pth")
    state = read_checkpoint(tmp_path / "weights.pth")
    assert sorted(state) == ["bias", "weight"]
    assert any("AveragedModel" in note for note in state.notes)


def _absent_class(monkeypatch, path: str, *bases: type, **members):
    """A class of a package that need not be installed, as if it were while the file is saved."""
    module, _, name = path.rpartition(".")
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    made = type(name, bases, {"__module__": module, **members})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("legacy", (False, True))
@pytest.mark.parametrize(
    ("path", "base"),
    (
        ("pytorch_lightning.utilities.parsing.AttributeDict", dict),
        ("lightning.fabric.utilities.data.AttributeDict", dict),
        ("easydict.EasyDict", dict),
        ("their.settings.Config", object),
        ("ordered.Settings", collections.OrderedDict),
    ),
)
def test_settings_of_classes_that_are_not_here_are_ignored(
    tmp_path, monkeypatch, path, base, legacy
):
    with monkeypatch.context() as patch:
        settings = _absent_class(patch, path, base)()
        settings.folder, settings.scale = "a", 64.0
        if base is not object:
            settings["lr"] = 0.1
        content = {"state_dict": STATE, "hyper_parameters": settings}
        torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=not legacy)
    assert list(read_checkpoint(tmp_path / "last.ckpt")) == list(STATE)
    assert path.partition(".")[0] not in sys.modules


def test_objects_whose_state_is_no_mapping_are_ignored_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kind = _absent_class(patch, "their.Slots", object, __slots__=("a",))
        settings = kind()
        settings.a = 3
        torch.save({"state_dict": STATE, "settings": settings}, tmp_path / "last.ckpt")
    assert list(read_checkpoint(tmp_path / "last.ckpt")) == list(STATE)


def test_functions_of_packages_that_are_here_are_not_called(tmp_path):
    class Calling:
        def __reduce__(self):
            return np.save, (str(tmp_path / "proof.npy"), [1])

    torch.save({"fc.weight": WEIGHT, "callback": Calling()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"refused, because reading it would run 'numpy\.save'"):
        read_checkpoint(tmp_path / "weights.pth")
    assert not (tmp_path / "proof.npy").exists()


@pytest.mark.parametrize("module", ("pathlib", "pathlib._local"))
def test_paths_of_every_python_are_ignored(tmp_path, module):
    path = tmp_path / "weights.pth"
    # What torch wrote before it had archives: magic number, version, system, then the content.
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": 1})]
    content = b"\x80\x02}U\x04pathc" + module.encode() + b"\nPosixPath\nU\x01a\x85Rs."
    path.write_bytes(b"".join(head) + content + pickle.dumps([], 2))
    with pytest.raises(ValueError, match="contains no tensors; its keys: path"):
        read_checkpoint(path)


def test_programs_are_named_as_what_they_are(tmp_path):
    path = tmp_path / "weights.pt"
    with warnings.catch_warnings():
        # torch.jit is deprecated, and its files remain.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path)
    with pytest.raises(ValueError, match=r"a TorchScript archive .*torch.jit.load\(.*state_dict"):
        read_checkpoint(path)
    exported = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),))
    torch.export.save(exported, tmp_path / "weights.pt2")
    with pytest.raises(ValueError, match=r"a torch.export program, .*state_dict"):
        read_checkpoint(tmp_path / "weights.pt2")


def test_a_whole_network_is_named_as_such(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kind = _absent_class(patch, "their.Net", torch.nn.Linear)
        torch.save(kind(3, 2), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="pickled network: save and read its state_dict"):
        read_checkpoint(tmp_path / "weights.pth")


def test_attributes_that_hide_a_mappings_methods_change_nothing(tmp_path):
    state = collections.OrderedDict(STATE)
    state.values = state.get = state.keys = 3  # type: ignore[assignment]
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth")) == list(STATE)


def test_one_mapping_in_many_places_is_looked_at_once(tmp_path):
    many = {f"{index}": torch.zeros(()) for index in range(3000)}
    torch.save({"a": STATE} | {f"copy {i}": many for i in range(3000)}, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth")) == list(STATE)


def test_a_damaged_archive_is_named(tmp_path):
    """One whose end says that it goes on on another disk."""
    path = tmp_path / "torn.pth"
    torch.save({"weight": WEIGHT}, path)
    content = path.read_bytes()
    locator = content.rindex(b"PK\x06\x07")
    path.write_bytes(content[: locator + 16] + b"\x07\0\0\0" + content[locator + 20 :])
    with pytest.raises(ValueError, match=r"torn\.pth is damaged or not a PyTorch file"):
        read_checkpoint(path)


def test_sizes_that_no_tensor_has_are_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (read_checkpoint, load_model):
        with pytest.raises(ValueError, match=r"huge\.safetensors: damaged"):
            read(path)
