"""Two models are compared on the same pairs, and on no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from margrave.evaluation import PairScores, Result
from margrave.protocols import compare_results


def result(seed: int, digest: str = "a", impostors: int = 60) -> Result:
    generator = np.random.default_rng(seed)
    same = np.arange(60 + impostors) < 60
    distances = np.where(same, 1.0, 2.0) + generator.normal(0, 0.5, len(same))
    people = np.stack([np.arange(len(same)), np.arange(len(same)) + (~same)], axis=1)
    scores = PairScores(
        distances=tuple(distances.clip(0, 4).tolist()),
        same=tuple(same.tolist()),
        folds=2,
        identities=tuple(map(tuple, people.tolist())),
        images_digest=digest,
    )
    return Result(protocol="pairs", name="set", figures=(), scores=scores)


def test_pairs_of_other_images_are_refused() -> None:
    assert compare_results(result(0), result(1), resamples=20).figures
    with pytest.raises(
        ValueError,
        match=r"120 in the second \('set'\), which are of different images; .* the same seed",
    ):
        compare_results(result(0), result(1, digest="b"), resamples=20)
    # Results of earlier versions have no digest, but most have identities.
    older = result(1, digest="")
    assert older.scores is not None and older.scores.identities is not None
    assert compare_results(result(0), older, resamples=20).figures
    others = replace(older.scores, identities=older.scores.identities[::-1])
    with pytest.raises(ValueError, match="of different images"):
        compare_results(result(0), replace(older, scores=others), resamples=20)
    with pytest.raises(
        ValueError, match=r"120 in the first .* and 130 in the second .*; evaluate both"
    ):
        compare_results(result(0), result(1, impostors=70), resamples=20)


def test_without_an_allowed_false_accept_there_is_no_p_value() -> None:
    compared = compare_results(result(0), result(1), far_targets=[0.1, 0.01], resamples=20)
    some, none = (compared.figure("difference in TAR", FAR=far) for far in (0.1, 0.01))
    assert some.details["p_value"] is not None and some.too_few
    assert none.details["p_value"] is None and none.details["more_pairs"] is None and none.too_few
    assert none.value is not None and none.interval is not None
