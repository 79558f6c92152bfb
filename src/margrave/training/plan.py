"""Predicts the memory and time of a training run, before you rent a cluster for it.

Memory is counted tensor by tensor, as backbone and head allocate it. Time is the sum of arithmetic
(the backbone and the head's matrix products) at the machine's measured speed, and of data movement
through memory and network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from margrave import backbones
from margrave.distributed import World, owned_classes
from margrave.distributed.sharding import sharded_blocks
from margrave.hardware import WORTHWHILE_SPEEDUP
from margrave.heads import HEADS, HeadCost, Workload
from margrave.losses import Loss
from margrave.training.settings import TrainingSettings

FLOAT32_BYTES = 4
"""Bytes per float32 number."""
PROCESS_BYTES = {"cpu": 400e6, "cuda": 600e6}
"""Memory of a device besides tensors: the interpreter and the libraries on a CPU, the CUDA context
on a GPU."""
PASSES_OVER_CENTERS = 2
"""How often a step reads the class centers: for their norms, and to project their gradient."""
OPTIMIZER_PASSES = {"sgd": 11, "adamw": 20}
"""Reads and writes per update, in units of the class centers' size."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speed of a machine.

    Attributes:
        flops: floating-point operations per second in float32 matrix products.
        bf16_flops: the same in bfloat16; None means equal to `flops`.
        memory_bandwidth: bytes per second, read or written.
        network_bandwidth: bytes per second between ranks.
        device: ``cpu`` or ``cuda``.
    """

    flops: float
    bf16_flops: float | None = None
    memory_bandwidth: float
    network_bandwidth: float = 1e9
    device: str = "cpu"

    @property
    def has_native_bfloat16(self) -> bool:
        """Whether bfloat16 products are enough faster than float32 to be worth using."""
        return (self.bf16_flops or 0) >= WORTHWHILE_SPEEDUP * self.flops

    def low_precision_flops(self, precision: str) -> float | None:
        """Operations per second in 16 bits; None if `precision` is not 16 bits on this machine."""
        automatic = precision == "auto" and self.has_native_bfloat16
        is_16_bit = precision in ("bfloat16", "float16") or automatic
        return (self.bf16_flops or self.flops) if is_16_bit else None


def measure_machine(batch: int = 256, features: int = 512) -> Machine:
    """Measure the speed of the GPU, or of the CPU if there is none, in a second or two."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_centers = 2**14
    flops = []
    for dtype in (torch.float32, torch.bfloat16):
        embeddings = torch.randn(batch, features, device=device, dtype=dtype)
        centers = torch.randn(num_centers, features, device=device, dtype=dtype)
        products = torch.empty(batch, num_centers, device=device, dtype=dtype)
        seconds = _median_seconds(
            lambda e=embeddings, c=centers, p=products: torch.mm(e, c.T, out=p), device
        )
        flops.append(2 * products.numel() * features / seconds)
    # Multiplying in place reads and writes the tensor once.
    large = torch.ones(2**26, device=device)
    bandwidth = 2 * large.nbytes / _median_seconds(lambda: large.mul_(1.0), device)
    return Machine(flops=flops[0], bf16_flops=flops[1], memory_bandwidth=bandwidth, device=device)


