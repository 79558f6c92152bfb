"""The precision of a head's matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from margrave.hardware import has_native_bfloat16

Products = Literal["auto", "float32", "tf32", "bfloat16"]
"""What a float32 head multiplies in. Everything else about it stays float32."""

WORTHWHILE_COSINES = 2**20
"""Batch × classes from which ``auto`` leaves float32: below, products are no bottleneck."""


def choose_products(products: Products, weight: Tensor, cosines: int) -> Products:
    """The precision that a head's products take; a weight of another dtype keeps its own.

    Args:
        products: as asked for; ``auto`` is bfloat16 where it is native and worthwhile.
        weight: the head's.
        cosines: batch × classes.

    Raises:
        ValueError: a lower precision is asked for and the weight is float64.

    >>> choose_products("auto", torch.zeros(3, 4), cosines=12)
    'float32'
    """
    if products not in get_args(Products):
        raise ValueError(f"products = {products!r}; choices: {', '.join(get_args(Products))}")
    if weight.dtype != torch.float32:
        if weight.dtype == torch.float64 and products in ("tf32", "bfloat16"):
            raise ValueError(
                f"products = {products!r} is for a float32 weight and this head's is float64; "
                "leave products at auto"
            )
        return "float32"
    if products != "auto":
        return products
    native = cosines >= WORTHWHILE_COSINES and has_native_bfloat16(weight.device.type)
    return "bfloat16" if native else "float32"


def product_dtype(products: Products, weight: Tensor) -> torch.dtype:
    """What both factors of a product are cast to."""
    return torch.bfloat16 if products == "bfloat16" else weight.dtype


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Let a GPU multiply float32 in tf32 meanwhile; processors have none."""
    if not wanted:
        yield
        return
    settings = torch.backends.cuda.matmul
    # The setting's name since torch 2.9, which refuses the former one beside it.
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = getattr(settings, name)
    setattr(settings, name, "tf32" if name == "fp32_precision" else True)
    try:
        yield
    finally:
        setattr(settings, name, before)


def multiply_wide(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right, in float32 if the factors are lower.

    Args:
        left: (N, M).
        right: (M, P) of the same dtype.
        out: (N, P) where the result goes, rounded to its dtype; by default a new tensor.

    >>> multiply_wide(torch.ones(1, 2).bfloat16(), torch.ones(2, 1).bfloat16())
    tensor([[2.]])
    """
    if left.dtype.itemsize >= 4 or (out is not None and out.dtype == left.dtype):
        return torch.mm(left, right, out=out)
    if _has_wide_results(left.device.type) and (out is None or out.dtype == torch.float32):
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    product = torch.mm(left, right)
    return product.float() if out is None else out.copy_(product)


def _has_wide_results(device_type: str) -> bool:
    """Whether torch writes a product's float32 accumulator as it is: on CUDA since 2.8."""
    return device_type == "cuda" and "dtype" in torch.ops.aten.mm.overloads()
