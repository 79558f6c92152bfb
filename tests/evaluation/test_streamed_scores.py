from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margrave.evaluation import streamed_accept_rates, streamed_scores, tar_at_far

NUMBERS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: len({same for _, same in pairs}) == 2
    ),
    st.sampled_from([np.float32, np.float64]),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=4),
)
def test_equals_the_sorted_rule(pairs: list, dtype: type, targets: list[float]) -> None:
    scores = np.array([score for score, _ in pairs], dtype)
    same = np.array([same for _, same in pairs])
    before, streamed_scores.SCORES_PER_READ = streamed_scores.SCORES_PER_READ, 7
    try:
        result = streamed_accept_rates(scores, same, targets)
    finally:
        streamed_scores.SCORES_PER_READ = before
    assert [(rate.tar, rate.far, rate.threshold) for rate in result] == [
        (rate.tar, rate.far, rate.threshold) for rate in tar_at_far(scores, same, targets)
    ]


def test_bad_scores_are_refused() -> None:
    same = np.array([True, False])
    with pytest.raises(ValueError, match=r"scores\[1\] is not finite"):
        streamed_accept_rates(np.array([0, np.nan]), same, [0.1])
    with pytest.raises(ValueError, match="float16"):
        streamed_accept_rates(np.zeros(2, np.float16), same, [0.1])
    with pytest.raises(ValueError, match="0 genuine"):
        streamed_accept_rates(np.zeros(2), ~same & same, [0.1])
