"""Intervals over speakers, and the confidence level of all intervals of the analyses."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

LEVEL = 0.95
"""Confidence level: the probability that an interval covers the true value."""


class Interval(NamedTuple):
    """A value and its 95 % interval over speakers (NaN where there is one speaker)."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    counts: Int[np.ndarray, " speaker"] | Float[np.ndarray, " speaker"],
    totals: Int[np.ndarray, " speaker"] | Float[np.ndarray, " speaker"],
    seed: int = 0,
    draws: int = 10_000,
) -> Interval:
    """Ratio of sums over speakers with its 95 % interval, by drawing speakers with replacement.

        value = sum(counts) / sum(totals)

    The ends are quantiles of the drawn values, at Phi(-+ t sqrt(n / (n - 1))) with Student's
    quantile t of n - 1 degrees of freedom: for few speakers the plain 2.5 and 97.5 % are too
    narrow.

    Args:
        counts: Numerator of each speaker, e.g. frames that were classified correctly. For the
            difference of two accuracies on the same frames, the difference of the two counts.
        totals: Denominator of each speaker, e.g. frames.
        seed: Of the draws.
        draws: Number of bootstrap samples.

    Returns:
        Value and interval; the ends are NaN for fewer than two speakers.

    Source: expanded percentile interval, Hesterberg 2015 (arXiv 1411.5279).
    """
    numerators, denominators = np.asarray(counts, np.float64), np.asarray(totals, np.float64)
    value, size = float(numerators.sum() / denominators.sum()), len(numerators)
    if size < 2:
        return Interval(value, float("nan"), float("nan"))
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), draws)
    half_width = scipy.stats.t.ppf((1 + LEVEL) / 2, size - 1) * (size / (size - 1)) ** 0.5
    tail = float(scipy.stats.norm.sf(half_width))
    low, high = np.quantile((times @ numerators) / (times @ denominators), [tail, 1 - tail])
    return Interval(value, float(low), float(high))
