"""On an accelerator: the CPU's numbers, nothing mixed with the host's, and no needless waits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from margrave import backbones
from margrave.backbones import MomentumEncoder
from margrave.data import TrainingImages, normalize
from margrave.evaluation import evaluate_all_to_all
from margrave.heads import ChunkedHead, DenseHead, Head, RowwiseSGD
from margrave.inference import Embedder, embed_to_store
from margrave.losses import LOSSES
from margrave.losses import create as create_loss
from margrave.models import ModelCard
from margrave.synthetic import SyntheticFaces
from margrave.training import TrainingSettings, set_up
from margrave.training.gradients import clip_gradients

if TYPE_CHECKING:
    from pretended_device import PretendedDevice

CLASSES, FEATURES, BATCH, IMAGES = 23, 8, 9, 27
ESTIMATORS = ("online", "memory_buffer", "momentum_encoder")
HEADS: dict[str, tuple[type[Head], dict[str, Any]]] = {
    "dense": (DenseHead, {}),
    "chunked": (ChunkedHead, {"compiled": False, "block_size": 7}),
    "chunked, none kept": (ChunkedHead, {"compiled": False, "block_size": 7, "memory_budget": 0}),
    "sampled": (ChunkedHead, {"compiled": False, "block_size": 5, "sample_rate": 0.6}),
}
BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [4, 4, 8, 8],
    "embedding_size": FEATURES,
    "image_size": 32,
}


def build(head: type[Head], loss: Any, **settings: Any) -> Head:
    torch.manual_seed(0)
    return head(loss, CLASSES, FEATURES, num_samples=IMAGES, **settings)


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "embeddings": 6 * torch.randn(BATCH, FEATURES, generator=generator),
        "labels": torch.randint(CLASSES, (BATCH,), generator=generator),
        "sample_indices": torch.randint(IMAGES, (BATCH,), generator=generator),
        "momentum_embeddings": torch.randn(BATCH, FEATURES, generator=generator),
    }


def train(
    head: Head,
    pretended: PretendedDevice | None,
    steps: int = 3,
    in_backward: bool = False,
) -> tuple[dict[str, Tensor], list[Any]]:
    """What became of everything in a few steps and an end of epoch, and the steps' waits."""
    device = torch.device("cpu") if pretended is None else pretended.device
    head.to(device)
    if in_backward:
        head.update_in_backward(momentum=0.9, weight_decay=0.01)
        head.learning_rate = 0.003
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = RowwiseSGD([{"params": trained}], lr=0.003, momentum=0.9, weight_decay=0.01)
    outcome: dict[str, Tensor] = {}
    waits: list[Any] = []
    for step in range(steps):
        batch = {name: values.to(device) for name, values in batch_of(step).items()}
        batch["embeddings"].requires_grad_()
        before = 0 if pretended is None else len(pretended.waits)
        loss = head(**batch, reduction="none")
        loss.mean().backward()
        optimizer.step()
        # What modules keep on the host they may read from the device once.
        waits += [] if pretended is None or step == 0 else pretended.waits[before:]
        outcome |= {f"loss {step}": loss, f"embeddings {step}": batch["embeddings"].grad}
        for name, parameter in head.named_parameters():
            if parameter.grad is not None:
                outcome[f"gradient of {name} {step}"] = parameter.grad.to_dense()
        optimizer.zero_grad()
    before = 0 if pretended is None else len(pretended.waits)
    head.end_epoch()
    waits += [] if pretended is None else pretended.waits[before:]
    outcome |= head.state_dict()
    return {name: values.detach().cpu() for name, values in outcome.items()}, waits


