"""Calibration of similarities as log-likelihood ratios, and the cost of such ratios (Cllr)."""

from __future__ import annotations

import numpy as np

SLOPE_PENALTY = 1e-6
"""Weight of the squared slope in the loss, for scores divided by their std. The penalty keeps the
slope finite if genuine and impostor scores do not overlap."""


def fit_calibration(genuine: np.ndarray, impostors: np.ndarray) -> tuple[float, float]:
    """Fit a log-likelihood ratio that is linear in the score, a·s + b, by logistic regression.

        minimize  mean over genuine ln(1 + e^−(a·s + b)) + mean over impostors ln(1 + e^(a·s + b))

    Genuine and impostor scores have equal total weight, which corresponds to a prior of one half.

    Args:
        genuine: (G,) scores of genuine pairs.
        impostors: (I,) scores of impostor pairs.

    Returns:
        Slope a > 0 and offset b of the natural log-likelihood ratio.

    Raises:
        ValueError: genuine or impostor scores are missing, or genuine scores are not higher than
            impostor scores.

    Source: Brümmer and du Preez, Application-independent evaluation of speaker detection (2006).

    >>> slope, offset = fit_calibration(np.array([0.5, 0.7]), np.array([0.1, 0.3, 0.6]))
    >>> bool(slope > 0 > offset)
    True
    """
    from scipy.optimize import minimize

    genuine, impostors = (np.asarray(scores, np.float64) for scores in (genuine, impostors))
    if not len(genuine) or not len(impostors):
        raise ValueError(
            f"got {len(genuine)} genuine and {len(impostors)} impostor scores; both are required"
        )
    center = (genuine.mean() + impostors.mean()) / 2
    scale = (genuine.std() + impostors.std()) / 2 or 1.0
    scaled_genuine, scaled_impostors = (genuine - center) / scale, (impostors - center) / scale

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters
        genuine_llr = slope * scaled_genuine + offset
        impostor_llr = slope * scaled_impostors + offset
        value = np.logaddexp(0, -genuine_llr).mean() + np.logaddexp(0, impostor_llr).mean()
        grad_genuine, grad_impostors = -_sigmoid(-genuine_llr), _sigmoid(impostor_llr)
        grad_slope = (grad_genuine * scaled_genuine).mean()
        grad_slope += (grad_impostors * scaled_impostors).mean()
        grad_slope += 2 * SLOPE_PENALTY * slope
        gradient = np.array([grad_slope, grad_genuine.mean() + grad_impostors.mean()])
        return value + SLOPE_PENALTY * slope**2, gradient

    fit = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope, offset = fit.x[0] / scale, fit.x[1] - fit.x[0] * center / scale
    if not slope > 0:
        raise ValueError("genuine scores are not higher than impostor scores; check the labels")
    return float(slope), float(offset)


def cllr(genuine: np.ndarray, impostors: np.ndarray) -> float:
    """Cllr, the cost of log-likelihood ratios in bits: 0 if perfect, 1 if uninformative.

        ½ [mean over genuine log₂(1 + 1/LR) + mean over impostors log₂(1 + LR)]

    Args:
        genuine: (G,) natural log-likelihood ratios ln LR of genuine pairs.
        impostors: (I,) natural log-likelihood ratios ln LR of impostor pairs.

    Source: Brümmer and du Preez (2006), equation 25.

    >>> cllr(np.zeros(3), np.zeros(4))
    1.0
    """
    bits = np.logaddexp(0, -np.asarray(genuine)).mean() + np.logaddexp(0, impostors).mean()
    return float(bits / (2 * np.log(2)))


def cllr_min(genuine: np.ndarray, impostors: np.ndarray) -> float:
    """The `cllr` after the best monotonic calibration of the scores, found by isotonic regression.

    Args:
        genuine: (G,) scores of genuine pairs.
        impostors: (I,) scores of impostor pairs.

    >>> cllr_min(np.array([0.5, 0.9]), np.array([0.1]))
    0.0
    """
    from scipy.optimize import isotonic_regression

    scores = np.concatenate([genuine, impostors])
    is_genuine = np.repeat([True, False], [len(genuine), len(impostors)])
    weights = np.where(is_genuine, 0.5 / len(genuine), 0.5 / len(impostors))
    # Equal scores get the same posterior.
    score_index = np.unique(scores, return_inverse=True)[1]
    weight_at_score = np.bincount(score_index, weights)
    posterior = isotonic_regression(
        np.bincount(score_index, weights * is_genuine) / weight_at_score, weights=weight_at_score
    ).x
    posterior = np.clip(posterior[score_index], 0, 1)
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.where(is_genuine, posterior, 1 - posterior))
    # If the scores are perfectly separated, the sum is −0, which abs turns into 0.
    return abs(float((weights * bits).sum()))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))
