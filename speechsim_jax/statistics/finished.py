"""Finished moments: what measures read, in float64 on the host, one block at a time.

Names follow the literature: with X [row, neuron] centred, S_xy = X'Y, R_xy its correlations.
"""

import dataclasses
import functools

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import Moments

Matrix = Float[np.ndarray, "x y"]
Vector = Float[np.ndarray, " x"]

# Relative to the mean: a float32 neuron that varies less is rounding noise. In float64 a constant
# neuron has a variance of exactly 0, since the pilot takes its value.
_DEAD_STD = {"float32": 1e-6, "float64": 0.0}


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The live neurons of a network in the axes of their correlation matrix R = V diag(values) V'.

    `values` fall; those at most tau times the largest are left out, so W = V / sqrt(values) is
    finite. `rank` is their number, `condition` the ratio of the largest to the smallest kept.
    """

    vectors: Float[np.ndarray, "live rank"]
    values: Float[np.ndarray, " rank"]

    @property
    def rank(self) -> int:
        """Directions kept."""
        return len(self.values)

    @property
    def condition(self) -> float:
        """Largest over smallest kept eigenvalue; NaN when no neuron is alive."""
        return float(self.values[0] / self.values[-1]) if self.rank else float("nan")

    @functools.cached_property
    def matrix(self) -> Float[np.ndarray, "live rank"]:
        """W with W' R W = 1."""
        return self.vectors / np.sqrt(self.values)

    def first(self, k: int) -> "Whitening":
        """The k directions of the largest eigenvalues."""
        return Whitening(self.vectors[:, :k], self.values[:k])


class FinishedMoments:
    """Moments at the end of the stream.

    `rank_tolerance` (tau) defaults to max width * 2.2e-16 for float64 statistics and 1e-6 for
    float32: post-norm layers are exactly singular, and directions of rounding noise would otherwise
    count as perfectly correlated.
    """

    def __init__(self, state: Moments, rank_tolerance: float | None = None):
        self.rows = moments.count_of(state)
        self.streams = state.streams
        self.dtype = str(state.pilot[0].dtype)
        self._sums = state.sums
        self._pilot = state.pilot
        self._network = [(s, l) for s, x in enumerate(state.streams) for l in range(x.layers)]
        self._place = {
            (tile.a, l, tile.b, m): (t, k)
            for t, tile in enumerate(state.tiles)
            for k, (l, m) in enumerate(tile.pairs)
        }
        widest = max(stream.neurons for stream in state.streams)
        default = 1e-6 if self.dtype == "float32" else widest * 2.2e-16
        self.rank_tolerance = default if rank_tolerance is None else rank_tolerance

    @property
    def networks(self) -> int:
        """How many networks (layers of all models) there are."""
        return len(self._network)

    def width(self, i: int) -> int:
        """Neurons of network i."""
        return self.streams[self._network[i][0]].neurons

    def first(self, i: int) -> Vector:
        """Sum of the pilot-shifted rows of network i."""
        stream, layer = self._network[i]
        return _total(self._sums.first[stream][:, layer])

    def pilot(self, i: int) -> Vector:
        """The pilot of network i."""
        stream, layer = self._network[i]
        return np.asarray(self._pilot[stream][layer], np.float64)

    def mean(self, i: int) -> Vector:
        """Mean of each neuron of network i."""
        return self.pilot(i) + self.first(i) / self.rows

    def shifted_cross(self, i: int, j: int) -> Matrix:
        """Sum of x y' for networks i and j, pilot-shifted but not centred."""
        key = (*self._network[i], *self._network[j])
        if key in self._place:
            tile, k = self._place[key]
            return _total(self._sums.cross[tile][k])
        tile, k = self._place[(*self._network[j], *self._network[i])]
        return _total(self._sums.cross[tile][k]).T

    def scatter(self, i: int, j: int) -> Matrix:
        """S_xy = Xc' Yc for networks i (x) and j (y)."""
        return self.shifted_cross(i, j) - np.outer(self.first(i), self.first(j)) / self.rows

    @functools.cache  # noqa: B019 (one small vector a network, for the life of the object)
    def std(self, i: int) -> Vector:
        """Population standard deviation of each neuron of network i, 0 where it is dead."""
        std = np.sqrt(np.maximum(np.diagonal(self.scatter(i, i)), 0) / self.rows)
        limit = _DEAD_STD[self.dtype] * np.maximum(np.abs(self.mean(i)), 1e-30)
        return np.where(std <= limit, 0.0, std)

    def live(self, i: int) -> Bool[np.ndarray, " x"]:
        """Which neurons of network i vary at all."""
        return self.std(i) > 0

    def correlate(self, scatter: Matrix, i: int, j: int) -> Matrix:
        """R_xy of S_xy, 0 for dead neurons."""
        scale = [np.where(self.live(k), self.std(k), np.inf) for k in (i, j)]
        return scatter / (self.rows * scale[0][:, None] * scale[1])

    @functools.cache  # noqa: B019
    def scatter_norm(self, i: int) -> float:
        """||S_xx||_F of network i."""
        return float(np.linalg.norm(self.scatter(i, i)))

    @functools.cache  # noqa: B019
    def whitening(self, i: int) -> Whitening:
        """The whitening of network i."""
        live = self.live(i)
        if not live.any():
            return Whitening(np.zeros((0, 0)), np.zeros(0))
        correlation = self.correlate(self.scatter(i, i), i, i)[np.ix_(live, live)]
        values, vectors = scipy.linalg.eigh(correlation, check_finite=False, driver="evd")
        values, vectors = values[::-1], vectors[:, ::-1]
        rank = int(np.sum(values > self.rank_tolerance * values[0]))
        return Whitening(np.ascontiguousarray(vectors[:, :rank]), values[:rank])

    def energies(self, i: int, j: int) -> "Energies":
        """The sums of squared norms of networks i and j."""
        sums = self._sums
        return Energies(
            energy_x=float(_total(sums.energy[:, i])),
            energy_y=float(_total(sums.energy[:, j])),
            cross=float(_total(sums.energy_cross[:, i, j])),
            y_energy_x=self._energy_first(j, i),
            x_energy_y=self._energy_first(i, j),
        )

    def _energy_first(self, weighing: int, summed: int) -> Vector:
        stream, layer = self._network[summed]
        return _total(self._sums.energy_first[stream][:, weighing, layer])


@dataclasses.dataclass(frozen=True)
class Energies:
    """Pilot-shifted sums: |x|^2, |y|^2, |x|^2|y|^2, |y|^2 x and |x|^2 y."""

    energy_x: float
    energy_y: float
    cross: float
    y_energy_x: Vector
    x_energy_y: Float[np.ndarray, " y"]


def _total(compensated) -> np.ndarray:
    """Sum and lost digits -> float64."""
    high, lost = np.asarray(compensated, np.float64)
    return high + lost


def winners(correlation: Matrix) -> tuple[Vector, Int[np.ndarray, " x"]]:
    """For each row, the largest magnitude and its column (-1 where all are 0)."""
    magnitude = np.abs(correlation)
    best = magnitude.argmax(axis=1)
    value = magnitude[np.arange(len(best)), best]
    return value, np.where(value > 0, best, -1)
