"""What a CUDA device alone can show; `make bench-gpu` runs it on one.

Every test skips elsewhere. The pretended accelerator (`tests/contracts/test_devices.py`) covers
placement and waiting on any machine; here it is the kernels, the compiler and the graph capture.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from margrave.data import TrainingImages
from margrave.evaluation import evaluate_all_to_all
from margrave.heads import ChunkedHead, DenseHead, Head, RowwiseSGD
from margrave.inference import Embedder
from margrave.losses import LOSSES
from margrave.losses import create as create_loss
from margrave.models import ModelCard
from margrave.training import (
    StepReport,
    TrainingSettings,
    TrainingState,
    fit,
    read_metrics,
    set_up,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CLASSES, FEATURES, BATCH = 1000, 32, 64
COMPILED = ["arcface", "adaface", "curricularface", "mv_softmax"]


def spec(kind: str) -> dict[str, Any]:
    return {"kind": kind} | ({"estimator": "online"} if kind == "kappaface" else {})


def build(kind: str, head: type[Head] = ChunkedHead, **settings: Any) -> Head:
    torch.manual_seed(0)
    return head(spec(kind), CLASSES, FEATURES, **settings)


def batch(device: str = "cuda", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = 5 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return embeddings.to(device, dtype), labels.to(device)


def train(head: Head, steps: int = 3) -> dict[str, Tensor]:
    """Some steps; the last one's loss and gradients, and all buffers."""
    device, dtype = head.weight.device.type, head.weight.dtype
    optimizer = RowwiseSGD(head.parameters(), lr=0.1, momentum=0.9)
    result: dict[str, Tensor] = {}
    for _ in range(steps):
        embeddings, labels = batch(device, dtype)
        embeddings.requires_grad_()
        optimizer.zero_grad()
        loss = head(embeddings, labels)
        loss.backward()
        assert embeddings.grad is not None
        result = {"loss": loss.detach(), "embeddings": embeddings.grad}
        optimizer.step()
    result |= {name: value.detach() for name, value in head.state_dict().items()}
    return {name: value.cpu() for name, value in result.items()}


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize(
    "settings",
    [{}, {"block_size": 300}, {"block_size": 300, "memory_budget": 0}, {"sample_rate": 0.3}],
    ids=str,
)
def test_same_numbers_as_the_processor(kind: str, settings: dict[str, Any]) -> None:
    expected = train(build(kind, compiled=False, **settings).double())
    result = train(build(kind, compiled=False, **settings).double().to("cuda"))
    torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_the_compiled_block_is_the_plain_one(kind: str, products: Any) -> None:
    plain = train(build(kind, compiled=False, block_size=512, products=products).to("cuda"), 1)
    fused = train(build(kind, compiled=True, block_size=512, products=products).to("cuda"), 1)
    close = {"rtol": 1e-4, "atol": 1e-5} if products == "float32" else {"rtol": 0.05, "atol": 1e-3}
    for name, value in plain.items():
        error = (fused[name].double() - value.double()).norm()
        assert error <= close["rtol"] * value.double().norm() + close["atol"], name


