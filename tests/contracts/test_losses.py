"""What holds for every registered loss."""

from __future__ import annotations

import pytest
import torch

from margrave.heads import DenseHead
from margrave.losses import LOSSES, Context, create

CLASSES, FEATURES, BATCH = 12, 8, 6

pytestmark = pytest.mark.parametrize("kind", list(LOSSES))


def context(batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Context:
    """Every statistic at a plausible value."""
    generator = torch.Generator().manual_seed(3)
    return Context(
        feature_norm=10 + torch.randn(batch, generator=generator, dtype=dtype),
        feature_norm_mean=torch.tensor(10.0, dtype=dtype),
        feature_norm_std=torch.tensor(2.0, dtype=dtype),
        mean_target_cosine=torch.tensor(0.3, dtype=dtype),
        margin_weight=torch.rand(batch, generator=generator, dtype=dtype),
        iteration=torch.tensor(20000.0, dtype=dtype),
        margin_noise=torch.randn(batch, generator=generator, dtype=dtype),
        adaptive_scale=torch.tensor(9.0, dtype=dtype),
    )


def head_for(kind: str, dtype: torch.dtype = torch.float64, **sizes: int) -> DenseHead:
    torch.manual_seed(0)
    sizes = {"num_classes": CLASSES, "embedding_size": FEATURES} | sizes
    return DenseHead(kind, **sizes).to(dtype)


def batch_of(size: int = BATCH, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    embeddings = 5 * torch.randn(size, FEATURES, generator=generator, dtype=dtype)
    return embeddings, torch.randint(CLASSES, (size,), generator=generator)


def test_documented(kind: str) -> None:
    assert "Source:" in (LOSSES.get(kind).__doc__ or "")
    assert LOSSES.get(kind).__module__.startswith("margrave.losses.")


def test_default_settings_round_trip(kind: str) -> None:
    loss = create({"kind": kind})
    assert create({"kind": kind, **loss.settings()}) == loss


def test_unknown_setting_suggests(kind: str) -> None:
    with pytest.raises(ValueError, match=r"no setting 'scael'; did you mean 'scale'"):
        create({"kind": kind, "scael": 3})


def test_scale_must_be_positive(kind: str) -> None:
    with pytest.raises(ValueError, match=r"scale = -1.0 must be above 0"):
        create({"kind": kind, "scale": -1.0})


def test_negatives_are_elementwise_over_classes(kind: str) -> None:
    loss, values = create({"kind": kind}), context()
    cosines = torch.rand(BATCH, CLASSES, dtype=torch.float64) * 2 - 1
    target = torch.linspace(-0.9, 0.9, BATCH, dtype=torch.float64)
    full = loss.negatives(cosines, target, values)
    for part in (slice(0, 1), slice(1, 5), slice(5, None)):
        assert torch.equal(loss.negatives(cosines[:, part], target, values), full[:, part])
    hard = loss.hard_negatives(cosines, target, values)
    if kind != "adaface":  # whose clamp touches no cosine below 1 − ε
        assert torch.equal(hard, full != cosines) or not hard.any()


def test_target_cosine_only_decides(kind: str) -> None:
    loss = create({"kind": kind})
    target = torch.linspace(-0.9, 0.9, BATCH, dtype=torch.float64, requires_grad=True)
    cosines = torch.rand(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    total = loss.negatives(cosines, target, context()).sum()
    assert torch.autograd.grad(total, target, allow_unused=True)[0] is None


def test_gradients_are_exact(kind: str) -> None:
    head = head_for(kind).eval()
    embeddings, labels = batch_of()
    for statistic in head.statistics.values():
        for name, buffer in statistic.named_buffers():
            if name in ("mean", "deviation"):
                buffer.fill_(0.3 if "target" in type(statistic).__name__.lower() else 12.0)

    length = embeddings.norm(dim=1, keepdim=True)

    def loss_of(embeddings: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # At a fixed norm: AdaFace reads the norm without gradient.
        embeddings = embeddings / embeddings.norm(dim=1, keepdim=True) * length
        return torch.func.functional_call(head, {"weight": weight}, (embeddings, labels))

    weight = head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (embeddings.requires_grad_(), weight), atol=1e-6)


def test_straight_through_changes_the_gradient_only(kind: str) -> None:
    loss, surrogate = create({"kind": kind}), create({"kind": kind, "straight_through": True})
    cosine = torch.linspace(-0.9, 0.9, BATCH, dtype=torch.float64, requires_grad=True)
    values = context()
    value = surrogate.modify_target(cosine, values)
    torch.testing.assert_close(value, loss.modify_target(cosine, values))
    expected = values["adaptive_scale"] if loss.contains_scale else 1
    assert torch.autograd.grad(value.sum(), cosine)[0].eq(expected).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", ["zero", "huge", "tiny", "aligned", "opposite", "one", "mixed_norms"]
)
def test_finite_on_finite_input(kind: str, dtype: torch.dtype, case: str) -> None:
    head = head_for(kind, torch.float64 if dtype == torch.float64 else torch.float32)
    embeddings, labels = batch_of(1 if case == "one" else BATCH)
    centers = head.weight.detach()[labels]
    embeddings = {
        "zero": embeddings * 0,
        "huge": embeddings * 1e30,
        "tiny": embeddings * 1e-30,
        "aligned": centers.double() * 50,
        "opposite": centers.double() * -50,
        "one": embeddings,
        "mixed_norms": embeddings * torch.logspace(-20, 20, BATCH, dtype=torch.float64)[:, None],
    }[case]
    embeddings = embeddings.to(dtype).requires_grad_()
    for _ in range(3):
        head.zero_grad()
        loss = head(embeddings, labels)
        embeddings.grad = None
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(embeddings.grad).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
        assert all(torch.isfinite(buffer).all() for buffer in head.buffers())
        head.end_epoch()


def test_state_dict_continues_the_same_steps(kind: str) -> None:
    head, other = head_for(kind), head_for(kind)
    embeddings, labels = batch_of()
    for _ in range(3):
        head(embeddings, labels)
    head.end_epoch()
    other.load_state_dict(head.state_dict())
    for _ in range(2):
        assert torch.equal(head(embeddings, labels), other(embeddings, labels))


def test_evaluation_mode_leaves_the_statistics(kind: str) -> None:
    head = head_for(kind).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(*batch_of())
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_per_sample_losses_average_to_the_loss(kind: str) -> None:
    head = head_for(kind).eval()
    embeddings, labels = batch_of()
    torch.testing.assert_close(
        head(embeddings, labels, reduction="none").mean(), head(embeddings, labels)
    )
    analysis = head.analyze(embeddings, labels)
    torch.testing.assert_close(analysis.loss, head(embeddings, labels, reduction="none"))
    assert not analysis.hard_negatives.gather(1, labels[:, None]).any()
    assert analysis.margin.shape == (BATCH,)


def test_bfloat16_autocast_computes_in_the_heads_precision(kind: str) -> None:
    head = head_for(kind, torch.float32).eval()
    embeddings, labels = batch_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(embeddings, labels), head(embeddings, labels))
        assert head(embeddings, labels).dtype == torch.float32
    expected = head(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(embeddings, labels), expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, CLASSES]), rf"label {CLASSES} at position 1 is outside \[0, {CLASSES}\)"),
        (torch.tensor([-1, 0]), r"label -1 at position 0"),
        (torch.tensor([0.0, 1.0]), r"dtype torch.float32"),
        (torch.tensor([0]), r"2 embeddings need integer labels of shape \(2,\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(kind: str, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_for(kind)(torch.randn(2, FEATURES), labels)


def test_embeddings_that_do_not_fit_are_named(kind: str) -> None:
    head = head_for(kind)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); this head needs \(batch, 8\)"):
        head(torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="the batch is empty"):
        head(torch.randn(0, FEATURES), torch.zeros(0, dtype=torch.int64))