def _median_seconds(run: Any, device: str) -> float:
    """The median time of seven calls."""
    seconds = []
    for _ in range(7):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory and time that one rank needs.

    Attributes:
        memory: bytes by purpose, at the peak of a step.
        seconds: duration of one optimizer step in seconds, by purpose.
        floor: seconds of a step's arithmetic alone: the backbone's, and the head's three matrix
            products (cosines, and the gradients of embeddings and class centers).
    """

    memory: dict[str, float]
    seconds: dict[str, float]
    floor: float

    @property
    def bytes(self) -> float:
        """Total memory of a rank, in bytes."""
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        """Total time of one optimizer step, in seconds."""
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
    """Predict the memory of one rank and the time of one optimizer step.

    Args:
        settings: the training settings: batch size, accumulation, precision, optimizer, strategy.
        head: the head's settings, as in a configuration.
        loss: the loss; its statistics need memory too.
        num_classes: number of identities.
        machine: the machine to plan for.
        backbone: the backbone's specification; None plans the head alone.
        image_size: image side length in pixels.
        embedding_size: features per embedding; ignored if there is a backbone, which decides.
        num_samples: number of training images; KappaFace's memory buffer keeps a vector for each.
        ranks: number of processes.

    Raises:
        ValueError: `num_classes` or `ranks` is below 1, or a head setting is out of range.

    >>> machine = Machine(flops=1e11, memory_bandwidth=1e10)
    >>> problem = {"head": {"kind": "chunked"}, "loss": Loss(), "num_classes": 10**6}
    >>> plan = plan_training(TrainingSettings(), **problem, machine=machine)
    >>> round(plan.memory["class centers"] / 1e9, 2), plan.step_seconds > plan.floor
    (2.05, True)
    """
    for name, value in (("num_classes", num_classes), ("ranks", ranks)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    network = None if backbone is None else _measure_network(backbone, image_size)
    if network is not None:
        embedding_size = network.embedding_size
    workload = Workload(
        samples=settings.batch_size // settings.accumulate,
        device=machine.device,
        native_bfloat16=machine.has_native_bfloat16,
        moments=_count_moments(settings),
        in_backward=settings.optimizer.centers_in_backward,
    )
    # The first rank's shard of the head, on the meta device, which allocates no memory.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        planned_head = HEADS.get(head["kind"])(
            loss,
            len(owned_classes(num_classes, World(0, ranks))),
            embedding_size,
            num_samples=max(1, -(-num_samples // ranks)),
            **{name: value for name, value in head.items() if name != "kind"},
        )
    memory: dict[str, float] = {"process": PROCESS_BYTES[machine.device]}
    seconds: dict[str, float] = {}
    floor = 0.0
    if network is not None:
        low_precision_flops = machine.low_precision_flops(settings.precision)
        has_encoder = "momentum_embeddings" in planned_head.reads
        images_per_rank = math.ceil(settings.batch_size / ranks)
        # 16-bit activations take half of the counted float32 bytes.
        image_bytes = network.activation_bytes * (0.5 if low_precision_flops else 1.0)
        memory |= {
            "backbone": _backbone_bytes(settings, network, ranks, has_encoder),
            "activations": image_bytes * math.ceil(images_per_rank / settings.accumulate),
        }
        # A backward pass takes twice the operations of a forward pass. The momentum encoder has a
        # forward pass only.
        operations = (3 + has_encoder) * network.forward_flops * images_per_rank
        floor = seconds["backbone"] = operations / (low_precision_flops or machine.flops)
        if ranks > 1:
            purpose, exchanged_bytes = _exchange(settings, network, has_encoder)
            seconds[purpose] = exchanged_bytes / machine.network_bandwidth
    cost = planned_head.cost(workload)
    memory |= cost.memory
    head_seconds = _head_seconds(settings, cost, workload, embedding_size, machine, ranks)
    seconds |= head_seconds
    return Plan(memory=memory, seconds=seconds, floor=floor + head_seconds["three products"])


def _count_moments(settings: TrainingSettings) -> int:
    """The number of moments that the optimizer keeps per parameter."""
    return {"sgd": int(settings.optimizer.momentum > 0), "adamw": 2}[settings.optimizer.kind]


def _head_seconds(
    settings: TrainingSettings,
    cost: HeadCost,
    workload: Workload,
    features: int,
    machine: Machine,
    ranks: int,
) -> dict[str, float]:
    """Seconds that one rank's head takes in an optimizer step, by purpose."""
    # Cosines, product_seconds and pass_bytes are those of one micro-batch.
    num_cosines = workload.samples * cost.local_centers
    center_bytes = FLOAT32_BYTES * cost.local_centers * features
    is_16_bit = cost.product_bytes < FLOAT32_BYTES
    flops = (machine.bf16_flops or machine.flops) if is_16_bit else machine.flops
    product_seconds = 2 * num_cosines * features / flops
    pass_bytes = cost.passes * cost.product_bytes * num_cosines
    pass_bytes += PASSES_OVER_CENTERS * center_bytes
    update_bytes = OPTIMIZER_PASSES[settings.optimizer.kind] * center_bytes
    if cost.sparse:
        # Gathering and scattering single rows is several times slower than contiguous access. This
        # is counted as 20 more passes.
        pass_bytes += 20 * center_bytes
        update_bytes += 20 * center_bytes
    num_micro_batches = settings.accumulate
    seconds = {
        "three products": 3 * product_seconds * num_micro_batches,
        "rebuilt cosines": cost.recomputed_fraction * product_seconds * num_micro_batches,
        "passes over cosines and centers": pass_bytes
        * num_micro_batches
        / machine.memory_bandwidth,
        "centers' update": update_bytes / machine.memory_bandwidth,
    }
    if ranks > 1:
        # Gathered embeddings, their all-reduced gradient (sent twice), and 8 numbers per sample.
        exchanged_bytes = FLOAT32_BYTES * workload.samples * (3 * features + 8)
        seconds["exchange of embeddings"] = (
            num_micro_batches * exchanged_bytes / machine.network_bandwidth
        )
    return seconds


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What a backbone needs.

    Attributes:
        embedding_size: features per embedding.
        parameter_bytes: size of all parameters.
        gathered_bytes: size of the parameters that FSDP gathers on a rank at the same time.
        activation_bytes: bytes per image that float32 training keeps for the backward pass.
        forward_flops: operations per image of a forward pass.
    """

    embedding_size: int
    parameter_bytes: int
    gathered_bytes: int
    activation_bytes: float
    forward_flops: float


def _measure_network(spec: Mapping[str, Any], image_size: int) -> _Network:
    """Run a backbone on tensors without data, and count what it allocates and computes."""
    with torch.device("meta"):
        network = backbones.create(spec).train()
    # Fake tensors have no data, but run the same operations as tensors on the CPU.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        network.to_empty(device="cpu")
        images = torch.empty(2, 3, image_size, image_size)
    saved: dict[int, Tensor] = {}
    parameter_storages = {tensor.untyped_storage()._cdata for tensor in network.parameters()}

    def save(tensor: Tensor) -> Tensor:
        # The key is the storage, because several operations may save the same activation.
        storage = tensor.untyped_storage()._cdata
        if storage not in parameter_storages:
            saved[storage] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with fake, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), counter:
        embeddings = network(images)
    block_bytes = [_parameter_bytes(block) for block in sharded_blocks(network)]
    parameter_bytes = _parameter_bytes(network)
    return _Network(
        embedding_size=embeddings.shape[1],
        parameter_bytes=parameter_bytes,
        # What is outside of the blocks stays gathered; the blocks are gathered one at a time.
        gathered_bytes=parameter_bytes - sum(block_bytes) + max(block_bytes, default=0),
        activation_bytes=sum(tensor.nbytes for tensor in saved.values()) / len(images),
        forward_flops=counter.get_total_flops() / len(images),
    )


def _parameter_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


def _backbone_bytes(
    settings: TrainingSettings, network: _Network, ranks: int, has_encoder: bool
) -> float:
    """Bytes of a rank's weights, gradients and moments, and of the network's full copies."""
    moments = _count_moments(settings)
    # The average of the weights, and the momentum encoder, which is an average too.
    num_averages = (settings.weight_average is not None) + has_encoder
    if settings.strategy == "ddp" or ranks == 1:
        # The weights and their gradient, the moments, the averages, and DDP's buckets.
        return (2 + moments + num_averages + (ranks > 1)) * network.parameter_bytes
    # Shards of weights, gradient and moments. The averages are full copies, and so is the network
    # into which the shards are gathered for evaluations.
    shards = (2 + moments) * network.parameter_bytes / ranks
    # Only the last micro-batch's backward pass shards the gradient; accumulation keeps it in full.
    gradient = network.parameter_bytes if settings.accumulate > 1 else network.gathered_bytes
    return shards + network.gathered_bytes + gradient + (1 + num_averages) * network.parameter_bytes


def _exchange(
    settings: TrainingSettings, network: _Network, has_encoder: bool
) -> tuple[str, float]:
    """What ranks exchange in a step because of the backbone, and the bytes that a rank sends."""
    if settings.strategy == "ddp":
        # A ring all-reduce sends each byte twice.
        return "all-reduce of gradients", 2 * network.parameter_bytes
    # Each micro-batch gathers the weights forward and backward, the last micro-batch scatters its
    # gradient, and each average gathers the updated weights.
    num_averages = (settings.weight_average is not None) + has_encoder
    return (
        "exchange of weights and gradients",
        (2 * settings.accumulate + 1 + num_averages) * network.parameter_bytes,
    )
