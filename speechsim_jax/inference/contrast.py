"""Contrasts: differences and other weighted sums of scores, and which of several is largest."""

import dataclasses

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_table import InfluenceTable
from speechsim_jax.inference.standard_errors import effective_degrees, p_value, quantile


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of scores of one measure on the same audio, and how sure it is.

    The interval and p are of Student's t; NaN with fewer than 10 clusters.

    >>> contrast = ss.Contrast(difference=0.10, standard_error=0.04, degrees=39)
    >>> round(contrast.p, 4), [round(end, 4) for end in contrast.interval(0.95)]
    (0.0167, [0.0191, 0.1809])
    >>> print(contrast)
    0.1, 95 % interval 0.01909 to 0.1809, p = 0.017 (standard error 0.04)

    Attributes:
        difference: the weighted sum; of two cells or blocks their difference.
        standard_error: of it, over clusters.
        degrees: of freedom: clusters less one, and fewer where the standard error is of sampled
            rows (`effective_degrees`).
    """

    difference: float
    standard_error: float
    degrees: float | int

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.difference:.4g}, 95 % interval {low:.4g} to {high:.4g}, p = {self.p:.2g} "
            f"(standard error {self.standard_error:.2g})"
        )

    def interval(self, level: float | int = 0.95) -> tuple[float, float]:
        """The confidence interval of a level between 0 and 1.

        Raises:
            UserError: a level that is none.
        """
        half = float(quantile(self.degrees, level)) * self.standard_error
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Two-sided p-value of a difference of 0."""
        return float(p_value(self.difference, self.standard_error, self.degrees))


def contrast(
    table: InfluenceTable,
    measure: str,
    scores: Float[np.ndarray, "x y"],
    weights: Float[np.ndarray, "x y"],
) -> Contrast:
    """The contrast of these weights.

    Args:
        table: influences on the scores.
        measure: its name.
        scores: of the measure.
        weights: of each score; those of weight 0 may be NaN.

    Raises:
        UserError: influences were not kept.
    """
    error, relative = table.combined(measure, weights)
    used = weights != 0
    value = float(scores[used] @ weights[used])
    return Contrast(value, error, float(effective_degrees(table.clusters.degrees, relative)))


def shares_of_largest(
    table: InfluenceTable,
    measure: str,
    scores: Float[np.ndarray, "x y"],
    cells: list[tuple[int, int]],
    largest: bool = True,
    draws: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, " cell"]:
    """How often each of several cells is the largest, over a parametric bootstrap.

    Scores are drawn from the normal distribution around them whose covariance is that of the
    influences, and the share of the draws in which a cell is the largest (or smallest) counted.

    Args:
        table: influences on the scores.
        measure: its name.
        scores: of the measure.
        cells: positions (x, y).
        largest: whether the largest is asked for, not the smallest.
        draws: number of draws.
        seed: of the draws.

    Raises:
        UserError: influences of rows were not kept.
    """
    x, y = np.array(cells).T
    covariance = table.covariance(measure, x, y)
    values, vectors = np.linalg.eigh(covariance)
    # The estimate of each cluster's noise is subtracted, so small eigenvalues may be negative.
    root = vectors * np.sqrt(np.maximum(values, 0))
    normal = np.random.default_rng(seed).standard_normal((draws, len(values)))
    drawn = scores[x, y] + normal @ root.T
    winners = (drawn if largest else -drawn).argmax(axis=1)
    return np.bincount(winners, minlength=len(cells)) / draws
