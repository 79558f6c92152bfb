"""TAR at FAR of more scores than fit into memory, exactly.

Floating-point numbers order like the whole numbers that their bits spell. The threshold is found
sixteen bits at a time: each reading of the scores counts those that share the leading bits found so
far, so that two readings settle float32 and four float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.evaluation.accept_rates import AcceptRate, false_accepts_allowed
from margrave.files import read_rows

SCORES_AT_ONCE = 1 << 21
_DIGITS = 1 << 16


def streamed_accept_rates(
    scores: np.ndarray, same: np.ndarray, far_targets: Sequence[float]
) -> tuple[AcceptRate, ...]:
    """TAR at the loosest threshold whose FAR does not exceed each target; see ``accept_rates``.

    Args:
        scores: (P,) float32 or float64, usually memory-mapped.
        same: (P,) bool, likewise.
        far_targets: each in (0, 1).

    Raises:
        ValueError: other types, differing lengths, scores that are not finite, one class only.

    >>> scores, same = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    >>> streamed_accept_rates(scores, same, [0.5])[0].tar
    1.0
    """
    if scores.dtype not in (np.float32, np.float64) or same.dtype != bool:
        raise ValueError(f"scores {scores.dtype}, same {same.dtype}; give float32 or 64, and bool")
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"scores {scores.shape} and same {same.shape} must be equally long")
    levels = scores.dtype.itemsize // 2
    searches: list[_Search] = []
    impostors = genuine = 0
    for level in range(levels):
        prefixes = [0] if level == 0 else sorted({search.prefix for search in searches})
        counts = _count(scores, same, level, levels, prefixes)
        if level == 0:
            impostors, genuine = (int(count) for count in counts[0].sum(1))
            if not impostors or not genuine:
                raise ValueError(f"{genuine} genuine and {impostors} impostor pairs; give both")
            searches = [_Search(false_accepts_allowed(far, impostors)) for far in far_targets]
        for search in searches:
            search.descend(counts[prefixes.index(search.prefix)])
    return tuple(
        AcceptRate(
            far_target=float(far),
            far=search.above[0] / impostors,
            tar=search.above[1] / genuine,
            threshold=_float_of(search.prefix, scores.dtype),
            too_few_impostors=far * impostors < 1,
        )
        for far, search in zip(far_targets, searches, strict=True)
    )


class _Search:
    """The impostor score that has exactly ``allowed`` others before it, from the largest on."""

    def __init__(self, allowed: int) -> None:
        self.prefix = 0
        self.above = [0, 0]
        self._left = allowed

    def descend(self, counts: np.ndarray) -> None:
        """Choose the next digit from (2, 65536) counts of impostor and genuine scores."""
        from_top = np.cumsum(counts[0, ::-1])
        place = int(np.searchsorted(from_top, self._left, side="right"))
        digit = _DIGITS - 1 - place
        above = counts[:, digit + 1 :].sum(1)
        self.above = [self.above[0] + int(above[0]), self.above[1] + int(above[1])]
        self._left -= int(above[0])
        self.prefix = self.prefix << 16 | digit


def _count(
    scores: np.ndarray, same: np.ndarray, level: int, levels: int, prefixes: Sequence[int]
) -> np.ndarray:
    """(prefixes, 2, 65536) how many scores with each prefix have which next sixteen bits."""
    counts = np.zeros((len(prefixes), 2, _DIGITS), np.int64)
    for start in range(0, len(scores), SCORES_AT_ONCE):
        part = slice(start, start + SCORES_AT_ONCE)
        block = read_rows(scores, start, start + SCORES_AT_ONCE)
        if level == 0 and not np.isfinite(block).all():
            bad = start + int(np.flatnonzero(~np.isfinite(block))[0])
            raise ValueError(f"score {bad} is not finite; look for NaN or zero embeddings")
        keys = _ordered_bits(block)
        digits = (keys >> (16 * (levels - 1 - level))).astype(np.int64) & (_DIGITS - 1)
        # Genuine pairs are counted behind the impostors.
        digits += same[part] * _DIGITS
        if level == 0:
            counts[0] += np.bincount(digits, minlength=2 * _DIGITS).reshape(2, _DIGITS)
            continue
        leading = keys >> (16 * (levels - level))
        for number, prefix in enumerate(prefixes):
            inside = digits[leading == prefix]
            counts[number] += np.bincount(inside, minlength=2 * _DIGITS).reshape(2, _DIGITS)
    return counts


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers that order as the floats do."""
    whole = np.uint32 if values.dtype == np.float32 else np.uint64
    # Zeros of both signs are equal.
    bits = (values + values.dtype.type(0)).view(whole)
    sign = whole(1) << whole(8 * values.dtype.itemsize - 1)
    return np.where(bits & sign, ~bits, bits | sign)


def _float_of(key: int, dtype: np.dtype) -> float:
    size = 8 * dtype.itemsize
    sign = 1 << (size - 1)
    bits = key & ~sign if key & sign else ~key & ((1 << size) - 1)
    return float(np.array(bits, np.uint32 if size == 32 else np.uint64).view(dtype))
