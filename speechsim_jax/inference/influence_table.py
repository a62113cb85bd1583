"""Influences of all cells of a result: of the sampled rows, or summed over clusters."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from speechsim_jax.errors import UserError
from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.inference.standard_errors import (
    SampledClusters,
    error_of_sums,
    standard_error,
)

Keep = Literal["auto", "rows", "clusters", "none"]

# "auto" keeps rows up to this size.
_MOST_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class InfluenceTable:
    """Influences of a result's cells.

    Attributes:
      clusters: the sampled clusters.
      by: "rows": I_t of each sampled row, by cluster; "clusters": I_c of each sampled cluster.
      values: by measure, [row or cluster, x, y].
      labels: of x and y.
      complete: whether I_c are of all clusters and not estimated from a sample of their rows;
        contrasts follow from them alone then.
    """

    clusters: SampledClusters
    by: Literal["rows", "clusters"]
    values: Mapping[str, Float32[np.ndarray, "_entry x y"]]
    labels: tuple[str, ...] = ()
    complete: bool = False

    @property
    def gives_contrasts(self) -> bool:
        """Whether standard errors of weighted sums of cells follow from what was kept."""
        return self.by == "rows" or self.complete

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(values.nbytes for values in self.values.values())

    def positions(self, x: str, y: str) -> tuple[int, int]:
        """Of a cell."""
        return self.labels.index(x), self.labels.index(y)

    def of(self, measure: str) -> Float32[np.ndarray, "_entry x y"]:
        """The influences of one measure.

        Raises:
          UserError: it has none.
        """
        if measure not in self.values:
            known = ", ".join(self.values) or "none"
            raise UserError(f"no influences on {measure} were kept; those of: {known}")
        return self.values[measure]

    def cluster_sums(self, measure: str) -> Float[np.ndarray, "cluster x y"]:
        """I_c of every cluster: how much it moves each score. Raises as `of`."""
        values = self.of(measure)
        if self.by == "clusters":
            return values
        return self.clusters.summarise(values).sums(self.clusters)

    def concentration(self, measure: str) -> tuple[float, float]:
        """How evenly the clusters move the scores of a measure, medians over its cells.

        Returns:
          The share of the ten most influential clusters in sum_c I_c^2, and the number of clusters
          that count, (sum_c I_c^2)^2 / sum_c I_c^4. NaN where nothing moves any score.
        """
        squares = np.square(self.cluster_sums(measure).astype(np.float64))
        squares = squares.reshape(len(squares), -1)
        total = squares.sum(axis=0)
        moved = total > 0
        if not moved.any():
            return float("nan"), float("nan")
        squares, total = squares[:, moved], total[moved]
        most = np.sort(squares, axis=0)[::-1][:10].sum(axis=0)
        counting = np.square(total) / np.square(squares).sum(axis=0)
        return float(np.median(most / total)), float(np.median(counting))

    def combined(self, measure: str, weights: Float[np.ndarray, "x y"]) -> tuple[float, float]:
        """The standard error of a weighted sum of cells, and its own relative error.

        Raises:
          UserError: influences of rows were not kept, and are needed; or as `of`.
        """
        x, y = np.nonzero(weights)
        influence = self._of_cells(measure, x, y) @ weights[x, y]
        if self.by == "clusters":
            return float(error_of_sums(influence)), 0.0
        summary = self.clusters.summarise(influence)
        error, relative = standard_error(summary, self.clusters)
        return float(error), float(relative)

    def covariance(
        self, measure: str, x: Int64[np.ndarray, " cell"], y: Int64[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "cell cell"]:
        """Covariance of the estimates of several cells, without bias and so not always positive.

        Raises:
          UserError: influences of rows were not kept, and are needed; or as `of`.
        """
        influence = self._of_cells(measure, x, y)
        clusters = self.clusters
        if self.by == "clusters":
            return influence.T @ influence * clusters.total / (clusters.total - 1)
        means = clusters.summarise(influence).means
        share = clusters.rows / clusters.total_rows
        total = np.zeros((len(x), len(x)))
        start = 0
        for k, kept in enumerate(clusters.kept.tolist()):
            rows = influence[start : start + kept] - means[k]
            start += kept
            noise = rows.T @ rows / max(kept - 1, 1) * (1 / kept - 1 / clusters.rows[k])
            total += share[k] ** 2 * (np.outer(means[k], means[k]) - noise)
        scale = clusters.total / len(clusters.names)
        return total * scale * clusters.total / (clusters.total - 1)

    def _of_cells(
        self, measure: str, x: Int64[np.ndarray, " cell"], y: Int64[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "_entry cell"]:
        """Influences of rows, or of all clusters, on some cells, in float64."""
        values = self.of(measure)
        if not self.gives_contrasts:
            raise UserError(
                "contrasts need the influences of rows; run again, or merge, with "
                "keep_influence='rows'"
            )
        return values[:, x, y].astype(np.float64)


class InfluenceCollector:
    """Collects the influences on the scores of each pair, and their standard errors.

    Args:
      clusters: the sampled clusters.
      measures: names of the measures.
      count: of representations.
      keep: what is kept of the influences.
    """

    def __init__(
        self, clusters: SampledClusters, measures: tuple[str, ...], count: int, keep: Keep
    ):
        self._clusters = clusters
        rows = int(clusters.kept.sum())
        if keep == "auto":
            keep = "rows" if 4 * rows * count**2 * len(measures) <= _MOST_BYTES else "clusters"
        self._keep = keep
        entries = {"rows": rows, "clusters": len(clusters.names), "none": 0}[keep]
        self._values = {
            name: np.zeros((entries, count, count), np.float32) for name in measures if entries
        }
        self.errors = {name: np.full((count, count), np.nan) for name in measures}
        self.relative = {name: np.full((count, count), np.nan) for name in measures}

    def add(self, i: int, j: int, influences: Mapping[str, Influence]) -> None:
        """Add those on the scores of (i, j), by measure."""
        for name, influence in influences.items():
            summary = self._clusters.summarise(influence)
            error, relative = standard_error(summary, self._clusters)
            self.errors[name][i, j], self.relative[name][i, j] = error, relative
            if self._keep == "rows":
                self._values[name][:, i, j] = influence
            elif self._keep == "clusters":
                self._values[name][:, i, j] = summary.sums(self._clusters)

    def table(self) -> InfluenceTable | None:
        """What was kept."""
        if self._keep in ("rows", "clusters"):
            complete = self._clusters.complete
            return InfluenceTable(self._clusters, self._keep, self._values, complete=complete)
        return None
