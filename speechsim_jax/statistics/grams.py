"""Norms of cross moments from Gram matrices: of rows that are in memory, where that is less work.

With K = Xc Xc' and L = Yc Yc' [row, row], ||S_xy||_F^2 = sum_ij K_ij L_ij. The Gram matrices of all
representations take n^2 (sum d + count^2) multiplications and additions, the cross moments of all
pairs 2 n sum d_x d_y; so few rows of many wide representations are compared sooner through Gram
matrices. Only some rows of these are in memory at a time, and only their columns from the first of
these rows on are computed.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from speechsim_jax.statistics.linalg import Matrix
from speechsim_jax.statistics.moments_finished import RepresentationMoments, without_dead

# Of the Gram matrices of all representations, at a time.
_BLOCK_BYTES = 2**27
# Cells of each Gram matrix that are multiplied at a time, in float64: a few large ones, of rows far
# from the others, would leave nothing of a float32 sum's last digits.
_CELLS = 2**13


def fewer_products(
    rows: int, widths: Sequence[int], pairs: Collection[tuple[int, int]] | None = None
) -> bool:
    """Whether Gram matrices take less work than the cross moments of the pairs.

    Args:
      rows: n.
      widths: neurons of each representation.
      pairs: that are compared, by number; None for all.
    """
    if pairs is None:
        pairs = set(itertools.combinations_with_replacement(range(len(widths)), 2))
    of_pairs = 2 * sum(widths[i] * widths[j] for i, j in pairs)
    return rows * (sum(widths) + len(widths) ** 2) < of_pairs


class FinishedGrams:
    """What measures read that need norms of cross moments only (`Measure.of_norms`).

    Args:
      rows: of each representation, float32 or float64, all of one type; they are centred in place.
      rank_tolerance: as in `FinishedMoments`; for the result's record.
    """

    def __init__(
        self,
        rows: Sequence[Float[np.ndarray, "row _neuron"]],
        rank_tolerance: float | None = None,
    ):
        self.rows = len(rows[0])
        self.dtype = str(rows[0].dtype)
        self.rank_tolerance = rank_tolerance
        means = [_centre(x) for x in rows]
        self._norms = _norms(rows)
        self._energies = np.stack([np.square(x).sum(axis=1, dtype=np.float64) for x in rows])
        self.representations = tuple(
            self._representation(k, x, mean) for k, (x, mean) in enumerate(zip(rows, means))
        )

    def _representation(
        self, number: int, rows: Float[np.ndarray, "row neuron"], mean: Float[np.ndarray, " neuron"]
    ) -> RepresentationMoments:
        std = np.sqrt(np.square(rows).mean(axis=0, dtype=np.float64))
        std = without_dead(std, mean, self.dtype)
        return RepresentationMoments(
            index=(number, 0),
            mean=mean,
            std=std,
            live=std > 0,
            scatter_norm=float(np.sqrt(self._norms[number, number])),
            rows=self.rows,
            rank_tolerance=self.rank_tolerance,
            scatter=lambda: (rows.T @ rows).astype(np.float64),
        )

    @property
    def degrees(self) -> int:
        """Rows less the mean that was fitted to them."""
        return self.rows - 1

    def squared_norm(self, x: RepresentationMoments, y: RepresentationMoments) -> float:
        """||S_xy||_F^2."""
        return float(self._norms[x.index[0], y.index[0]])

    def unbiased_squared_norm(self, x: RepresentationMoments, y: RepresentationMoments) -> float:
        """As of `FinishedMoments`; centred rows add up to 0, which leaves fewer terms."""
        n, (k, l) = self.rows, (self._energies[r.index[0]] for r in (x, y))
        diagonal = float(k @ l)
        trace = self.squared_norm(x, y) - diagonal
        both = float(k.sum() * l.sum()) / ((n - 1) * (n - 2))
        return (trace + both - 2 * diagonal / (n - 2)) / (n * (n - 3))


def _centre(rows: Float[np.ndarray, "row neuron"]) -> Float[np.ndarray, " neuron"]:
    """Subtract the mean in place -> the mean, in float64; a constant neuron becomes exactly 0."""
    base = rows[0].astype(np.float64)
    mean = base + (rows - base).mean(axis=0)
    # From the rows as they are: the first may lie far from the others.
    np.subtract(rows, mean, out=rows, casting="same_kind")
    return mean


def _norms(rows: Sequence[Float[np.ndarray, "row _neuron"]]) -> Matrix:
    """The sums of products of all cells of each two Gram matrices, in float64."""
    n, count = len(rows[0]), len(rows)
    size = max(1, _BLOCK_BYTES // (rows[0].itemsize * n * count))
    memory = np.empty(count * min(size, n) * n, rows[0].dtype)
    total = np.zeros((count, count))
    for start in range(0, n, size):
        taken, left = min(size, n - start), n - start
        grams = memory[: count * taken * left].reshape(count, taken, left)
        for gram, x in zip(grams, rows):
            np.matmul(x[start : start + taken], x[start:].T, out=gram)
        # What is right of the square on the diagonal stands for what is below it, too.
        square = np.ascontiguousarray(grams[:, :, :taken]).reshape(count, -1)
        for cells, weight in ((grams.reshape(count, -1), 2), (square, -1)):
            total += weight * sum(_products(cells))
    return total


def _products(cells: Float[np.ndarray, "x cell"]) -> Iterator[Float[np.ndarray, "x x"]]:
    """Sums of products of some cells at a time, in float64."""
    for start in range(0, cells.shape[1], _CELLS):
        some = cells[:, start : start + _CELLS].astype(np.float64)
        yield some @ some.T
