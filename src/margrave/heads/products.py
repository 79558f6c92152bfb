"""The precision of a head's matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from margrave.hardware import has_native_bfloat16

Products = Literal["auto", "float32", "tf32", "bfloat16"]
"""Precision of a float32 head's matrix products; everything else stays float32."""

MIN_BFLOAT16_COSINES = 2**20
"""Minimum batch × classes for ``auto`` to use bfloat16; smaller products are no bottleneck."""


def choose_products(
    products: Products, weight: Tensor, cosine_count: int, native_bfloat16: bool | None = None
) -> Products:
    """Resolve the precision of a head's products.

    Args:
        products: the requested precision; ``auto`` is bfloat16 where it is native and worthwhile.
        weight: the head's weight.
        cosine_count: batch × classes.
        native_bfloat16: whether bfloat16 is native; by default determined for this machine.

    Returns:
        The precision. If the weight is not float32, the result is always ``float32``, which then
        means the weight's dtype.

    Raises:
        ValueError: the precision is unknown, or it is lower than float32 and the weight is float64.

    >>> choose_products("auto", torch.zeros(3, 4), cosine_count=12)
    'float32'
    """
    if products not in get_args(Products):
        raise ValueError(f"products = {products!r}; choices: {', '.join(get_args(Products))}")
    if weight.dtype != torch.float32:
        if weight.dtype == torch.float64 and products in ("tf32", "bfloat16"):
            raise ValueError(
                f"products = {products!r} requires a float32 weight, but this head's is float64; "
                "set products to auto"
            )
        return "float32"
    if products != "auto":
        return products
    if cosine_count < MIN_BFLOAT16_COSINES:
        return "float32"
    if native_bfloat16 is None:
        native_bfloat16 = has_native_bfloat16(weight.device.type)
    return "bfloat16" if native_bfloat16 else "float32"


def product_dtype(products: Products, weight: Tensor) -> torch.dtype:
    """The dtype that both factors of a product are cast to."""
    return torch.bfloat16 if products == "bfloat16" else weight.dtype


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Context in which GPUs multiply float32 matrices in TF32 if `enabled`; no effect on CPUs."""
    if not enabled:
        yield
        return
    settings = torch.backends.cuda.matmul
    # The setting was renamed in torch 2.9, which does not allow mixing both names.
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = getattr(settings, name)
    setattr(settings, name, "tf32" if name == "fp32_precision" else True)
    try:
        yield
    finally:
        setattr(settings, name, before)


def multiply_wide(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute left @ right, with a float32 result for factors of lower precision.

    Args:
        left: (N, M).
        right: (M, P) of the same dtype.
        out: (N, P), receives the result rounded to its dtype; by default a new tensor.

    >>> multiply_wide(torch.ones(1, 2).bfloat16(), torch.ones(2, 1).bfloat16())
    tensor([[2.]])
    """
    if left.dtype.itemsize >= 4 or (out is not None and out.dtype == left.dtype):
        return torch.mm(left, right, out=out)
    if _supports_float32_output(left.device.type) and (out is None or out.dtype == torch.float32):
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    product = torch.mm(left, right)
    return product.float() if out is None else out.copy_(product)


def _supports_float32_output(device_type: str) -> bool:
    """Whether `torch.mm` can return its float32 accumulator: on CUDA since torch 2.8."""
    return device_type == "cuda" and "dtype" in torch.ops.aten.mm.overloads()
