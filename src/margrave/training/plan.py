"""What a training will take of memory and time, before anybody rents a cluster for it.

Memory is counted, tensor by tensor, as the heads allocate it. Time is the arithmetic (the products
that nobody can avoid, and the backbone's) at the speed measured on a machine, plus what passes
through its memory and its network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from margrave import backbones
from margrave.distributed import World, owned_classes
from margrave.hardware import WORTHWHILE_SPEEDUP
from margrave.heads.chunked import block_size_for, worth_compiling
from margrave.heads.products import WORTHWHILE_COSINES
from margrave.losses import Loss
from margrave.training.settings import TrainingSettings

FLOAT, LOW = 4, 2
"""Bytes of a number in float32, and in bfloat16."""
PROCESS_BYTES = {"cpu": 400e6, "cuda": 600e6}
"""Interpreter, libraries, and on a GPU its context."""
PASSES_OVER_COSINES = 5
"""How often each cosine goes through memory beside the products, forward and backward together."""
PASSES_OVER_CENTRES = 2
"""The same of the centres: their lengths, and the projection of their gradient."""
OPTIMIZER_PASSES = {"sgd": 11, "adamw": 20}
"""Reads and writes of a tensor as large as the centres in one update."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast a machine is.

    Attributes:
        flops: multiplications and additions a second, in a product of float32 matrices.
        low_flops: the same in bfloat16; None for `flops`.
        memory_bandwidth: bytes a second that go through its memory.
        network_bandwidth: bytes a second between ranks.
        device: ``cpu`` or ``cuda``.
    """

    flops: float
    low_flops: float | None = None
    memory_bandwidth: float
    network_bandwidth: float = 1e9
    device: str = "cpu"

    def low_speed(self, precision: str) -> float | None:
        """Speed in a precision below float32, or None where that is not what ``auto`` comes to."""
        native = (self.low_flops or 0) >= WORTHWHILE_SPEEDUP * self.flops
        low = precision in ("bfloat16", "float16") or (precision == "auto" and native)
        return (self.low_flops or self.flops) if low else None


def measure_machine(batch: int = 256, features: int = 512) -> Machine:
    """A second or two of products and copies on this machine's GPU, or on its processor."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flops = []
    for dtype in (torch.float32, torch.bfloat16):
        embeddings = torch.randn(batch, features, device=device, dtype=dtype)
        centres = torch.randn(2**14, features, device=device, dtype=dtype)
        products = torch.empty(batch, 2**14, device=device, dtype=dtype)
        seconds = _seconds(
            lambda e=embeddings, c=centres, p=products: torch.mm(e, c.T, out=p), device
        )
        flops.append(2 * products.numel() * features / seconds)
    large = torch.ones(2**26, device=device)
    bandwidth = 2 * large.nbytes / _seconds(lambda: large.mul_(1.0), device)
    return Machine(flops=flops[0], low_flops=flops[1], memory_bandwidth=bandwidth, device=device)


