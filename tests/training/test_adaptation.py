"""What a loss adapts, as the metrics file records it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from margrave.heads import HEADS
from margrave.losses import LOSSES
from margrave.training.adaptation import adaptation_record, measure_adaptation

CLASSES, FEATURES, SAMPLES = 30, 8, 16


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("head_kind", ["dense", "chunked"])
def test_margins_and_hard_negatives_are_those_of_the_loss(kind: str, head_kind: str) -> None:
    torch.manual_seed(0)
    head = HEADS.get(head_kind)({"kind": kind}, CLASSES, FEATURES).double()
    embeddings = torch.randn(SAMPLES, FEATURES, dtype=torch.float64) * 5
    labels = torch.arange(SAMPLES)
    head.train()
    head(embeddings, labels)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    measured = measure_adaptation(head, embeddings, labels)
    assert head.training
    for name, value in head.state_dict().items():
        assert torch.equal(value, state[name]), name

    head.eval()
    batch = head.prepare(embeddings, labels)
    products = embeddings @ head.weight.T
    if head.bias is None:
        lengths = embeddings.norm(dim=1)[:, None] * head.weight.norm(dim=1)
        products = products / lengths
    else:
        products = products + head.bias
    target = products[torch.arange(SAMPLES), labels]
    negative = torch.ones_like(products, dtype=torch.bool)
    negative[torch.arange(SAMPLES), labels] = False
    hard = head.loss.hard_negatives(products, target, batch.context) & negative
    change = head.loss.negatives(products, target, batch.context) - products
    margin = target - head.loss.modify_target(target, batch.context)
    torch.testing.assert_close(measured["margin"], margin.detach())
    torch.testing.assert_close(measured["target_cosine"], target.detach())
    torch.testing.assert_close(measured["hard_share"], hard.sum() / negative.sum())
    expected = change[hard].mean() if hard.any() else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(measured["hard_change"], expected.detach())


def test_a_record_is_short_json_with_the_classes_of_a_loss_that_weights_them() -> None:
    torch.manual_seed(0)
    head = HEADS.get("chunked")("kappaface", 2000, FEATURES)
    head.train()
    embeddings, labels = torch.randn(600, FEATURES), torch.arange(600) % 300
    head(embeddings, labels)
    measured = measure_adaptation(head, embeddings, labels)
    head.end_epoch()
    record = adaptation_record(measured, head, np.arange(2000))
    text = json.dumps(record, allow_nan=False)
    assert len(text) < 40_000
    assert len(record["samples"]["margin"]) == 256
    classes = record["classes"]
    assert len(classes["class"]) == 512 and classes["class"][-1] == 1999
    assert classes["images"] == classes["class"]
    shown = head.class_values()["margin_weight"][classes["class"]].tolist()
    assert classes["margin_weight"] == pytest.approx(shown, rel=1e-4)
    assert record["margin"][0] <= record["margin"][2] <= record["margin"][4]


def test_values_that_are_not_finite_are_left_out() -> None:
    head = HEADS.get("dense")("arcface", CLASSES, FEATURES)
    measured = {
        "margin": torch.tensor([0.1, float("nan")]),
        "feature_norm": torch.tensor([float("inf"), float("inf")]),
        "target_cosine": torch.tensor([0.5, 0.6]),
        "hard_share": torch.tensor(0.0),
        "hard_change": torch.tensor(0.0),
    }
    record = adaptation_record(measured, head, np.zeros(CLASSES, int))
    json.dumps(record, allow_nan=False)
    assert record["margin"] == [0.1] * 5 and "feature_norm" not in record
    assert record["samples"]["margin"] == [0.1, None]
