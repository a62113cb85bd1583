"""Influences of all cells of a result: of the sampled rows, or summed over clusters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from speechsim_jax.errors import UserError
from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.inference.standard_errors import (
    SampledClusters,
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
      further: tables of the measures on other statistics, which have clusters of their own.
      dims: dimensions of the matrices of these measures.
    """

    clusters: SampledClusters
    by: Literal["rows", "clusters"]
    values: Mapping[str, Float32[np.ndarray, "_entry x y"]]
    labels: tuple[str, ...] = ()
    further: tuple["InfluenceTable", ...] = ()
    dims: tuple[str, str] = ("x", "y")

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(v.nbytes for table in (self, *self.further) for v in table.values.values())

    def labelled(self, labels: Mapping[str, tuple[str, ...]]) -> "InfluenceTable":
        """The tables with the labels of their dimensions."""
        further = tuple(table.labelled(labels) for table in self.further)
        return dataclasses.replace(self, labels=labels[self.dims[0]], further=further)

    def holding(self, measure: str) -> "InfluenceTable":
        """The table that has a measure: this, or one of `further`.

        Raises:
          UserError: none has it.
        """
        tables = (self, *self.further)
        for table in tables:
            if measure in table.values:
                return table
        known = ", ".join(name for table in tables for name in table.values) or "none"
        raise UserError(f"no influences on {measure} were kept; those of: {known}")

    def positions(self, x: str, y: str) -> tuple[int, int]:
        """Of a cell."""
        return self.labels.index(x), self.labels.index(y)

    def of(self, measure: str) -> Float32[np.ndarray, "_entry x y"]:
        """The influences of one measure.

        Raises:
          UserError: it has none.
        """
        return self.holding(measure).values[measure]

    def cluster_sums(self, measure: str) -> Float[np.ndarray, "cluster x y"]:
        """I_c of every cluster: how much it moves each score. Raises as `of`."""
        table = self.holding(measure)
        values = table.values[measure]
        if table.by == "clusters":
            return values
        return table.clusters.summarise(values).sums(table.clusters)

    def summed(self) -> "InfluenceTable":
        """The table of cluster sums."""
        sums = {name: self.cluster_sums(name).astype(np.float32) for name in self.values}
        return dataclasses.replace(self, by="clusters", values=sums)

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

    def shares(self, measure: str) -> Float[np.ndarray, " cluster"]:
        """The share of each cluster in sum_c I_c^2, the mean over cells that something moves."""
        squares = np.square(self.cluster_sums(measure).astype(np.float64))
        squares = squares.reshape(len(squares), -1)
        total = squares.sum(axis=0)
        moved = total > 0
        if not moved.any():
            return np.zeros(len(squares))
        return (squares[:, moved] / total[moved]).mean(axis=1)

    def effective_rows(self, measure: str) -> float:
        """The effective sample size, the median over cells: rows over the design effect.

            n_eff = var(I_t) / SE^2

        As many independent rows would leave the score as unsure as it is.

        Returns:
          NaN where influences of rows were not kept, only one of each cluster was, or no standard
          error is known.

        Source: Kish 1965 (Survey Sampling), for the influence of a row.
        """
        if self.by != "rows" or (self.clusters.kept < 2).all():
            return float("nan")
        clusters, effective = self.clusters, []
        share = (clusters.rows / clusters.rows.sum())[:, None]
        within = (1 - 1 / clusters.kept)[:, None]
        for of_row in np.moveaxis(self.of(measure), 1, 0):
            summary = clusters.summarise(of_row)
            error, _ = standard_error(summary, clusters)
            variance = (share * (np.square(summary.means) + within * summary.variances)).sum(axis=0)
            known = error > 0
            effective.append(variance[known] / np.square(error[known]))
        found = np.concatenate(effective)
        return float(np.median(found)) if found.size else float("nan")

    def combined(self, measure: str, weights: Float[np.ndarray, "x y"]) -> tuple[float, float]:
        """The standard error of a weighted sum of cells, and its own relative error.

        Raises:
          UserError: influences of rows were not kept, and are needed; or as `of`.
        """
        x, y = np.nonzero(weights)
        influence = self.rows_of(measure, x, y) @ weights[x, y]
        clusters = self.holding(measure).clusters
        error, relative = standard_error(clusters.summarise(influence), clusters)
        return float(error), float(relative)

    def covariance(
        self, measure: str, x: Int64[np.ndarray, " cell"], y: Int64[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "cell cell"]:
        """Covariance of the estimates of several cells, without bias and so not always positive.

        Raises:
          UserError: influences of rows were not kept, and are needed; or as `of`.
        """
        influence = self.rows_of(measure, x, y)
        clusters = self.holding(measure).clusters
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

    def rows_of(
        self, measure: str, x: Int64[np.ndarray, " cell"], y: Int64[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "row cell"]:
        """Influences of rows on the cells at some positions, in float64.

        Raises:
          UserError: influences of rows were not kept; or as `of`.
        """
        values = self.of(measure)
        if self.holding(measure).by != "rows":
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
      dims: dimensions of the matrices of these measures.

    Attributes:
      clusters: as given.
      errors: standard errors by measure, [x, y].
      relative: their own relative errors.
    """

    def __init__(
        self,
        clusters: SampledClusters,
        measures: tuple[str, ...],
        count: int,
        keep: Keep,
        dims: tuple[str, str] = ("x", "y"),
    ):
        self.clusters, self.dims = clusters, dims
        rows = int(clusters.kept.sum())
        if keep == "auto":
            # Of clusters that are one entry each, sums are as large as what they are sums of.
            smaller = "clusters" if rows > len(clusters.names) else "none"
            keep = "rows" if 4 * rows * count**2 * len(measures) <= _MOST_BYTES else smaller
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
            summary = self.clusters.summarise(influence)
            error, relative = standard_error(summary, self.clusters)
            self.errors[name][i, j], self.relative[name][i, j] = error, relative
            if self._keep == "rows":
                self._values[name][:, i, j] = influence
            elif self._keep == "clusters":
                self._values[name][:, i, j] = summary.sums(self.clusters)

    def table(self) -> InfluenceTable | None:
        """What was kept."""
        if self._keep == "clusters" and self.clusters.complete:
            # Of all rows, so nothing is estimated: contrasts follow from means of clusters.
            whole = SampledClusters.whole(self.clusters.names, self.clusters.rows)
            scale = (whole.total_rows / whole.rows).astype(np.float32)[:, None, None]
            means = {name: values * scale for name, values in self._values.items()}
            return InfluenceTable(whole, "rows", means, dims=self.dims)
        if self._keep in ("rows", "clusters"):
            return InfluenceTable(self.clusters, self._keep, self._values, dims=self.dims)
        return None


def joined(
    first: InfluenceTable | None, others: Sequence[InfluenceTable | None]
) -> InfluenceTable | None:
    """One table of that of the moments and those of other statistics; None without any."""
    further = tuple(table for table in others if table is not None)
    if first is None:
        if not further:
            return None
        first = InfluenceTable(SampledClusters.whole((), np.zeros(0, np.int64)), "rows", {})
    return dataclasses.replace(first, further=further)
