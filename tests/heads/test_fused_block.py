from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from margrave.heads.fused_block import Compiled, FusedBlock
from margrave.losses import Context
from margrave.losses import create as create_loss


def leave_uncompiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """In place of `torch.compile`, which takes seconds."""
    del options

    def kernel(*arguments: Any) -> Any:
        return function(*arguments)

    return kernel


def test_a_block_that_is_not_kept_frees_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", leave_uncompiled)
    block = FusedBlock(create_loss({"kind": "arcface"}), subtract_max=False)
    column = torch.zeros(2, 1, dtype=torch.int32)
    zeros = torch.zeros(2)
    block.forward(torch.zeros(2, 3), torch.ones(3), column, zeros, Context(), zeros)
    freed = weakref.ref(block)
    del block
    gc.collect()
    assert freed() is None


def test_an_error_in_the_arguments_does_not_end_compilation(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch, "compile", leave_uncompiled)
    add = Compiled(torch.add, "add")
    with pytest.raises(RuntimeError, match="must match"):
        add(torch.zeros(2), torch.zeros(3))
    assert add.works and not recwarn.list
    assert add(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
