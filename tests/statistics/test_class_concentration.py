"""KappaFace's class statistics, and the pitfalls of its published code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from margrave.heads import DenseHead
from margrave.losses import create
from margrave.statistics.class_concentration import concentration_of, concentration_weight

CLASSES, FEATURES = 5, 16


def head(estimator: str = "online", **sizes: int) -> DenseHead:
    torch.manual_seed(0)
    loss = create({"kind": "kappaface", "estimator": estimator})
    return DenseHead(loss, CLASSES, FEATURES, **sizes)


def margin_weight(head: DenseHead) -> torch.Tensor:
    return head.statistics["class_concentration"].margin_weight


def test_first_epoch_has_the_full_margin() -> None:
    assert margin_weight(head()).eq(1).all()


def test_a_scattered_class_gets_a_larger_margin() -> None:
    trained = head()
    center = functional.normalize(torch.randn(2, FEATURES))
    labels = torch.arange(2).repeat_interleave(50)
    spread = torch.where(labels == 0, 0.01, 1.0)[:, None]
    trained(center[labels] + spread * torch.randn(100, FEATURES), labels)
    trained.end_epoch()
    tight, scattered = margin_weight(trained)[:2]
    assert scattered > tight


def test_equal_concentrations_are_neutral_instead_of_nan() -> None:
    weight = concentration_weight(torch.full((4,), 3.0), torch.ones(4, dtype=torch.bool), 0.4)
    assert weight.eq(0.5).all()


def test_repeated_samples_do_not_make_the_concentration_negative() -> None:
    """Counted from the data set, five visits to three images would give r̄ > 1 and κ < 0."""
    trained = head()
    one = torch.randn(1, FEATURES)
    trained(one.expand(5, -1), torch.zeros(5, dtype=torch.int64))
    trained.end_epoch()
    assert trained.statistics["class_concentration"].concentration[0] > 0
    assert torch.isfinite(margin_weight(trained)).all()


def test_single_images_stay_out_of_the_standardisation() -> None:
    trained = head()
    labels = torch.tensor([0] * 10 + [1] * 10 + [2])
    embeddings = torch.randn(21, FEATURES) + torch.where(labels == 0, 3.0, 1.0)[:, None]
    trained(embeddings, labels)
    trained.end_epoch()
    assert torch.isfinite(margin_weight(trained)).all()
    assert margin_weight(trained)[2] == pytest.approx(0.7 * 0.5 + 0.3 * 0.9778, abs=1e-3)


def test_unseen_classes_keep_their_weight() -> None:
    trained = head()
    trained(torch.randn(8, FEATURES), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    trained.end_epoch()
    assert margin_weight(trained)[2:].eq(1).all()
    assert not margin_weight(trained)[:2].eq(1).any()


def test_concentration_is_the_published_estimate() -> None:
    features = functional.normalize(torch.randn(30, FEATURES, dtype=torch.float64) + 0.5)
    length = features.mean(0).norm()
    expected = length * (FEATURES - length**2) / (1 - length**2)
    result = concentration_of(features.sum(0)[None], torch.tensor([30]))
    torch.testing.assert_close(result[0], expected)


def test_memory_buffer_remembers_the_last_look_at_each_image() -> None:
    trained = head("memory_buffer", num_samples=6)
    indices = torch.arange(6)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    embeddings = torch.randn(6, FEATURES)
    trained(embeddings, labels, sample_indices=indices)
    memory = trained.statistics["class_concentration"].memory
    torch.testing.assert_close(memory, functional.normalize(embeddings))
    trained.end_epoch()
    assert margin_weight(trained)[2:].eq(1).all()


def test_memory_buffer_counts_no_image_whose_features_are_not_finite() -> None:
    trained = head("memory_buffer", num_samples=4)
    embeddings = torch.zeros(3, FEATURES)
    embeddings[:, 0] = torch.tensor([1.0, 1.0, torch.nan])
    trained(embeddings, torch.zeros(3, dtype=torch.int64), sample_indices=torch.arange(3))
    statistic = trained.statistics["class_concentration"]
    assert statistic.memory_label.tolist() == [0, 0, -1, -1]
    feature_sum, count = statistic._sums()  # pyright: ignore[reportCallIssue]
    assert feature_sum[0, 0] == 2 and count.tolist() == [2, 0, 0, 0, 0]


def test_memory_buffer_keeps_the_last_of_an_images_occurrences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = head("memory_buffer", num_samples=4)
    statistic = trained.statistics["class_concentration"]
    written = 0
    copy = torch.Tensor.index_copy_

    def copy_checked(
        self: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        nonlocal written
        for image in index.unique():
            # The order in which rows of one image are written is undefined.
            assert len(source[index == image].unique(dim=0)) == 1
        written += 1
        return copy(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy_", copy_checked)
    embeddings = torch.randn(5, FEATURES)
    images, labels = torch.tensor([2, 0, 2, 9, 0]), torch.tensor([1, 0, 3, 4, 2])
    trained(embeddings, labels, sample_indices=images)
    assert written == 2
    expected = functional.normalize(embeddings[[4, 2]])
    torch.testing.assert_close(statistic.memory[[0, 2]], expected)
    assert statistic.memory_label.tolist() == [2, -1, 3, -1]


@pytest.mark.parametrize(
    ("estimator", "sizes", "message"),
    [
        ("momentum_encoder", {}, "requires momentum_embeddings in every training call"),
        ("memory_buffer", {"num_samples": 4}, "requires sample_indices in every training call"),
    ],
)
def test_what_an_estimator_needs_is_asked_for(estimator: str, sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(estimator, **sizes)(torch.randn(4, FEATURES), torch.zeros(4, dtype=torch.int64))


def test_memory_buffer_asks_for_the_number_of_samples() -> None:
    with pytest.raises(ValueError, match="give the head num_samples"):
        head("memory_buffer")


def test_a_head_says_what_it_reads() -> None:
    assert head("online").reads == frozenset()
    assert head("momentum_encoder").reads == {"momentum_embeddings"}
    assert head("memory_buffer", num_samples=3).reads == {"sample_indices"}