@pytest.mark.parametrize("kind", list(LOSSES))
def test_updates_inside_the_backward_pass(kind: str) -> None:
    heads = [build(kind, block_size=300, compiled=False).double() for _ in range(2)]
    for head, device in zip(heads, ("cpu", "cuda"), strict=True):
        assert isinstance(head, ChunkedHead)
        head.update_in_backward()
        head.learning_rate = 0.1
        head.to(device)
        for _ in range(2):
            embeddings, labels = batch(device, torch.float64)
            head(embeddings.requires_grad_(), labels).backward()
    torch.testing.assert_close(heads[1].weight.cpu(), heads[0].weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("settings", [{}, {"sample_rate": 0.3}, {"update": True}], ids=str)
def test_the_host_never_waits_for_a_head(kind: str, settings: dict[str, Any]) -> None:
    head = build(kind, block_size=300, compiled=False, sample_rate=settings.get("sample_rate"))
    if settings.get("update"):
        assert isinstance(head, ChunkedHead)
        head.update_in_backward()
    head.to("cuda")
    embeddings, labels = batch()
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            head(embeddings.requires_grad_(), labels).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", COMPILED)
def test_a_captured_graph_replays_the_step(kind: str) -> None:
    head = build(kind, block_size=512, products="bfloat16", compiled=True).to("cuda").eval()
    embeddings, labels = batch()
    embeddings.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            head.zero_grad(set_to_none=False)
            embeddings.grad = None
            head(embeddings, labels).backward()
    torch.cuda.current_stream().wait_stream(stream)
    expected = head.weight.grad.clone(), embeddings.grad.clone()
    head.weight.grad, embeddings.grad = None, None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        head(embeddings, labels).backward()
    graph.replay()
    torch.testing.assert_close((head.weight.grad, embeddings.grad), expected, rtol=1e-2, atol=1e-5)


def test_nothing_is_compiled_after_the_second_step() -> None:
    from torch._dynamo.utils import counters

    head = build("adaface", products="bfloat16", compiled=True, block_size=300).to("cuda")
    compiled = []
    for _ in range(4):
        embeddings, labels = batch()
        head(embeddings.requires_grad_(), labels).backward()
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[1] == compiled[-1], compiled


def test_a_step_holds_no_more_than_its_blocks() -> None:
    classes, samples, features, block = 200_000, 512, 256, 2**15
    settings: dict[str, Any] = {"products": "bfloat16", "compiled": True, "memory_budget": 64}
    head = ChunkedHead("adaface", classes, features, block_size=block, **settings).to("cuda")
    labels = torch.randint(classes, (samples,), device="cuda")
    for step in range(3):
        head.zero_grad()
        embeddings = torch.randn(samples, features, device="cuda", requires_grad=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        head(embeddings, labels).backward()
        peak = torch.cuda.max_memory_allocated() - before - head.weight.nbytes
        # One block's products and class centers in bfloat16, and a few (A, D).
        allowed = 2 * block * (samples + features) + 16 * 4 * samples * features + 2**22
        assert step == 0 or peak <= allowed, (peak, allowed)


@pytest.mark.parametrize("kind", list(LOSSES))
def test_lower_precision_errs_no_more_than_autocast(kind: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))
    from test_products import errors

    for part, (own, reference) in errors(kind, compiled=False, device="cuda").items():
        assert own <= 2 * reference, part


class Patches:
    """Tiny images whose identity is a pattern under noise."""

    def __init__(self) -> None:
        self.class_names = [str(number) for number in range(8)]
        self.labels = np.repeat(np.arange(8), 24)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        pattern = np.random.default_rng(int(self.labels[index])).integers(0, 256, (32, 32, 3))
        noise = np.random.default_rng(1000 + index).normal(0, 30, (32, 32, 3))
        return (pattern + noise).clip(0, 255).astype(np.uint8)


BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 16, 16],
    "image_size": 32,
    "embedding_size": 16,
}


def training(precision: str, accelerator: str = "cuda", **settings: Any) -> TrainingState:
    values = {
        "epochs": 2,
        "batch_size": 16,
        "workers": 0,
        "threads": 1,
        "clip_norm": 5,
        "log_steps": 1,
    }
    values |= {"optimizer": {"learning_rate": 0.05}, "weight_average": 0.9}
    values |= {"precision": precision, "accelerator": accelerator} | settings
    return set_up(
        TrainingSettings.model_validate(values),
        TrainingImages(Patches(), 32),
        8,
        BACKBONE,
        create_loss({"kind": "adaface", "scale": 16}),
        {"kind": "chunked"},
    )


def losses(folder: Path) -> list[float]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "training"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_learns_as_on_the_processor(precision: str, tmp_path: Path) -> None:
    fit(training("float32", "cpu"), tmp_path / "host")
    trained = training(precision)
    fit(trained, tmp_path / "device")
    expected, result = losses(tmp_path / "host"), losses(tmp_path / "device")
    assert result[0] == pytest.approx(expected[0], rel=0.02)
    assert np.mean(result[-4:]) == pytest.approx(np.mean(expected[-4:]), rel=0.15)
    embedder = Embedder(trained.gather_model(), ModelCard(backbone=BACKBONE, image_size=32))
    embeddings, _ = embedder.embed_images(Patches(), flips=False)
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_step_waits_by_its_event_alone(precision: str, tmp_path: Path) -> None:
    def watch(step: StepReport) -> None:
        # Events are not counted: they are the one wait there is. Steps 12 and 24 end epochs.
        inside = 1 < step.step < 22 and step.step not in (11, 12)
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    try:
        fit(training(precision), tmp_path, report=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(losses(tmp_path)) == 24


def test_a_training_resumes_where_it_was(tmp_path: Path) -> None:
    full = training("auto")
    fit(full, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step: StepReport) -> None:
        if step.step == 17:
            raise Stop

    with pytest.raises(Stop):
        fit(training("auto", checkpoint_seconds=0), tmp_path / "cut", report=stop)
    again = training("auto")
    fit(again, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=0.02)
    assert again.position == full.position


def test_everybody_against_everybody() -> None:
    features = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    labels = np.arange(3000) // 3
    results = [
        evaluate_all_to_all(features, labels, far_targets=[1e-4], resamples=0, device=device)
        for device in ("cpu", "cuda")
    ]
    first, second = (result.verification[0] for result in results)
    assert second.tar == pytest.approx(first.tar, abs=2e-3)
    assert second.threshold == pytest.approx(first.threshold, abs=1e-5)


def test_dense_and_chunked_agree_in_float32() -> None:
    dense, chunked = train(build("adaface", DenseHead).to("cuda"), 1), train(
        build("adaface", compiled=False).to("cuda"), 1
    )  # fmt: skip
    for name, value in dense.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-4, atol=1e-5)
