"""What is planned is what is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from margrave import backbones
from margrave.heads import HEADS, Head
from margrave.losses import create
from margrave.training import TrainingSettings
from margrave.training.optimizer import build_optimizer
from margrave.training.plan import Machine, measure_machine, plan_training

MACHINE = Machine(flops=1e11, memory_bandwidth=1e10)
CLASSES, FEATURES, BATCH = 60_000, 128, 64
CASES: dict[str, dict[str, Any]] = {
    "chunked": {},
    "nothing kept": {"head": {"memory_budget": 0}},
    "adamw": {"optimizer": {"kind": "adamw"}},
    "no momentum": {"optimizer": {"momentum": 0}},
    "inside the backward pass": {"optimizer": {"centers_in_backward": True}},
    "sampled": {"head": {"sample_rate": 0.2}},
    "bfloat16 products": {"head": {"products": "bfloat16"}},
    "kappaface": {"loss": {"kind": "kappaface"}},
    "memory buffer": {
        "loss": {"kind": "kappaface", "estimator": "memory_buffer"},
        "num_samples": 100_000,
    },
    "dense": {"head": {"kind": "dense"}},
}


def peak_bytes(run: Callable[[], object]) -> tuple[int, int]:
    """Most bytes allocated at a time, and how many are left, while something runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        left_over = run()
    level = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    del left_over
    return peak, level


@pytest.mark.parametrize("name", list(CASES))
def test_memory_of_a_step_within_a_tenth(name: str) -> None:
    case = CASES[name]
    settings = TrainingSettings(batch_size=BATCH, optimizer=case.get("optimizer", {}))
    spec = {"kind": "chunked", **case.get("head", {})}
    loss = create(case.get("loss", {"kind": "adaface"}))
    samples = case.get("num_samples", 0)

    def steps() -> Head:
        given = {key: value for key, value in spec.items() if key != "kind"}
        head = HEADS.get(spec["kind"])(loss, CLASSES, FEATURES, num_samples=samples, **given)
        within = settings.optimizer.centers_in_backward
        if within:
            head.update_in_backward()
            head.learning_rate = 0.1
        optimizer = None if within else build_optimizer(settings.optimizer, [head])
        for _ in range(2):
            labels = torch.randint(CLASSES, (BATCH,))
            embeddings = torch.randn(BATCH, FEATURES, requires_grad=True)
            head(embeddings, labels, sample_indices=torch.arange(BATCH)).backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        return head

    measured, _ = peak_bytes(steps)
    plan = plan_training(
        settings,
        spec,
        loss,
        num_classes=CLASSES,
        embedding_size=FEATURES,
        num_samples=samples,
        machine=MACHINE,
    )
    planned = plan.bytes - plan.memory["process"]
    assert planned == pytest.approx(measured, rel=0.1), plan.memory


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "iresnet", "block_counts": (2, 2, 2, 2), "channels": (16, 16, 32, 64)},
        {"kind": "mobilefacenet"},
        {"kind": "vit", "width": 64, "depth": 3, "attention_heads": 4},
    ],
    ids=lambda spec: spec["kind"],
)
def test_activations_within_a_tenth(spec: dict[str, Any]) -> None:
    settings = TrainingSettings(batch_size=8)
    plan = plan_training(
        settings,
        {"kind": "chunked"},
        create({"kind": "arcface"}),
        backbone=spec,
        num_classes=10,
        machine=MACHINE,
    )
    network = backbones.create(spec).train()
    images = torch.randn(8, 3, 112, 112)
    _, kept = peak_bytes(lambda: network(images))
    assert plan.memory["activations"] == pytest.approx(kept, rel=0.1)
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    assert plan.memory["backbone"] == 3 * parameters


def plan(**changed: Any) -> Any:
    given: dict[str, Any] = {
        "settings": TrainingSettings(batch_size=256),
        "head": {"kind": "chunked"},
        "loss": create({"kind": "adaface"}),
        "num_classes": 10_000_000,
        "machine": MACHINE,
    }
    return plan_training(**given | changed)


