from __future__ import annotations

from typing import Any

import pytest
import torch

from margrave.heads import ChunkedHead, RowwiseSGD

SETTINGS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}


def train(optimizer: type, dense: bool, steps: int = 4) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2))
    chosen = optimizer([weight], **SETTINGS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        gradient = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        weight.grad = gradient if dense else gradient.to_sparse(1)
        chosen.step()
    return weight.detach()


def test_the_dense_rule_is_torchs() -> None:
    expected = train(torch.optim.SGD, dense=True)
    torch.testing.assert_close(train(RowwiseSGD, dense=True), expected, rtol=1e-12, atol=0)


def test_with_every_row_the_sparse_rule_is_the_dense_one() -> None:
    expected = train(torch.optim.SGD, dense=True)
    torch.testing.assert_close(train(RowwiseSGD, dense=False), expected, rtol=1e-12, atol=0)


def test_untouched_centres_keep_weight_and_momentum() -> None:
    torch.manual_seed(0)
    head = ChunkedHead("adaface", 1000, 8, sample_rate=0.05)
    optimizer = RowwiseSGD(head.parameters(), **SETTINGS)
    labels = torch.tensor([5, 900, 5, 17])
    for _ in range(3):
        weight = head.weight.detach().clone()
        state = optimizer.state[head.weight].get("momentum_buffer", torch.zeros_like(weight))
        momentum = state.clone()
        optimizer.zero_grad()
        head(torch.randn(4, 8), labels).backward()
        gradient = head.weight.grad
        assert gradient is not None and gradient.is_sparse
        rows = gradient.coalesce().indices()[0]
        assert len(rows) == 50 and set(labels.tolist()) <= set(rows.tolist())
        optimizer.step()
        untouched = torch.ones(1000, dtype=torch.bool)
        untouched[rows] = False
        buffer = optimizer.state[head.weight]["momentum_buffer"]
        assert torch.equal(head.weight[untouched], weight[untouched])
        assert torch.equal(buffer[untouched], momentum[untouched])
        assert (head.weight[rows] != weight[rows]).any(dim=1).all()


def test_sampling_repeats_by_seed_and_goes_on_after_a_restart() -> None:
    def drawn(head: ChunkedHead) -> list[int]:
        head.zero_grad()
        head(torch.ones(2, 4), torch.tensor([1, 2])).backward()
        assert head.weight.grad is not None
        return head.weight.grad.coalesce().indices()[0].tolist()

    first, again = (ChunkedHead("arcface", 500, 4, sample_rate=0.1) for _ in range(2))
    other = ChunkedHead("arcface", 500, 4, sample_rate=0.1, sample_seed=1)
    one, two = drawn(first), drawn(first)
    assert one != two and one == drawn(again) and one != drawn(other)
    resumed = ChunkedHead("arcface", 500, 4, sample_rate=0.1)
    resumed.load_state_dict(again.state_dict())
    assert drawn(resumed) == two


def test_accumulation_adds_sparse_gradients() -> None:
    head = ChunkedHead("arcface", 100, 4, sample_rate=1.0).double()
    dense = ChunkedHead("arcface", 100, 4).double()
    dense.load_state_dict({"weight": head.weight.detach()})
    embeddings = torch.randn(2, 3, 4, dtype=torch.float64)
    for part in embeddings:
        for each in (head, dense):
            each(part, torch.tensor([7, 7, 99])).backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad.to_dense(), dense.weight.grad)


def train_head(in_backward: bool, loss: str) -> torch.Tensor:
    torch.manual_seed(0)
    head = ChunkedHead(loss, 30, 4, block_size=7, memory_budget=0).double()
    if in_backward:
        head.update_in_backward(momentum=0.9, weight_decay=0.01)
        head.learning_rate = 0.3
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, **SETTINGS) if trained else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        embeddings = 4 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
        head(embeddings.requires_grad_(), torch.tensor([3, 29, 3, 0, 8])).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    return head.weight.detach()


@pytest.mark.parametrize("loss", ["curricularface", "adaface", "softmax"])
def test_an_update_inside_the_backward_pass_is_sgds(loss: str) -> None:
    torch.testing.assert_close(train_head(True, loss), train_head(False, loss), rtol=1e-10, atol=0)


def test_updating_inside_the_backward_pass_excludes_sampling() -> None:
    with pytest.raises(ValueError, match=r"sample_rate = 0.5 gives a sparse gradient"):
        ChunkedHead("arcface", 30, 4, sample_rate=0.5).update_in_backward()


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="lr = -1 must be at least 0"):
        RowwiseSGD([torch.nn.Parameter(torch.ones(1))], lr=-1)
    with pytest.raises(ValueError, match=r"momentum = 1\.0 must be below 1"):
        RowwiseSGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=1.0)


@pytest.mark.parametrize(
    ("build", "works"),
    [
        (lambda given: torch.optim.AdamW(given, lr=0.1), False),
        (lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9, weight_decay=5e-4), False),
        (lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9), True),
        (lambda given: torch.optim.SparseAdam(given, lr=0.1), True),
        (lambda given: RowwiseSGD(given, lr=0.1, momentum=0.9, weight_decay=5e-4), True),
    ],
)
def test_other_optimizers_name_this_one(build: Any, works: bool) -> None:
    head = ChunkedHead("arcface", 50, 4, sample_rate=0.3)
    optimizer = build(list(head.parameters()))
    head(torch.randn(3, 4), torch.arange(3)).backward()
    if works:
        optimizer.step()
        return
    with pytest.raises(ValueError, match=r"sample_rate; pass .* to margrave\.heads\.RowwiseSGD"):
        optimizer.step()


def test_dense_heads_take_any_optimizer() -> None:
    head = ChunkedHead("arcface", 50, 4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)
    head(torch.randn(3, 4), torch.arange(3)).backward()
    optimizer.step()
