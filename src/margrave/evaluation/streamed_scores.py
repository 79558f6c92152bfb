"""Exact TAR at FAR for more scores than fit into memory.

After an adjustment for negative numbers, floating-point numbers sort like the integers that their
bits encode. The threshold is therefore determined sixteen bits (one digit) at a time. Each pass
reads all scores, selects those whose leading bits equal the bits of the threshold found so far, and
counts the selected scores by their next digit. float32 takes two passes, float64 four.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.evaluation.accept_rates import AcceptRate, false_accepts_allowed
from margrave.files import read_rows

SCORES_PER_READ = 1 << 21
_DIGIT_BITS = 16
_DIGIT_VALUES = 1 << _DIGIT_BITS


def streamed_accept_rates(
    scores: np.ndarray, same: np.ndarray, far_targets: Sequence[float]
) -> tuple[AcceptRate, ...]:
    """For each FAR target, the TAR at the lowest threshold whose FAR does not exceed the target.

    The result is that of ``accept_rates``, without intervals.

    Args:
        scores: (P,) float32 or float64 similarities, usually memory-mapped.
        same: (P,) bool, whether each pair is genuine, usually memory-mapped.
        far_targets: FAR targets, each in (0, 1).

    Raises:
        ValueError: the dtypes are wrong, the lengths differ, a score is not finite, genuine or
            impostor pairs are missing, or a target is not in (0, 1).

    >>> scores, same = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    >>> streamed_accept_rates(scores, same, [0.5])[0].tar
    1.0
    """
    if scores.dtype not in (np.float32, np.float64) or same.dtype != bool:
        raise ValueError(
            "scores must be float32 or float64, and same must be bool, got "
            f"{scores.dtype} and {same.dtype}"
        )
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"scores has shape {scores.shape} and same {same.shape}; both must be one-dimensional "
            "and of equal length"
        )
    passes = 8 * scores.dtype.itemsize // _DIGIT_BITS
    searches: list[_ThresholdSearch] = []
    impostors = genuine = 0
    for pass_index in range(passes):
        # In the first pass, no bits are known yet, and every score matches the empty prefix 0.
        prefixes = [0] if pass_index == 0 else sorted({search.prefix for search in searches})
        counts = _count_digits(scores, same, pass_index, passes, prefixes)
        if pass_index == 0:
            impostors, genuine = (int(count) for count in counts[0].sum(1))
            if not impostors or not genuine:
                raise ValueError(
                    f"got {genuine} genuine and {impostors} impostor pairs; TAR at FAR needs both"
                )
            searches = [
                _ThresholdSearch(false_accepts_allowed(far, impostors)) for far in far_targets
            ]
        for search in searches:
            search.descend(counts[prefixes.index(search.prefix)])
    return tuple(
        AcceptRate(
            far_target=float(far),
            far=search.above[0] / impostors,
            tar=search.above[1] / genuine,
            threshold=_float_from_bits(search.prefix, scores.dtype),
            too_few_impostors=false_accepts_allowed(far, impostors) < 1,
        )
        for far, search in zip(far_targets, searches, strict=True)
    )


class _ThresholdSearch:
    """Finds a threshold, the (``allowed`` + 1)-th largest impostor score, digit by digit.

    Only scores strictly above the threshold are accepted, so there are at most ``allowed`` false
    accepts.

    Args:
        allowed: number of allowed false accepts.

    Attributes:
        prefix: the leading bits of the threshold that are known so far.
        above: the number of impostor scores, then of genuine scores, known to exceed the threshold.
    """

    def __init__(self, allowed: int) -> None:
        self.prefix = 0
        self.above = [0, 0]
        # Allowed false accepts minus the impostor scores counted in `above`.
        self._remaining = allowed

    def descend(self, counts: np.ndarray) -> None:
        """Append the next digit to ``prefix``.

        Args:
            counts: (2, 65536) number of impostor, then of genuine scores that start with
                ``prefix``, by their next digit.
        """
        # Counted from the top, the number of impostor scores first exceeds `_remaining` at the
        # threshold's digit.
        impostors_from_top = np.cumsum(counts[0, ::-1])
        digits_above = int(np.searchsorted(impostors_from_top, self._remaining, side="right"))
        digit = _DIGIT_VALUES - 1 - digits_above
        above = counts[:, digit + 1 :].sum(1)
        self.above = [self.above[0] + int(above[0]), self.above[1] + int(above[1])]
        self._remaining -= int(above[0])
        self.prefix = self.prefix << _DIGIT_BITS | digit


def _count_digits(
    scores: np.ndarray, same: np.ndarray, pass_index: int, passes: int, prefixes: Sequence[int]
) -> np.ndarray:
    """(prefixes, 2, 65536) the number of scores by prefix, class and next digit.

    The class is 0 for impostor and 1 for genuine scores.

    Args:
        scores: (P,) scores.
        same: (P,) bool, whether each pair is genuine.
        pass_index: the index of the current pass, from 0.
        passes: the number of passes.
        prefixes: values of the leading bits; scores that start with none of them are not counted.
    """
    counts = np.zeros((len(prefixes), 2, _DIGIT_VALUES), np.int64)
    for start in range(0, len(scores), SCORES_PER_READ):
        stop = start + SCORES_PER_READ
        block = read_rows(scores, start, stop)
        if pass_index == 0 and not np.isfinite(block).all():
            bad = start + int(np.flatnonzero(~np.isfinite(block))[0])
            raise ValueError(f"scores[{bad}] is not finite; check for NaN or zero embeddings")
        keys = _ordered_bits(block)
        digits = (keys >> (_DIGIT_BITS * (passes - 1 - pass_index))).astype(np.int64) & (
            _DIGIT_VALUES - 1
        )
        # The second half of the bins counts genuine pairs.
        digits += same[start:stop] * _DIGIT_VALUES
        if pass_index == 0:
            counts[0] += np.bincount(digits, minlength=2 * _DIGIT_VALUES).reshape(2, _DIGIT_VALUES)
            continue
        leading = keys >> (_DIGIT_BITS * (passes - pass_index))
        for index, prefix in enumerate(prefixes):
            matching = digits[leading == prefix]
            counts[index] += np.bincount(matching, minlength=2 * _DIGIT_VALUES).reshape(
                2, _DIGIT_VALUES
            )
    return counts


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """The bits of floating-point numbers as unsigned integers that sort like the numbers."""
    unsigned = np.uint32 if values.dtype == np.float32 else np.uint64
    # Adding zero turns −0 into +0, so that both have the same bits.
    bits = (values + values.dtype.type(0)).view(unsigned)
    sign_bit = unsigned(1) << unsigned(8 * values.dtype.itemsize - 1)
    # Inverted bits sort negative numbers by descending magnitude. The sign bit becomes 0 for
    # negative and 1 for positive numbers, so positive numbers sort above negative ones.
    return np.where(bits & sign_bit, ~bits, bits | sign_bit)


def _float_from_bits(key: int, dtype: np.dtype) -> float:
    """The floating-point number whose ``_ordered_bits`` are ``key``."""
    size = 8 * dtype.itemsize
    sign_bit = 1 << (size - 1)
    bits = key & ~sign_bit if key & sign_bit else ~key & ((1 << size) - 1)
    return float(np.array(bits, np.uint32 if size == 32 else np.uint64).view(dtype))
