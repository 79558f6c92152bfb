"""Which precision a network gets on which machine, and how a loss is scaled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from margrave.training import TrainingSettings
from margrave.training import precision as precision_module
from margrave.training.precision import LossScale, choose_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 4)
)


@pytest.mark.parametrize(
    ("product", "step", "expected"),
    [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")],
)
def test_a_processor_takes_what_is_measured_faster(
    monkeypatch: pytest.MonkeyPatch, product: bool, step: bool, expected: str
) -> None:
    monkeypatch.setattr(precision_module, "has_native_bfloat16", lambda device: product)
    monkeypatch.setattr(precision_module, "is_faster", lambda *runs: step)
    choice = choose_precision("auto", NETWORK, 8, 4, CPU)
    assert choice.precision == expected
    assert "processor" in choice.reason or "measured" in choice.reason


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((7, 0), "float16"),
     ((6, 1), "float32")],
)  # fmt: skip
def test_a_gpu_answers_by_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Anything")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    choice = choose_precision("auto", NETWORK, 8, 4, CUDA)
    assert choice.precision == expected
    assert "NVIDIA Anything" in choice.reason


def test_other_devices_take_float32() -> None:
    assert choose_precision("auto", NETWORK, 8, 4, MPS).precision == "float32"


def test_what_is_asked_for_is_taken() -> None:
    for wanted in ("float32", "bfloat16", "float16", "float64"):
        choice = choose_precision(wanted, NETWORK, 8, 4, CPU)
        assert (choice.precision, choice.reason) == (wanted, "as configured")
        assert choice.dtype == (torch.float64 if wanted == "float64" else torch.float32)


def test_measuring_leaves_no_trace() -> None:
    """Neither in the network nor in the draws that follow."""
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    precision_module._step_is_faster_in_bfloat16(NETWORK, 8, 4)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(NETWORK.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in NETWORK.parameters())


def test_emulated_bfloat16_is_noticed() -> None:
    """With the library's knowledge of bfloat16 masked, whatever the processor says of itself."""
    code = "from margrave.hardware import has_native_bfloat16 as h; print(h('cpu'))"
    masked = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=masked, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_auto_is_the_default_and_survives_yaml() -> None:
    settings = TrainingSettings.model_validate({"workers": "auto", "threads": "auto"})
    assert (settings.precision, settings.workers, settings.threads) == ("auto", "auto", "auto")
    assert TrainingSettings.model_validate({"workers": 3, "threads": 2}).workers == 3
    with pytest.raises(ValueError, match="workers"):
        TrainingSettings.model_validate({"workers": -1})
    with pytest.raises(ValueError, match="precision float16 leaves out steps"):
        TrainingSettings.model_validate(
            {"precision": "float16", "optimizer": {"centres_in_backward": True}}
        )


def test_a_loss_scale_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale(scale=8.0, growth_steps=3)
    scale.overflowed()
    for _ in range(2):
        scale.succeeded()
    assert (scale.scale, scale.skipped_steps) == (4.0, 1)
    scale.succeeded()
    assert scale.scale == 8.0
    again = LossScale()
    again.load(scale.state())
    assert again.state() == scale.state()
    assert not scale.exhausted
    for _ in range(4):
        scale.overflowed()
    assert scale.exhausted


def test_recipes_leave_the_precision_to_the_machine() -> None:
    from margrave.recipes import recipe_names, recipe_text

    for name in recipe_names():
        assert "precision: auto" in recipe_text(name), name


def test_resuming_keeps_the_precision_that_the_run_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_on_device import training

    from margrave.training import fit

    parts = {"kind": "adaface"}, {"kind": "chunked"}
    begun = training(*parts, precision="bfloat16", epochs=1)
    fit(begun, tmp_path)
    monkeypatch.setattr(precision_module, "has_native_bfloat16", lambda device: False)
    resumed = training(*parts, precision="auto", epochs=2)
    assert resumed.precision.precision == "float32"
    fit(resumed, tmp_path, resume=True)
    assert resumed.precision.precision == "bfloat16"
