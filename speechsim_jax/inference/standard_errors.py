"""Standard errors over clusters of rows, from a sample of the rows of each.

A score is a functional of the distribution of rows. With I_t the influence of row t, n_c the rows
of cluster c among n, and I_c = (sum of its I_t) / n, the infinitesimal jackknife over C clusters is

    SE^2 = C / (C - 1) sum_c I_c^2.

Of m rows of a cluster, drawn without replacement, with mean Ibar and variance s^2 (divisor m - 1),
I_c^2 is estimated without bias by

    T_c = (n_c / n)^2 (Ibar^2 - (1 - m / n_c) s^2 / m),

and of K clusters drawn from C the sum by C / K times theirs.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.special
from jaxtyping import Float, Int64

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.clustered_sample import ClusteredSample

LEAST_CLUSTERS = 10
"""With fewer there is no interval."""

MOST_RELATIVE = 0.5
"""A standard error that is known worse than this, relatively, is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampledClusters:
    """The clusters of which rows were sampled, or read again; rows are in their order.

    Attributes:
      names: of each.
      rows: of each, read.
      kept: of each, in the sample, or of which influences were computed.
      total_rows: of all clusters.
      total: number of all clusters.
    """

    names: tuple[str, ...]
    rows: Int64[np.ndarray, " cluster"]
    kept: Int64[np.ndarray, " cluster"]
    total_rows: int
    total: int

    @classmethod
    def of(cls, sample: ClusteredSample) -> "SampledClusters":
        """Those of a finished sample."""
        kept = np.bincount(sample.cluster, minlength=len(sample.clusters))
        sampled = np.flatnonzero(kept)
        return cls(
            names=tuple(sample.clusters[k] for k in sampled),
            rows=sample.counts[sampled],
            kept=kept[sampled],
            total_rows=int(sample.counts.sum()),
            total=int(np.sum(sample.counts > 0)),
        )

    @classmethod
    def whole(cls, names: Sequence[str], rows: Int64[np.ndarray, " cluster"]) -> "SampledClusters":
        """Clusters whose mean influences are known, one entry each: nothing is estimated.

        Args:
          names: of each.
          rows: of each.
        """
        kept = np.ones(len(names), np.int64)
        return cls(tuple(names), rows, kept, int(rows.sum()), len(names))

    def parts(self, most_rows: int) -> Iterator[tuple[slice, "SampledClusters"]]:
        """Some of the clusters after the other, with the places of their rows.

        Args:
          most_rows: sampled rows of a part, unless a single cluster has more.
        """
        ends = np.cumsum(self.kept).tolist()
        first, start = 0, 0
        for k, end in enumerate(ends):
            if k + 1 < len(ends) and ends[k + 1] - start <= most_rows:
                continue
            some = slice(first, k + 1)
            yield (
                slice(start, end),
                dataclasses.replace(
                    self, names=self.names[some], rows=self.rows[some], kept=self.kept[some]
                ),
            )
            first, start = k + 1, end

    @property
    def degrees(self) -> int:
        """Degrees of freedom of intervals: sampled clusters less one."""
        return len(self.names) - 1

    @property
    def complete(self) -> bool:
        """Whether all rows of all clusters are in the sample."""
        return len(self.names) == self.total and bool((self.kept == self.rows).all())

    @functools.cached_property
    def _starts(self) -> Int64[np.ndarray, " cluster"]:
        return np.concatenate([[0], np.cumsum(self.kept)[:-1]])

    def summarise(self, influence: Float[np.ndarray, "row *cells"]) -> "ClusterInfluence":
        """Mean and variance of influences over the sampled rows of each cluster."""
        shape = (-1, *(1,) * (influence.ndim - 1))
        kept = self.kept.reshape(shape)
        # In float64: the sums of a cluster nearly cancel.
        values = influence.astype(np.float64)
        means = np.add.reduceat(values, self._starts, axis=0) / kept
        squares = np.square(values - np.repeat(means, self.kept, axis=0))
        sums = np.add.reduceat(squares, self._starts, axis=0)
        return ClusterInfluence(means, sums / np.maximum(kept - 1, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class ClusterInfluence:
    """Influences of the sampled rows, summarised by cluster.

    Attributes:
      means: of each cluster and cell.
      variances: of each cluster and cell, divisor m - 1.
    """

    means: Float[np.ndarray, "cluster *cells"]
    variances: Float[np.ndarray, "cluster *cells"]

    @classmethod
    def of_parts(cls, parts: Sequence["ClusterInfluence"]) -> "ClusterInfluence":
        """Those of clusters that were summarised part by part."""
        means, variances = ([getattr(p, name) for p in parts] for name in ("means", "variances"))
        return cls(np.concatenate(means), np.concatenate(variances))

    def sums(self, clusters: SampledClusters) -> Float[np.ndarray, "cluster *cells"]:
        """I_c: how much a cluster moves the score."""
        shape = (-1, *(1,) * (self.means.ndim - 1))
        return (clusters.rows / clusters.total_rows).reshape(shape) * self.means


def standard_error(
    influence: ClusterInfluence, clusters: SampledClusters
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """The standard error of each cell, and its own relative error.

    The relative error is that of having sampled rows, and clusters; not of the number of clusters,
    which is in the degrees of freedom.

    Returns:
      Standard errors; NaN where too few rows were sampled to know them to half, or where there are
      no two clusters. Relative errors.
    """
    shape = (-1, *(1,) * (influence.means.ndim - 1))

    def column(values: np.ndarray) -> np.ndarray:
        return values.reshape(shape)

    sampled, total = len(clusters.names), clusters.total
    weight = column(np.square(clusters.rows / clusters.total_rows))
    noise = column((1 - clusters.kept / clusters.rows) / clusters.kept) * influence.variances
    terms = weight * (np.square(influence.means) - noise)
    scale = total / sampled
    sums = scale * terms.sum(axis=0)
    # Of the square of a mean with variance `noise`, and of the estimate of this variance.
    signal = np.maximum(np.square(influence.means) - noise, 0)
    freedom = column(np.maximum(clusters.kept - 1, 1))
    spread = np.square(weight) * (4 * signal * noise + 2 * np.square(noise) * (1 + 1 / freedom))
    of_rows = np.square(scale) * spread.sum(axis=0)
    of_clusters = np.zeros_like(sums)
    if 1 < sampled < total:
        of_clusters = total**2 * (1 / sampled - 1 / total) * terms.var(axis=0, ddof=1)
    exact = (influence.means == 0).all(axis=0) & (influence.variances == 0).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(total / (total - 1) * sums) if total > 1 else np.full_like(sums, np.nan)
        relative = np.sqrt(of_rows + of_clusters) / (2 * sums)
    relative = np.where(sums > 0, relative, np.where(exact, 0.0, np.inf))
    known = relative <= MOST_RELATIVE if sampled > 1 else np.zeros_like(exact)
    return np.where(known, np.where(exact, 0.0, error), np.nan), relative


def error_of_sums(sums: Float[np.ndarray, "cluster *cells"]) -> Float[np.ndarray, "*cells"]:
    """The standard error of each cell from the I_c of all clusters; NaN with fewer than two."""
    total = len(sums)
    if total < 2:
        return np.full(sums.shape[1:], np.nan)
    return np.asarray(np.sqrt(total / (total - 1) * np.square(sums.astype(np.float64)).sum(axis=0)))


def effective_degrees(degrees: int, relative: np.ndarray | float) -> np.ndarray:
    """Degrees of freedom of a standard error that is itself known to `relative` only.

    A chi-squared variable of v degrees has the relative variance 2 / v, and the square of a
    standard error four times that of its root: 1 / v = 1 / degrees + 2 relative^2. NaN with fewer
    than 10 clusters.

    Source: after Satterthwaite 1946 (Biometrics Bulletin 2).
    """
    if degrees < LEAST_CLUSTERS - 1:
        return np.full(np.shape(relative), np.nan)
    return np.asarray(1 / (1 / degrees + 2 * np.square(relative)))


def quantile(degrees: np.ndarray | float | int, level: float | int) -> np.ndarray:
    """Half the width of a two-sided interval in standard errors: Student's t.

    Raises:
      UserError: a level that is not between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise UserError(f"level is {level!r}; expected a number between 0 and 1, such as 0.95")
    return np.asarray(scipy.special.stdtrit(degrees, (1 + level) / 2))


def p_value(
    difference: np.ndarray | float, error: np.ndarray | float, degrees: np.ndarray | float | int
) -> np.ndarray:
    """Two-sided, of a difference of 0; NaN where the error is 0 or not known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * scipy.special.stdtr(degrees, -np.abs(difference) / error)
    return np.where(np.asarray(error) > 0, p, np.nan)
