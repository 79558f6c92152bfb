"""Which precision a network gets on which machine, and how a loss is scaled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from margrave.heads import products as products_module
from margrave.training import TrainingSettings, fit, latest_checkpoint
from margrave.training import precision as precision_module
from margrave.training.precision import LossScale, PrecisionChoice, choose_precision

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
    monkeypatch.setattr(precision_module, "is_faster", lambda *runs, **settings: step)
    choice = choose_precision("auto", NETWORK, 8, 4, CPU)
    assert choice.precision == expected
    assert "CPU" in choice.reason or "measured" in choice.reason


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
    with pytest.raises(ValueError, match="precision float16 must skip a step"):
        TrainingSettings.model_validate(
            {"precision": "float16", "optimizer": {"centers_in_backward": True}}
        )


def test_a_loss_scale_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale(scale=8.0, growth_steps=3)
    scale.record_overflow()
    for _ in range(2):
        scale.record_success()
    assert (scale.scale, scale.skipped_steps) == (4.0, 1)
    scale.record_success()
    assert scale.scale == 8.0
    again = LossScale()
    again.load(scale.state())
    assert again.state() == scale.state()
    assert not scale.exhausted
    for _ in range(4):
        scale.record_overflow()
    assert scale.exhausted


def test_recipes_leave_the_precision_to_the_machine() -> None:
    from margrave.recipes import recipe_names, recipe_text

    for name in recipe_names():
        assert "precision: auto" in recipe_text(name), name


class Frozen(nn.Sequential):
    """Nothing of it is trained."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4))
        self.requires_grad_(False)


class Ghost(nn.Sequential):
    """It takes images by fours."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(0, (4, -1)), nn.Flatten(0, 1), nn.Flatten(), nn.Linear(192, 4)
        )


class Converting(nn.Sequential):
    """NumPy has no bfloat16."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = super().forward(images)
        output.detach().numpy()
        return output


@pytest.mark.parametrize("network", [Frozen, Ghost, Converting])
def test_any_network_that_trains_in_float32_does_so_with_auto(
    monkeypatch: pytest.MonkeyPatch, network: type[nn.Module]
) -> None:
    monkeypatch.setattr(precision_module, "has_native_bfloat16", lambda device: True)
    choice = choose_precision("auto", network(), 8, 16, CPU)
    if network is not Frozen:
        assert choice.precision == "float32"
        assert choice.reason.startswith("this network does not run in bfloat16: ")


@pytest.fixture
def run_parts() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    import test_on_device

    return test_on_device


def test_resuming_keeps_what_the_run_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_parts: Any
) -> None:
    native = True
    monkeypatch.setattr(products_module, "has_native_bfloat16", lambda device: native)
    monkeypatch.setattr(products_module, "MIN_BFLOAT16_COSINES", 1)
    parts = {"kind": "adaface"}, {"kind": "chunked", "products": "auto", "block_size": 3}
    begun = run_parts.training(*parts, precision="bfloat16", epochs=1)
    assert begun.head.products == "bfloat16"
    fit(begun, tmp_path)
    native = False
    monkeypatch.setattr(precision_module, "has_native_bfloat16", lambda device: False)
    resumed = run_parts.training(*parts, precision="auto", epochs=2)
    assert (resumed.precision.precision, resumed.head.products) == ("float32", "float32")
    fit(resumed, tmp_path, resume=True)
    assert (resumed.precision.precision, resumed.head.products) == ("bfloat16", "bfloat16")


def test_a_checkpoint_from_before_products_resumes_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_parts: Any
) -> None:
    monkeypatch.setattr(products_module, "has_native_bfloat16", lambda device: True)
    monkeypatch.setattr(products_module, "MIN_BFLOAT16_COSINES", 1)
    parts = {"kind": "adaface"}, {"kind": "chunked", "products": "auto", "block_size": 3}
    fit(run_parts.training(*parts, epochs=1), tmp_path)
    path = latest_checkpoint(tmp_path) / "state.json"  # pyright: ignore[reportOptionalOperand]
    state = json.loads(path.read_text())
    for name in ("products", "precision", "loss_scale"):
        del state[name]
    path.write_text(json.dumps(state))
    resumed = run_parts.training(*parts, epochs=2)
    fit(resumed, tmp_path, resume=True)
    assert resumed.head.products == "float32"
    state["precision"] = "float7"
    path = latest_checkpoint(tmp_path) / "state.json"  # pyright: ignore[reportOptionalOperand]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="precision 'float7'"):
        fit(run_parts.training(*parts, precision="auto", epochs=3), tmp_path, resume=True)


def test_centers_that_move_in_the_backward_pass_are_never_scaled(
    monkeypatch: pytest.MonkeyPatch, run_parts: Any
) -> None:
    choice = PrecisionChoice("float16", "as on a V100")
    monkeypatch.setattr("margrave.training.setup.choose_precision", lambda *_: choice)
    optimizer = {"learning_rate": 0.02, "centers_in_backward": True}
    parts = {"kind": "adaface"}, {"kind": "chunked"}
    trained = run_parts.training(*parts, precision="auto", optimizer=optimizer)
    assert trained.precision.precision == "float32"
    assert trained.loss_scale is None


def test_a_run_of_margrave_0_1_says_null_for_threads() -> None:
    assert TrainingSettings.model_validate({"threads": None}).threads == "auto"
