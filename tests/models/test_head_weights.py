"""Class centers of every project end up as (classes, features)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margrave.models import head_weight, merge_head_shards

CENTERS = torch.randn(10, 4)


@pytest.mark.parametrize(
    ("name", "written"),
    (
        ("kernel", CENTERS.T),
        ("head.kernel", CENTERS.T),
        ("W", CENTERS.T),
        ("weight", CENTERS),
        ("weight", CENTERS.T),
        ("classifier.partial_fc.weight", CENTERS),
    ),
)
def test_centers_are_found_and_turned(name, written):
    state = {"t": torch.zeros(1), name: written, "batch_mean": torch.zeros(1, 4)}
    centers = head_weight(state, embedding_size=4)
    assert torch.equal(centers, CENTERS)
    centers.zero_()
    assert written.abs().sum() > 0


def test_square_centers_are_turned_by_name():
    square = torch.randn(4, 4)
    assert torch.equal(head_weight({"kernel": square}, 4), square.T)
    assert torch.equal(head_weight({"weight": square}, 4), square)


@pytest.mark.parametrize(
    ("state", "message"),
    (
        ({"t": torch.zeros(1)}, "no class centers: .* found t"),
        ({}, "found no tensors"),
        ({"weight": torch.zeros(3, 5)}, r"weight has shape \(3, 5\)"),
        ({"kernel": torch.zeros(10, 4)}, r"kernel has shape \(10, 4\)"),
    ),
)
def test_states_without_centers_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        head_weight(state, embedding_size=4)


@given(classes=st.integers(12, 40), ranks=st.integers(1, 12), data=st.data())
def test_shards_merge_in_the_order_of_their_ranks(classes, ranks, data):
    centers = torch.arange(classes * 4.0).reshape(classes, 4)
    shards = {
        f"run3/checkpoint_gpu_{rank}.pt": {"head.weight": part}
        for rank, part in enumerate(centers.tensor_split(ranks))
    }
    shuffled = dict(data.draw(st.permutations(list(shards.items()))))
    assert torch.equal(merge_head_shards(shuffled, embedding_size=4), centers)


@pytest.mark.parametrize(
    ("sizes", "message"),
    (
        ({"gpu_0": 2, "gpu_2": 2}, r"ranks \[1\] are missing; found ranks \[0, 2\]"),
        ({"gpu_0": 2, "gpu_4": 2}, r"ranks \[1, 2, 3\] are missing; found ranks \[0, 4\]"),
        ({"gpu_1": 2}, r"ranks \[0\] are missing"),
        ({}, r"ranks \[0\] are missing"),
        ({"gpu_0": 2, "gpu_1000000000000": 2}, r"ranks \[1, 2, 3, .*\] are missing"),
        ({"gpu_0": 2, "node_0": 2}, "gpu_0 and node_0 are both rank 0"),
        ({"first": 2}, "first: no rank in the file name"),
        (
            {"gpu_0": 2, "gpu_1": 3},
            "gpu_0 holds 2 classes, expected 3: the head has 5 classes on 2 ranks",
        ),
    ),
)
def test_shards_that_do_not_fit_are_refused(sizes, message):
    shards = {name: {"weight": torch.zeros(size, 4)} for name, size in sizes.items()}
    with pytest.raises(ValueError, match=message):
        merge_head_shards(shards, embedding_size=4)
