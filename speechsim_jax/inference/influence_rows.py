"""Sampled rows of representations in the axes that influences are written in."""

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.statistics.derived import DerivesOnce
from speechsim_jax.statistics.moments_finished import RepresentationMoments

Influence = Float[np.ndarray, " row"]
"""Derivative of a score when the distribution of rows moves towards each row; mean 0."""


class RepresentationRows(DerivesOnce):
    """Sampled rows of one representation.

    Args:
      moments: of the representation, over all rows.
      rows: the sampled rows, of any float type, in which everything is computed.
    """

    def __init__(self, moments: RepresentationMoments, rows: Float[np.ndarray, "row neuron"]):
        super().__init__()
        self.moments = moments
        self._rows = rows

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def cache_bytes(self) -> int:
        """Of the cached arrays, about."""
        return 2 * self._rows.nbytes

    def part(self, rows: slice) -> "RepresentationRows":
        """Some of the rows, with what is known of them already."""
        part = RepresentationRows(self.moments, self._rows[rows])
        part._cache = {key: values[rows] for key, values in self._cache.items()}
        return part

    @property
    def centred(self) -> Float[np.ndarray, "row neuron"]:
        """All neurons less their means."""
        return (self._rows - self.moments.mean).astype(self._rows.dtype)

    @property
    def zscored(self) -> Float[np.ndarray, "row live"]:
        """The live neurons, z-scored."""
        return self.once(_zscored)

    def zscored_neurons(
        self, neurons: Int64[np.ndarray, " chosen"]
    ) -> Float[np.ndarray, "row chosen"]:
        """Some live neurons, z-scored; not kept."""
        mean, std = self.moments.mean[neurons], self.moments.std[neurons]
        some = self._rows if len(neurons) == self._rows.shape[1] else self._rows[:, neurons]
        # In the precision of the mean, a few rows at a time: no copy of all rows is as wide.
        centred = np.subtract(some, mean, out=np.empty_like(some), casting="same_kind")
        centred /= self.cast(std)
        return centred

    @property
    def white(self) -> Float[np.ndarray, "row rank"]:
        """The z-scored rows in the directions of the whitening, each of variance 1."""
        return self.once(_white)

    def cast(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix in the type of the rows."""
        return matrix.astype(self._rows.dtype, copy=False)


def _zscored(rows: RepresentationRows) -> np.ndarray:
    live = rows.moments.live
    return rows.centred[:, live] / rows.cast(rows.moments.std[live])


def _white(rows: RepresentationRows) -> np.ndarray:
    return rows.zscored @ rows.cast(rows.moments.whitening.matrix)