def _seconds(run: Any, device: str) -> float:
    """The median time of a run."""
    found = []
    for _ in range(7):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one rank will need.

    Attributes:
        memory: bytes by what they are for, at the step's most crowded moment.
        seconds: of one optimiser step, by what they are for.
        floor: seconds that the arithmetic alone would take: the backbone's, and three products of
            embeddings, centres and their gradient.
    """

    memory: dict[str, float]
    seconds: dict[str, float]
    floor: float

    @property
    def bytes(self) -> float:
        """All memory of a rank."""
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        """One optimiser step."""
        return sum(self.seconds.values())


def plan_training(
    settings: TrainingSettings,
    head: Mapping[str, Any],
    loss: Loss,
    *,
    num_classes: int,
    machine: Machine,
    backbone: Mapping[str, Any] | None = None,
    image_size: int = 112,
    embedding_size: int = 512,
    num_samples: int = 0,
    ranks: int = 1,
) -> Plan:
    """Predict a rank's memory and a step's time.

    Args:
        settings: of the training: batch size, accumulation, precision, optimiser.
        head: its settings, as in a configuration.
        loss: its statistics take memory too.
        num_classes: identities.
        machine: what it will run on.
        backbone: its specification; None to plan the head alone.
        image_size: pixels of a side.
        embedding_size: of the head alone; a backbone knows its own.
        num_samples: images, of which KappaFace's memory buffer keeps a vector each.
        ranks: processes.

    Raises:
        ValueError: numbers below 1; a dense head on several ranks.

    >>> machine = Machine(flops=1e11, memory_bandwidth=1e10)
    >>> one = {"head": {"kind": "chunked"}, "loss": Loss(), "num_classes": 10**6}
    >>> plan = plan_training(TrainingSettings(), **one, machine=machine)
    >>> round(plan.memory["class centres"] / 1e9, 2), plan.step_seconds > plan.floor
    (2.05, True)
    """
    for name, value in (("num_classes", num_classes), ("ranks", ranks)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    memory: dict[str, float] = {"process": PROCESS_BYTES[machine.device]}
    seconds: dict[str, float] = {}
    floor = 0.0
    if backbone is not None:
        low = machine.low_speed(settings.precision)
        embedding_size, of_backbone, arithmetic, exchanged = _plan_backbone(
            settings, backbone, image_size, ranks, low is not None
        )
        memory |= of_backbone
        floor = seconds["backbone"] = arithmetic / (low or machine.flops)
        if ranks > 1:
            seconds["gradients over the network"] = exchanged / machine.network_bandwidth
    shape = _Shape(
        samples=settings.batch_size // settings.accumulate,
        classes=len(owned_classes(num_classes, World(0, ranks))),
        features=embedding_size,
        device=machine.device,
    )
    low = _product_speed(head, shape, machine)
    memory |= _head_memory(settings, head, shape, LOW if low else FLOAT)
    memory |= _statistics_memory(loss, shape, -(-num_samples // ranks))
    of_head = _head_seconds(settings, head, shape, machine, ranks)
    seconds |= of_head
    return Plan(memory=memory, seconds=seconds, floor=floor + of_head["three products"])


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What a rank's head works on: a micro-batch of all ranks, and its own classes."""

    samples: int
    classes: int
    features: int
    device: str

    @property
    def centres(self) -> float:
        """Bytes of all centres."""
        return FLOAT * self.classes * self.features

    def at_hand(self, rate: float | None) -> int:
        """Classes that take part in a step."""
        if rate is None:
            return self.classes
        return min(max(round(rate * self.classes), self.samples), self.classes)


def _product_speed(head: Mapping[str, Any], shape: _Shape, machine: Machine) -> float | None:
    """Of the head's products where they are not float32."""
    if head["kind"] == "dense" or shape.samples * shape.classes < WORTHWHILE_COSINES:
        return None
    return machine.low_speed(head.get("products", "float32"))


def _head_memory(
    settings: TrainingSettings, head: Mapping[str, Any], shape: _Shape, product_bytes: int
) -> dict[str, float]:
    rate = head.get("sample_rate")
    at_hand = shape.at_hand(rate)
    rows = FLOAT * at_hand * shape.features
    moments = {"sgd": int(settings.optimizer.momentum > 0), "adamw": 2}[settings.optimizer.kind]
    cosines = FLOAT * shape.samples * at_hand
    embeddings = FLOAT * shape.samples * shape.features
    memory = {"class centres": shape.centres, "their momentum": moments * shape.centres}
    if head["kind"] == "dense":
        # Normalised copy and its gradient; cosines, negatives, logits, masks, and their gradients.
        return memory | {
            "their gradient": shape.centres,
            "normalised copies": 2 * shape.centres,
            "cosines": 8 * cosines,
            "batch": 6 * embeddings,
        }
    block = _block_size(head, shape)
    if settings.optimizer.centres_in_backward:
        memory["their gradient"] = FLOAT * block * shape.features
    elif rate is None:
        memory["their gradient"] = rows
    else:
        # The update takes the rows, their momentum and a copy of their gradient out once more.
        memory["their gradient"] = (3 + (moments > 0)) * rows
        memory["sampling"] = 4 * FLOAT * shape.classes
    # Compiled, a block is its products alone; else negatives and their gradient lie beside it.
    of_cosine = product_bytes if _is_fused(head, shape) else 3 * FLOAT
    return memory | {
        "cosines kept": min(
            float(head.get("memory_budget", 256.0)) * 2**20,
            product_bytes * shape.samples * at_hand,
        ),
        "blocks": of_cosine * shape.samples * min(block, at_hand) + FLOAT * block * shape.features,
        "batch": 8 * embeddings,
    }