def test_ranks_share_classes_and_talk() -> None:
    alone, together = plan(), plan(ranks=8)
    assert together.memory["class centers"] == alone.memory["class centers"] / 8
    assert together.seconds["three products"] == pytest.approx(alone.seconds["three products"] / 8)
    assert together.seconds["exchange of embeddings"] > 0
    assert alone.step_seconds > alone.floor


def test_fsdp_shards_the_backbone() -> None:
    def planned(ranks: int, **changed: Any) -> Any:
        settings = TrainingSettings(batch_size=256, **changed)
        return plan(settings=settings, backbone={"kind": "iresnet50"}, ranks=ranks)

    one, copied, sharded = planned(1), planned(8), planned(8, strategy="fsdp")
    assert planned(1, strategy="fsdp") == one
    parameters = one.memory["backbone"] / 3
    assert copied.memory["backbone"] == 4 * parameters
    # A full copy for evaluations, an eighth of weights, gradient and moment, and gathered blocks.
    assert 1.375 * parameters < sharded.memory["backbone"] < copied.memory["backbone"]
    assert planned(64, strategy="fsdp").memory["backbone"] < sharded.memory["backbone"]
    averaged = planned(8, strategy="fsdp", weight_average=0.9)
    assert averaged.memory["backbone"] == sharded.memory["backbone"] + parameters
    accumulated = planned(8, strategy="fsdp", accumulate=2)
    assert accumulated.memory["backbone"] > sharded.memory["backbone"]
    exchanged = "exchange of weights and gradients"
    assert accumulated.seconds[exchanged] > sharded.seconds[exchanged] > 0
    assert "all-reduce of gradients" not in sharded.seconds


def test_a_momentum_encoder_is_another_copy_with_a_forward_pass() -> None:
    losses = (
        create({"kind": "kappaface", "estimator": estimator})
        for estimator in ("online", "momentum_encoder")
    )
    online, encoder = (plan(loss=loss, backbone={"kind": "iresnet50"}) for loss in losses)
    assert encoder.memory["backbone"] == pytest.approx(4 / 3 * online.memory["backbone"])
    assert encoder.seconds["backbone"] == pytest.approx(4 / 3 * online.seconds["backbone"])
    assert encoder.floor - online.floor == pytest.approx(online.seconds["backbone"] / 3)


def test_a_sample_is_faster_and_smaller() -> None:
    every, few = plan(), plan(head={"kind": "chunked", "sample_rate": 0.1})
    assert few.memory["gradient of centers"] < 0.5 * every.memory["gradient of centers"]
    assert few.seconds["three products"] == pytest.approx(0.1 * every.seconds["three products"])


def test_low_precision_speeds_what_is_computed_in_it() -> None:
    machine = Machine(flops=1e11, bf16_flops=4e11, memory_bandwidth=1e10)
    given: dict[str, Any] = {"machine": machine, "backbone": {"kind": "iresnet50"}}
    float32 = TrainingSettings(batch_size=256, precision="float32")
    high, low = plan(**given, settings=float32), plan(**given)
    assert high.seconds["backbone"] == pytest.approx(4 * low.seconds["backbone"])
    assert high.memory["activations"] == 2 * low.memory["activations"]
    assert high.seconds["three products"] == low.seconds["three products"]
    heads = {
        products: plan(**given, head={"kind": "chunked", "products": products})
        for products in ("auto", "bfloat16", "float32")
    }
    times = {name: planned.seconds["three products"] for name, planned in heads.items()}
    assert times["float32"] == pytest.approx(4 * times["bfloat16"])
    assert times["auto"] == times["bfloat16"]
    slow = Machine(flops=1e11, bf16_flops=1e9, memory_bandwidth=1e10)
    automatic = plan(machine=slow, head={"kind": "chunked", "products": "auto"})
    assert automatic.seconds["three products"] == times["float32"]


def test_nothing_to_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        plan(num_classes=0)


def test_this_machine_has_a_speed() -> None:
    machine = measure_machine(batch=64)
    assert machine.flops > 1e8 and machine.memory_bandwidth > 1e7