def check_equal(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name, values in result.items():
        # Blocks may be summed otherwise there, and e^{64·cosθ} multiplies rounding by 64.
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(
            values, expected[name], rtol=1e-5, atol=3e-5 * largest, msg=f"{name} differs"
        )


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("which", list(HEADS))
def test_heads_give_the_cpus_numbers_without_waiting(
    which: str, loss: str, pretended: PretendedDevice
) -> None:
    kind, settings = HEADS[which]
    result, waits = train(build(kind, loss, **settings), pretended)
    check_equal(result, train(build(kind, loss, **settings), None)[0])
    assert not waits


@pytest.mark.parametrize("loss", list(LOSSES))
def test_an_update_inside_the_backward_pass(loss: str, pretended: PretendedDevice) -> None:
    kind, settings = HEADS["chunked"]
    result, waits = train(build(kind, loss, **settings), pretended, in_backward=True)
    check_equal(result, train(build(kind, loss, **settings), None, in_backward=True)[0])
    assert not waits


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_of_kappaface(estimator: str, pretended: PretendedDevice) -> None:
    loss = {"kind": "kappaface", "estimator": estimator}
    result, waits = train(build(DenseHead, loss), pretended)
    check_equal(result, train(build(DenseHead, loss), None)[0])
    assert not waits


def test_a_label_outside_of_the_classes_is_refused(pretended: PretendedDevice) -> None:
    head = build(DenseHead, "arcface").to(pretended.device)
    labels = torch.tensor([0, CLASSES], device=pretended.device)
    with pytest.raises((ValueError, RuntimeError), match=r"outside"):
        head(torch.randn(2, FEATURES, device=pretended.device), labels)


@pytest.mark.parametrize("warm_up", [False, True])
def test_an_averaged_network_follows(warm_up: bool, pretended: PretendedDevice) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    images = torch.randn(16, 4)
    states = []
    for device in (torch.device("cpu"), pretended.device):
        followed = copy.deepcopy(network).to(device)
        encoder = MomentumEncoder(followed, warm_up=warm_up)
        assert next(encoder.parameters()).device == device
        followed.to(device)(images.to(device))
        with torch.no_grad():
            followed[0].weight.mul_(3)
        with pretended.counting() as waits:
            encoder.update(followed)
            outputs = encoder(images.to(device, non_blocking=True))
        assert not waits
        state = {**encoder.state_dict(), "outputs": outputs}
        states.append({name: values.cpu() for name, values in state.items()})
    check_equal(states[1], states[0])


@pytest.mark.parametrize("split", [False, True])
def test_clipped_gradients(split: bool, pretended: PretendedDevice) -> None:
    results = []
    for device in (torch.device("cpu"), pretended.device):
        parameters = [
            nn.Parameter(torch.arange(6.0).reshape(3, 2).to(device)),
            nn.Parameter(torch.ones(4, device=device)),
        ]
        parameters[1].grad = 3 * torch.ones_like(parameters[1])
        index, rows = torch.tensor([[0, 2]]).to(device), torch.ones(2, 2, device=device)
        parameters[0].grad = torch.sparse_coo_tensor(
            index, rows, (3, 2), is_coalesced=True, check_invariants=False
        )
        with pretended.counting() as waits:
            if split:
                norm = clip_gradients(parameters[1:], 1.0, row_sharded=parameters[:1])
            else:
                norm = clip_gradients(parameters, 1.0)
        assert not waits
        gradients = {str(n): each.grad.to_dense() for n, each in enumerate(parameters)}
        results.append({name: each.cpu() for name, each in (gradients | {"norm": norm}).items()})
    check_equal(results[1], results[0])


@pytest.mark.parametrize("mean", [0.5, (0.4, 0.5, 0.6)])
def test_normalized_images(mean: Any, pretended: PretendedDevice) -> None:
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    there = pixels.to(pretended.device)
    normalize(there, mean)
    with pretended.counting() as waits:
        images = normalize(there, mean)
    assert not waits
    assert torch.equal(images.cpu(), normalize(pixels, mean))


class Pictures:
    """Random pictures, one of which cannot be read."""

    labels = np.arange(10)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        if index == 3:
            raise ValueError("picture 3 is damaged")
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"picture {index}"


def embedder_on(device: torch.device) -> Embedder:
    torch.manual_seed(0)
    network = backbones.create(BACKBONE).eval().to(device)
    return Embedder(network, ModelCard(backbone=BACKBONE, image_size=32), batch_size=4)


def test_embeddings_wait_once_a_batch(pretended: PretendedDevice) -> None:
    here, there = embedder_on(torch.device("cpu")), embedder_on(pretended.device)
    pictures, faults = Pictures(), {}
    expected = here.embed_images(pictures, unreadable={})
    there.embed_images(pictures, unreadable={})
    with pretended.counting() as waits:
        result = there.embed_images(pictures, unreadable=faults)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert faults == {3: "picture 3 is damaged"}
    assert len(waits) == 3, waits
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(there.embed_pixels(pixels), here.embed_pixels(pixels))


def test_features_are_stored(pretended: PretendedDevice, tmp_path: Path) -> None:
    stores = [
        embed_to_store(
            embedder_on(device), Pictures(), tmp_path / device.type, maximum_unreadable=1
        )
        for device in (torch.device("cpu"), pretended.device)
    ]
    np.testing.assert_allclose(stores[1].embeddings, stores[0].embeddings, rtol=1e-5, atol=1e-6)
    assert stores[1].preparation == stores[0].preparation
    assert stores[1].unreadable == stores[0].unreadable


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_to_all(dtype: type[np.floating], pretended: PretendedDevice) -> None:
    generator = np.random.default_rng(0)
    faces = generator.standard_normal((40, 8)).repeat(3, axis=0)
    faces = (faces + 0.8 * generator.standard_normal(faces.shape)).astype(dtype)
    distractors = generator.standard_normal((300, 8)).astype(dtype)
    results = [
        evaluate_all_to_all(
            faces,
            np.arange(120) // 3,
            distractors,
            far_targets=(0.01, 0.001),
            identification_far_targets=(0.1,),
            resamples=10,
            device=device,
        )
        for device in ("cpu", str(pretended.device))
    ]
    if dtype == np.float32 or pretended.float64:
        assert results[1] == results[0]
        return
    for result, expected in zip(results[1].verification, results[0].verification, strict=True):
        assert result.tar == pytest.approx(expected.tar, abs=0.01)


def test_lightning_places_on_it(pretended: PretendedDevice) -> None:
    fabric = pretended.fabric()
    fabric.launch()
    assert fabric.device == pretended.device
    network = fabric.setup_module(nn.Linear(2, 1))
    inputs = torch.ones(3, 2).to(pretended.device)
    fabric.backward(network(inputs).sum())
    torch.testing.assert_close(network.weight.grad.cpu(), torch.full((1, 2), 3.0))


def test_a_training_is_placed_on_it(
    pretended: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("margrave.training.setup._launch_fabric", lambda *_: pretended.fabric())
    faces = SyntheticFaces(num_identities=4, images_per_identity=2, image_size=32)
    training = set_up(
        TrainingSettings(batch_size=4, weight_average=0.9),
        TrainingImages(faces, 32),
        4,
        BACKBONE,
        create_loss({"kind": "kappaface", "estimator": "momentum_encoder"}),
        {"kind": "chunked"},
    )
    devices = {name: values.device for name, values in training.tensors().items()}
    assert set(devices.values()) == {pretended.device}, devices
    assert {name.partition(".")[0] for name in devices} == {
        "backbone",
        "head",
        "average",
        "encoder",
    }


def test_it_refuses_what_a_device_refuses(pretended: PretendedDevice) -> None:
    there, here = torch.ones(2, device=pretended.device), torch.ones(2)
    for mix in (
        lambda: there + here,
        lambda: here.add_(there[0]),
        lambda: torch.stack([there[0], here[0]]),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=pretended.device)],
        lambda: there.index_put_((torch.tensor([0, 1]),), here),
    ):
        with pytest.raises(RuntimeError, match=r"different devices .*contracts/test_devices.py"):
            mix()
    torch.testing.assert_close((there + here[0]).cpu(), torch.full((2,), 2.0))
    with pytest.raises(TypeError, match="no NumPy array"):
        np.asarray(there)
    if pretended.float64:
        assert there.double().dtype == torch.float64
        return
    for make in (
        lambda: there.double(),
        lambda: here.double().to(pretended.device),
        lambda: torch.tensor([1.0], dtype=torch.float64, device=pretended.device),
        lambda: torch.linalg.vector_norm(there, dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="no float64"):
            make()


def test_it_counts_waits(pretended: PretendedDevice) -> None:
    there = torch.arange(4.0, device=pretended.device)
    mask = there > 1
    waiting = {
        "item": lambda: there.sum().item(),
        "bool": lambda: bool(torch.isfinite(there).all()),
        "tolist": lambda: there.tolist(),
        "nonzero": lambda: there.nonzero(),
        "boolean mask": lambda: there[mask],
        "assigned by boolean mask": lambda: there.clone().__setitem__(mask, 0.0),
        "masked_select": lambda: there.masked_select(mask),
        "index on the host": lambda: there[torch.tensor([0])],
        "unique": lambda: there.unique(),
        "bincount": lambda: mask.long().bincount(),
        "equal": lambda: torch.equal(there, there),
        "allclose": lambda: torch.allclose(there, there),
        "cpu": lambda: there.cpu(),
        "to the device": lambda: torch.ones(2).to(pretended.device),
        "copied from the device": lambda: torch.ones(4).copy_(there),
        "copied to the device": lambda: there.clone().copy_(torch.ones(4)),
        "tensor": lambda: torch.tensor(1.0, device=pretended.device),
        "new_tensor": lambda: there.new_tensor(1.0),
        "number on the host": lambda: torch.where(mask, torch.ones(()), there),
        "repr": lambda: repr(there),
        "synchronize": lambda: torch.get_device_module(pretended.device).synchronize(),
    }
    for name, wait in waiting.items():
        with pretended.counting() as waits:
            wait()
        assert len(waits) == 1, (name, waits)
        assert waits[0].place.startswith("contracts/test_devices.py"), waits
    with pretended.counting() as waits:
        torch.where(mask, there, 0).topk(2)
        there[torch.tensor(1, device="cpu") :].add_(2)
        there.new_full((), 3)
        torch.ones(2).to(pretended.device, non_blocking=True)
    assert not waits


def test_an_asynchronous_copy_is_there_after_its_event(pretended: PretendedDevice) -> None:
    backend = torch.get_device_module(pretended.device)
    there = torch.arange(3.0, device=pretended.device)
    with pretended.counting() as waits:
        copied = (there + 1).to("cpu", non_blocking=True)
        into = torch.empty(3, pin_memory=True)
        into.copy_(there, non_blocking=True)
        event = backend.Event()
        event.record()
        assert copied.isnan().all() and into.isnan().all()
        assert not waits
        event.synchronize()
    assert [wait.operation for wait in waits] == ["event.synchronize"]
    assert copied.tolist() == [1, 2, 3] and into.tolist() == [0, 1, 2]
    # What is copied after the record is not waited for.
    later = there.to("cpu", non_blocking=True)
    event.synchronize()
    assert later.isnan().all()
    there.sum().item()
    assert later.tolist() == [0, 1, 2]


def test_streams_wait_for_one_another(pretended: PretendedDevice) -> None:
    backend = torch.get_device_module(pretended.device)
    side = backend.Stream()
    with pretended.counting() as waits:
        with backend.stream(side):
            there = torch.ones(2).pin_memory().to(pretended.device, non_blocking=True)
            event = backend.Event()
            event.record()
        with pytest.raises(RuntimeError, match="has not waited"):
            there + 1
        backend.current_stream().wait_event(event)
        there.record_stream(backend.current_stream())
        there = there + 1
        with backend.stream(side):
            with pytest.raises(RuntimeError, match="has not waited"):
                there + 1
            side.wait_stream(backend.current_stream(pretended.device))
        side.wait_stream(backend.current_stream(pretended.device))
        with backend.stream(side):
            there = there + 1
    assert not waits
    side.synchronize()
    assert there.tolist() == [3, 3]


def test_nothing_of_it_is_left_behind(pretended: PretendedDevice) -> None:
    assert torch.accelerator.is_available()
    assert torch.get_device_module(pretended.device).device is pretended


def test_nothing_was_left_behind() -> None:
    registered = getattr(torch, "pretended", None)
    if registered is not None:
        assert not registered.is_available()
        assert not torch.accelerator.is_available()
        assert torch.accelerator.device_count() == 0
    for maker in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.Tensor.pin_memory):
        assert getattr(maker, "__module__", None) != "pretended_device"
    assert torch.tensor([1.0]).numpy() == 1
