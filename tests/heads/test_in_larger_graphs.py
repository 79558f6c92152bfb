"""Heads that are compiled with what holds them, checkpointed, or made on no device."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from margrave.heads import ChunkedHead, DenseHead, Head
from margrave.losses import LOSSES

CLASSES, FEATURES, BATCH = 60, 8, 6
HEADS: dict[str, tuple[type[Head], dict[str, Any]]] = {
    "dense": (DenseHead, {}),
    "chunked": (ChunkedHead, {"block_size": 25}),
    "sampled": (ChunkedHead, {"sample_rate": 0.4}),
}


def build(which: str, loss: str = "adaface") -> Head:
    torch.manual_seed(0)
    kind, settings = HEADS[which]
    spec = {"kind": loss} | ({"estimator": "online"} if loss == "kappaface" else {})
    return kind(spec, CLASSES, FEATURES, **settings)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return 5 * torch.randn(BATCH, FEATURES, generator=generator), labels


def outcome(head: Head, run: Any) -> dict[str, Tensor]:
    embeddings, labels = batch()
    embeddings.requires_grad_()
    loss = run(embeddings, labels)
    loss.backward()
    assert embeddings.grad is not None and head.weight.grad is not None
    result = {"loss": loss.detach(), "embeddings": embeddings.grad}
    result["weight"] = head.weight.grad.to_dense()
    return result | {name: buffer.clone() for name, buffer in head.named_buffers()}


@pytest.mark.parametrize("which", list(HEADS))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_head_is_the_plain_one(which: str, loss: str, reentrant: bool) -> None:
    plain, repeated = build(which, loss), build(which, loss)
    expected = outcome(plain, plain)
    result = outcome(repeated, lambda *given: checkpoint(repeated, *given, use_reentrant=reentrant))
    torch.testing.assert_close(result, expected)


def test_steps_in_between_change_nothing() -> None:
    """A repeated call reads what the first one read, not what the statistics are by then."""
    plain, repeated = build("sampled", "curricularface"), build("sampled", "curricularface")
    gradients = []
    for head, wraps in ((plain, False), (repeated, True)):
        embeddings, labels = batch()
        embeddings.requires_grad_()
        call = (lambda *given: checkpoint(head, *given, use_reentrant=False)) if wraps else head  # noqa: B023
        first = call(embeddings, labels)
        second = head(embeddings.detach() + 1, labels.clone())
        (first + second).backward()
        gradients.append(embeddings.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_labels_made_within_the_checkpoint_are_refused() -> None:
    head = build("sampled")
    embeddings, labels = batch()
    embeddings.requires_grad_()
    loss = checkpoint(lambda x, y: head(x, y.clone()), embeddings, labels, use_reentrant=False)
    assert isinstance(loss, Tensor)
    with pytest.raises(ValueError, match="create the labels outside the checkpointed function"):
        loss.backward()


class Network(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(FEATURES, FEATURES), head

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.layer(images), labels)


@pytest.mark.parametrize("which", list(HEADS))
def test_a_compiled_head_is_the_plain_one(which: str) -> None:
    plain, compiled = build(which), build(which)
    expected = outcome(plain, plain)
    result = outcome(compiled, torch.compile(compiled, backend="aot_eager"))
    torch.testing.assert_close(result, expected)


def test_a_compiled_network_that_holds_a_head() -> None:
    torch.manual_seed(0)
    plain = Network(build("sampled"))
    compiled = copy.deepcopy(plain)
    expected = outcome(plain.head, plain)
    result = outcome(compiled.head, torch.compile(compiled, backend="aot_eager"))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", list(HEADS))
def test_a_head_made_on_no_device_is_filled_later(which: str) -> None:
    plain = build(which)
    with torch.device("meta"):
        head = build(which)
    assert head.weight.is_meta
    head.to_empty(device="cpu")
    head.load_state_dict(plain.state_dict())
    torch.testing.assert_close(head(*batch()), plain(*batch()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels(dtype: torch.dtype) -> None:
    embeddings, labels = batch()
    head = build("chunked").eval()
    assert torch.equal(head(embeddings, labels.to(dtype)), head(embeddings, labels))
    with pytest.raises(ValueError, match=r"outside \[0, 60\)"):
        head(embeddings, (labels + CLASSES).to(dtype))


def test_heads_do_not_import_the_compiler() -> None:
    code = "import sys, margrave.heads; print('torch._dynamo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