def _is_fused(head: Mapping[str, Any], shape: _Shape) -> bool:
    fused = head.get("compiled")
    return worth_compiling(shape.samples, shape.classes, shape.device) if fused is None else fused


def _block_size(head: Mapping[str, Any], shape: _Shape) -> int:
    fused = _is_fused(head, shape)
    size = head.get("block_size") or block_size_for(shape.samples, shape.device, fused)
    return min(int(size), shape.classes)


def _statistics_memory(loss: Loss, shape: _Shape, own_samples: int) -> dict[str, float]:
    needed = loss.needs.get("class_concentration")
    if needed is None:
        return {}
    vectors = own_samples if needed["estimator"] == "memory_buffer" else shape.classes
    return {"class statistics": FLOAT * (vectors * shape.features + 4 * shape.classes)}


def _head_seconds(
    settings: TrainingSettings,
    head: Mapping[str, Any],
    shape: _Shape,
    machine: Machine,
    ranks: int,
) -> dict[str, float]:
    rate = head.get("sample_rate")
    at_hand = shape.at_hand(rate)
    cosines, rows = shape.samples * at_hand, FLOAT * at_hand * shape.features
    low = _product_speed(head, shape, machine)
    product = 2 * cosines * shape.features / (low or machine.flops)
    product_bytes = LOW if low else FLOAT
    kept = min(1.0, float(head.get("memory_budget", 256.0)) * 2**20 / (product_bytes * cosines))
    rebuilt = 0.0 if head["kind"] == "dense" else (1 - kept) * product
    passes = 8 if head["kind"] == "dense" else PASSES_OVER_COSINES
    through_memory = passes * product_bytes * cosines + PASSES_OVER_CENTRES * rows
    updated = OPTIMIZER_PASSES[settings.optimizer.kind] * rows
    if rate is not None:
        # Scattered rows are looked up, taken out and put back several times slower than runs are.
        through_memory += 20 * rows
        updated += 20 * rows
    micro_batches = settings.accumulate
    seconds = {
        "three products": 3 * product * micro_batches,
        "rebuilt cosines": rebuilt * micro_batches,
        "passes over cosines and centres": through_memory * micro_batches
        / machine.memory_bandwidth,
        "centres' update": updated / machine.memory_bandwidth,
    }  # fmt: skip
    if ranks > 1:
        # Gathered embeddings, their reduced gradient (there and back), and numbers per sample.
        exchanged = FLOAT * shape.samples * (3 * shape.features + 8)
        seconds["embeddings over the network"] = (
            micro_batches * exchanged / machine.network_bandwidth
        )
    return seconds


def _plan_backbone(
    settings: TrainingSettings, spec: Mapping[str, Any], image_size: int, ranks: int, low: bool
) -> tuple[int, dict[str, float], float, float]:
    """Embedding size, memory, arithmetic of a step, and bytes exchanged between ranks."""
    with torch.device("meta"):
        network = backbones.create(spec).train()
    # Tensors without content, for which a processor's own operations are chosen.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        network.to_empty(device="cpu")
        images = torch.empty(2, 3, image_size, image_size)
    saved: dict[int, Tensor] = {}
    own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}

    def save(tensor: Tensor) -> Tensor:
        # By storage: one activation may be saved by several operations.
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            saved[storage] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with fake, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), counter:
        embeddings = network(images)
    activations = sum(tensor.nbytes for tensor in saved.values()) / len(images)
    forward = counter.get_total_flops() / len(images)
    parameters = sum(tensor.nbytes for tensor in network.parameters())
    own_images = math.ceil(settings.batch_size / ranks)
    half = 0.5 if low else 1.0
    moments = {"sgd": int(settings.optimizer.momentum > 0), "adamw": 2}[settings.optimizer.kind]
    copies = 2 + moments + (settings.weight_average is not None) + (ranks > 1)
    memory = {
        "backbone": copies * parameters,
        "activations": half * activations * math.ceil(own_images / settings.accumulate),
    }
    return embeddings.shape[1], memory, 3 * forward * own_images, 2 * parameters
