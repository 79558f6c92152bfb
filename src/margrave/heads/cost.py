"""The cost of a head's training step, computed without allocating tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The training step whose cost is estimated.

    Attributes:
        samples: samples per micro-batch, summed over the ranks that the classes are sharded over.
        device: ``cpu`` or ``cuda``.
        native_bfloat16: whether bfloat16 products are faster than float32 on the device.
        moments: number of weight-sized tensors in the optimizer's state.
        in_backward: whether the head updates its centers in the backward pass.
    """

    samples: int
    device: str
    native_bfloat16: bool = False
    moments: int = 1
    in_backward: bool = False


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """The cost of a step for one rank's head.

    Attributes:
        memory: purpose -> bytes, at the step's peak.
        local_centers: number of class centers that the rank uses in the step (for M centers per
            class, M times the number of classes).
        product_bytes: bytes per value in the matrix products, 4 or 2.
        recomputed_fraction: fraction of the cosines that the backward pass recomputes, from 0 to 1.
        passes: how often each cosine is read or written outside the matrix products.
        sparse: whether the step uses only scattered rows of the weight (class sampling).
    """

    memory: dict[str, float]
    local_centers: int
    product_bytes: int = 4
    recomputed_fraction: float = 0.0
    passes: int = 8
    sparse: bool = False
