"""Which scores differ: every cell of a map from a reference, and every two of several cells."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.inference.influence_table import InfluenceTable
from speechsim_jax.inference.standard_errors import (
    ClusterInfluence,
    SampledClusters,
    effective_degrees,
    p_value,
    quantile,
    standard_error,
)

FALSE_DISCOVERY_RATE = 0.05
"""Of what is shown as different, at most this share is expected not to be."""

# Entries of the arrays [cluster, cell, cell] that are computed at a time.
_BLOCK = 2**20
# Of sums of squares in float64.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Differences:
    """Differences of scores, and which of them are above noise.

    Attributes:
        difference: of each cell, less its reference; NaN where there is none.
        standard_error: of it.
        p: two-sided, of no difference; NaN where the standard error is not known.
        q: the least rate of false discoveries at which the cell counts as different.
    """

    difference: Float[np.ndarray, "x y"]
    standard_error: Float[np.ndarray, "x y"]
    p: Float[np.ndarray, "x y"]
    q: Float[np.ndarray, "x y"]


Positions = tuple[Int64[np.ndarray, "x y"], Int64[np.ndarray, "x y"]]


def from_cells(
    table: InfluenceTable,
    measure: str,
    difference: Float[np.ndarray, "x y"],
    cells: Positions,
    references: Positions,
) -> Differences:
    """Differences of each cell from a cell of its own.

    Args:
        table: influences of rows.
        measure: its name.
        difference: each score less that of its reference; NaN where there is none.
        cells: their positions (x, y) in the table.
        references: those of their references.

    Raises:
        UserError: influences of rows were not kept.
    """
    errors, relative = np.full_like(difference, np.nan), np.zeros_like(difference)
    for row in np.flatnonzero(np.isfinite(difference).any(axis=1)):
        columns = np.flatnonzero(np.isfinite(difference[row]))
        x, y = (at[row, columns] for at in references)
        # A reference is often that of many cells: each is read once.
        once, back = np.unique(np.stack([x, y]), axis=1, return_inverse=True)
        influence = table.rows_of(measure, *(at[row, columns] for at in cells))
        influence -= table.rows_of(measure, *once)[:, back.ravel()]
        summary = table.clusters.summarise(influence)
        errors[row, columns], relative[row, columns] = standard_error(summary, table.clusters)
    return tested(difference, errors, effective_degrees(table.clusters.degrees, relative))


def tested(
    difference: Float[np.ndarray, "x y"],
    errors: Float[np.ndarray, "x y"],
    degrees: Float[np.ndarray, "x y"],
) -> Differences:
    """Differences with p-values of Student's t, and the q-values of all cells together.

    Args:
        difference: NaN where there is none.
        errors: of them.
        degrees: of freedom of the errors.

    Source: `q_values`.
    """
    p = p_value(difference, errors, degrees)
    return Differences(difference, errors, p, q_values(p))


def q_values(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The least rates of false discoveries at which each of these tests is one of them.

    Args:
        p: of all tests that are made together; NaN of those that say nothing, as is their q-value.

    Source: Benjamini & Hochberg 1995, for tests that depend positively on each other.
    """
    import scipy.stats  # takes half a second

    q, known = np.full_like(p, np.nan), np.isfinite(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known])
    return q


def half_intervals(
    table: InfluenceTable,
    measure: str,
    x: Int64[np.ndarray, " cell"],
    y: Int64[np.ndarray, " cell"],
    level: float = 0.95,
) -> Float[np.ndarray, "cell cell"]:
    """Half the interval of the difference of every two of some cells.

    Args:
        table: influences of rows.
        measure: its name.
        x: positions of the cells.
        y: positions of the cells.
        level: of the intervals.

    Returns:
        Symmetric; 0 on the diagonal, NaN where a standard error is not known to half.

    Raises:
        UserError: influences of rows were not kept.
    """
    clusters = table.clusters
    influence = table.rows_of(measure, x, y)
    means = clusters.summarise(influence).means
    influence -= np.repeat(means, clusters.kept, axis=0)
    ends = np.cumsum(clusters.kept)
    parts = np.split(influence, ends[:-1])
    half = np.zeros((len(x), len(x)))
    step = max(1, _BLOCK // max(1, len(means) * len(x)))
    own = np.stack([np.square(part).sum(axis=0) for part in parts])
    for start in range(0, len(x), step):
        block = slice(start, min(start + step, len(x)))
        summary = _of_pairs(parts, clusters, means, own, block)
        errors, relative = standard_error(summary, clusters)
        degrees = effective_degrees(clusters.degrees, relative)
        half[block, start:] = errors * quantile(degrees, level)
        half[start:, block] = half[block, start:].T
    np.fill_diagonal(half, 0.0)
    return half


def _of_pairs(
    parts: list[np.ndarray],
    clusters: SampledClusters,
    means: Float[np.ndarray, "cluster cell"],
    own: Float[np.ndarray, "cluster cell"],
    block: slice,
) -> ClusterInfluence:
    """Influences on the differences of a block of cells from it and all that follow.

    Args:
        parts: influences of the rows of each cluster, less its mean, [row, cell].
        clusters: they.
        means: of each cluster.
        own: sums of squares of `parts`.
        block: of cells.
    """
    rest = slice(block.start, None)
    products = np.stack([part[:, block].T @ part[:, rest] for part in parts])
    both = own[:, block, None] + own[:, None, rest]
    squares = both - 2 * products
    # Of cells with the same influences only rounding errors are left.
    squares[squares <= _ROUNDING * both] = 0
    freedom = np.maximum(clusters.kept - 1, 1)[:, None, None]
    return ClusterInfluence(means[:, block, None] - means[:, None, rest], squares / freedom)
