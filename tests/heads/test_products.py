"""Products in lower precision: within twice the error of the dense head under autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from margrave import hardware
from margrave.heads import ChunkedHead, DenseHead, Head
from margrave.heads.batch import Batch
from margrave.heads.embeddings import unit_and_norm
from margrave.heads.products import choose_products, multiply_wide
from margrave.losses import LOSSES

CLASSES, FEATURES, BATCH, DRAWS = 2000, 64, 512, 5


class AutocastHead(DenseHead):
    """The dense head as others run it: its product under autocast, the rest in float32."""

    def cross_entropy(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.unit.device.type, torch.bfloat16):
            if self.bias is None:
                products = batch.unit @ unit_and_norm(self.weight)[0].T
            else:
                products = functional.linear(batch.norm[:, None] * batch.unit, self.weight)
        products = products.float() if self.bias is None else products.float() + self.bias
        cosine = self.local_target_products(batch.unit, batch.norm, batch.labels)
        target = self.loss.modify_target(cosine, batch.context)
        negatives = self.loss.negatives(products, batch.target_cosine, batch.context)
        logits = self.loss.scale * negatives.scatter(1, batch.labels[:, None], target[:, None])
        return functional.cross_entropy(logits, batch.labels, reduction="none")


def outcome(head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss and both gradients; statistics rest, so that all heads read the same ones."""
    embeddings = embeddings.clone().requires_grad_()
    loss = head.eval()(embeddings, labels, reduction="none")
    loss.mean().backward()
    assert embeddings.grad is not None and head.weight.grad is not None
    return {"loss": loss.detach(), "features": embeddings.grad, "weight": head.weight.grad}


def errors(kind: str, compiled: bool, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """Relative errors of the chunked head in bfloat16 and of the dense head under autocast.

    Over several draws: losses that re-weight hard negatives jump where a cosine passes the
    threshold, and which of the two heads rounds one across it is chance.
    """
    settings = {"block_size": 700, "compiled": compiled, "products": "bfloat16"}
    squares: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        labels = torch.randint(CLASSES, (BATCH,), device=device)
        heads: dict[str, Head] = {
            "float64": DenseHead(kind, CLASSES, FEATURES),
            "chunked": ChunkedHead(kind, CLASSES, FEATURES, **settings),
            "autocast": AutocastHead(kind, CLASSES, FEATURES),
        }
        for head in heads.values():
            head.load_state_dict(heads["float64"].state_dict())
            head.to(device)
        # Near enough to their targets that losses are neither all margin nor all zero.
        noise = 0.008 * torch.randn(BATCH, FEATURES, device=device)
        embeddings = 8 * functional.normalize(heads["chunked"].weight[labels].detach() + noise)
        truth = outcome(heads.pop("float64").double(), embeddings.double(), labels)
        results = [outcome(head, embeddings, labels) for head in heads.values()]
        for part, value in truth.items():
            parts = [*(result[part].double() - value for result in results), value]
            sums = squares.setdefault(part, [0.0] * len(parts))
            squares[part] = [
                total + float(error.square().sum())
                for total, error in zip(sums, parts, strict=True)
            ]
    return {
        part: (math.sqrt(own / size), math.sqrt(reference / size))
        for part, (own, reference, size) in squares.items()
    }


@pytest.mark.parametrize("kind", list(LOSSES))
def test_error_is_at_most_twice_that_of_autocast(kind: str) -> None:
    for part, (own, reference) in errors(kind, compiled=False).items():
        assert own <= 2 * reference, part
        assert own > 0, part


def test_the_compiled_block_errs_no_more() -> None:
    for part, (own, reference) in errors("curricularface", compiled=True).items():
        assert own <= 2 * reference, part


@pytest.mark.parametrize("settings", [{}, {"sample_rate": 0.5}, {"memory_budget": 0.0}])
def test_weight_gradient_and_momentum_stay_float32(settings: dict) -> None:
    head = ChunkedHead("adaface", 100, 8, block_size=30, products="bfloat16", **settings)
    head(torch.randn(4, 8, requires_grad=True), torch.arange(4)).backward()
    assert head.weight.dtype == head.weight.grad.dtype == torch.float32
    assert all(value.dtype != torch.bfloat16 for value in head.state_dict().values())


def test_updates_inside_the_backward_pass() -> None:
    torch.manual_seed(0)
    head = ChunkedHead("arcface", 100, 8, block_size=30, products="bfloat16")
    head.update_in_backward()
    head.learning_rate = 0.1
    before = head.weight.clone()
    head(torch.randn(4, 8, requires_grad=True), torch.arange(4)).backward()
    assert head.weight.dtype == head.weight_momentum.dtype == torch.float32
    assert (head.weight != before).any(dim=1).all()


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_only_where_it_is_native(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("margrave.heads.products.has_native_bfloat16", lambda device: native)
    weight = torch.zeros(4, 2)
    assert choose_products("auto", weight, 2**23) == ("bfloat16" if native else "float32")
    assert choose_products("auto", weight, 2**10) == "float32"
    assert choose_products("auto", weight.double(), 2**23) == "float32"
    assert choose_products("bfloat16", weight, 1) == "bfloat16"


def test_wrong_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="choices: auto, float32, tf32, bfloat16"):
        ChunkedHead("arcface", 10, 4, products="float16")  # pyright: ignore[reportArgumentType]
    head = ChunkedHead("arcface", 10, 4, block_size=3, products="bfloat16").double()
    with pytest.raises(ValueError, match="requires a float32 weight"):
        head(torch.randn(2, 4), torch.arange(2))


def test_tf32_changes_nothing_on_a_processor() -> None:
    heads = [ChunkedHead("arcface", 10, 4, block_size=3, products=p) for p in ("tf32", "float32")]
    heads[1].load_state_dict(heads[0].state_dict())
    embeddings = torch.randn(2, 4)
    assert torch.equal(*(head(embeddings, torch.arange(2)) for head in heads))


def test_wide_products_go_where_they_are_asked_to() -> None:
    left, right = torch.randn(3, 5).bfloat16(), torch.randn(5, 2).bfloat16()
    expected = left.double() @ right.double()
    for out in (None, torch.empty(3, 2), torch.empty(3, 2, dtype=torch.bfloat16)):
        torch.testing.assert_close(
            multiply_wide(left, right, out).double(), expected, rtol=1e-2, atol=1e-2
        )


def test_a_processor_that_emulates_bfloat16_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.has_native_bfloat16.cache_clear()
    monkeypatch.setattr(hardware, "is_faster", lambda *runs, rounds: False)
    assert not hardware.has_native_bfloat16("cpu")
    hardware.has_native_bfloat16.cache_clear()
