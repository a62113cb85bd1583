"""Sampled rows of representations in the axes that influences are written in."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.statistics.derived import DerivesOnce
from speechsim_jax.statistics.moments_finished import RepresentationMoments

Value = TypeVar("Value")

# Rows that influences are computed of together: with what is derived of them they stay in the
# processor's cache.
_TOGETHER = 1024

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
        self._parts: tuple[RepresentationRows, ...] = ()
        self._shared: dict[tuple, Any] = {}
        self._shared_lock = threading.RLock()

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def dtype(self) -> np.dtype:
        """The type of the rows, and of everything that is computed from them."""
        return self._rows.dtype

    @property
    def cache_bytes(self) -> int:
        """Of the cached arrays, about."""
        return 2 * self._rows.nbytes

    @property
    def parts(self) -> tuple["RepresentationRows", ...]:
        """All rows, a few at a time; each part keeps what is derived from it until `release`."""
        with self._lock:
            if not self._parts:
                starts = range(0, max(self.count, 1), _TOGETHER)
                self._parts = tuple(self.part(slice(k, k + _TOGETHER)) for k in starts)
            return self._parts

    def release(self) -> None:
        """Forget what was derived."""
        with self._lock:
            super().release()
            self._parts = ()
        with self._shared_lock:
            self._shared.clear()

    def part(self, rows: slice) -> "RepresentationRows":
        """Some of the rows, with what is known of them already."""
        part = RepresentationRows(self.moments, self._rows[rows])
        part._cache = {key: values[rows] for key, values in self._cache.items()}
        part._shared, part._shared_lock = self._shared, self._shared_lock
        return part

    def shared(self, derive: Callable[..., Value], *arguments: Hashable) -> Value:
        """derive(rows, *arguments), which depends on no row, computed once for all parts."""
        with self._shared_lock:
            key = (derive, *arguments)
            if key not in self._shared:
                self._shared[key] = derive(self, *arguments)
            return self._shared[key]

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
    return rows.zscored_neurons(np.flatnonzero(rows.moments.live))


def _white(rows: RepresentationRows) -> np.ndarray:
    return rows.zscored @ rows.cast(rows.moments.whitening.matrix)


def sums_of_products(x: Float[np.ndarray, "row k"], y: Float[np.ndarray, "row k"]) -> Influence:
    """x_t'y_t of every row t, in float64; added up in the type of the rows."""
    return np.vecdot(x, y).astype(np.float64)


def forms(
    x: Float[np.ndarray, "row x"], matrix: Float[np.ndarray, "x y"], y: Float[np.ndarray, "row y"]
) -> Influence:
    """x_t' M y_t of every row t; M has the type of the rows."""
    return sums_of_products(x @ matrix, y)


def weighted_squares(x: Float[np.ndarray, "row k"], weights: Float[np.ndarray, " k"]) -> Influence:
    """The sum of weights_k x_tk^2 over k, of every row t."""
    return (np.square(x) @ weights.astype(x.dtype)).astype(np.float64)
