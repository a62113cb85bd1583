"""Finished moments: what measures read, in float64 on the host, one block at a time.

Names follow the literature: with X [row, neuron] centred, S_xy = X'Y, R_xy its correlations.
Decompositions are numpy's: scipy's hold Python's lock, so that threads would wait for each other.
"""

import dataclasses
import functools

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import Moments
from speechsim_jax.statistics.threads import map_in_threads

Matrix = Float[np.ndarray, "x y"]
Vector = Float[np.ndarray, " x"]

# Relative to the mean: a float32 neuron that varies less is rounding noise. In float64 a constant
# neuron has a variance of exactly 0, since the pilot takes its value.
_DEAD_STD = {"float32": 1e-6, "float64": 0.0}


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The z-scored live neurons of a network in the axes of their correlations R = V values V'.

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


def whiten(correlation: Float[np.ndarray, "live live"], tolerance: float) -> Whitening:
    """Eigenvectors of a correlation matrix above `tolerance` times its largest eigenvalue."""
    if not len(correlation):
        return Whitening(np.zeros((0, 0)), np.zeros(0))
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int(np.sum(values > tolerance * values[0]))
    return Whitening(np.ascontiguousarray(vectors[:, :rank]), values[:rank])


def svd(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, s, V' by divide and conquer; by QR steps (several times slower) if that does not converge.

    It does not for some matrices within 1e-11 of the identity, as two equal networks give.
    """
    try:
        return np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")


class FinishedMoments:
    """Moments at the end of the stream, or those of several streams merged (`merging`).

    `rank_tolerance` (tau) defaults to max width * 2.2e-16 for float64 statistics and 1e-6 for
    float32: post-norm layers are exactly singular, and directions of rounding noise would otherwise
    count as perfectly correlated.
    """

    def __init__(self, state: Moments, rank_tolerance: float | None = None):
        self.rows = moments.count_of(state)
        self.dtype = str(state.pilot[0].dtype)
        self._state = state
        self._place = {
            (tile.a, l, tile.b, m): (t, k)
            for t, tile in enumerate(state.tiles)
            for k, (l, m) in enumerate(tile.pairs)
        }
        widest = max(stream.neurons for stream in state.streams)
        default = 1e-6 if self.dtype == "float32" else widest * 2.2e-16
        self.rank_tolerance = default if rank_tolerance is None else rank_tolerance
        places = [(s, l) for s, x in enumerate(state.streams) for l in range(x.layers)]
        self.networks = tuple(map_in_threads(self._network, places))

    def _network(self, place: tuple[int, int]) -> "NetworkMoments":
        """Work out one network's own moments."""
        stream, layer = place
        first = np.asarray(_total(self._state.sums.first[stream][:, layer]))
        pilot = np.asarray(_total(self._state.pilot[stream][:, layer]))
        scatter = self._block(place, place) - np.outer(first, first) / self.rows
        mean = pilot + first / self.rows
        std = np.sqrt(np.maximum(np.diagonal(scatter), 0) / self.rows)
        std = np.where(std <= _DEAD_STD[self.dtype] * np.maximum(np.abs(mean), 1e-30), 0.0, std)
        live = std > 0
        correlation = (scatter / self.rows)[np.ix_(live, live)] / np.outer(std[live], std[live])
        return NetworkMoments(
            stream=stream,
            layer=layer,
            pilot=pilot,
            first=first,
            mean=mean,
            std=std,
            live=live,
            scatter_norm=float(np.linalg.norm(scatter)),
            correlation_norm=float(np.linalg.norm(correlation)),
            whitening=whiten(correlation, self.rank_tolerance),
        )

    def _block(self, x: tuple[int, int], y: tuple[int, int]) -> Matrix:
        """Sum of x y' over rows, pilot-shifted but not centred; x and y are (stream, layer)."""
        swapped = x + y not in self._place
        tile, k = self._place[y + x if swapped else x + y]
        block = np.asarray(_total(self._state.sums.cross[tile][k]))
        return block.T if swapped else block

    def shifted_cross(self, x: "NetworkMoments", y: "NetworkMoments") -> Matrix:
        """Sum of x y' over rows, pilot-shifted but not centred."""
        return self._block((x.stream, x.layer), (y.stream, y.layer))

    def scatter(self, x: "NetworkMoments", y: "NetworkMoments") -> Matrix:
        """S_xy = Xc' Yc."""
        return self.shifted_cross(x, y) - np.outer(x.first, y.first) / self.rows

    def correlate(self, scatter: Matrix, x: "NetworkMoments", y: "NetworkMoments") -> Matrix:
        """R_xy of S_xy, 0 for dead neurons."""
        scale = [np.where(network.live, network.std, np.inf) for network in (x, y)]
        return scatter / (self.rows * scale[0][:, None] * scale[1])

    def energies(self, x: "NetworkMoments", y: "NetworkMoments") -> "Energies":
        """The sums of squared norms of two networks."""
        sums = self._state.sums
        i, j = self.networks.index(x), self.networks.index(y)
        return Energies(
            energy_x=float(_total(sums.energy[:, i])),
            energy_y=float(_total(sums.energy[:, j])),
            cross=float(_total(sums.energy_cross[:, i, j])),
            y_energy_x=np.asarray(_total(sums.energy_first[x.stream][:, j, x.layer])),
            x_energy_y=np.asarray(_total(sums.energy_first[y.stream][:, i, y.layer])),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkMoments:
    """One layer of one stream: its own moments.

    `first`: sum of the pilot-shifted rows. `std`: population standard deviation, 0 where a neuron
    is dead, that is not `live`. `scatter_norm`: ||S_xx||_F.
    `correlation_norm`: ||R_xx||_F. `whitening`: of the live neurons.
    """

    stream: int
    layer: int
    pilot: Vector
    first: Vector
    mean: Vector
    std: Vector
    live: Bool[np.ndarray, " x"]
    scatter_norm: float
    correlation_norm: float
    whitening: Whitening

    @property
    def width(self) -> int:
        """Neurons, dead ones included."""
        return len(self.first)

    @functools.cached_property
    def centred_whitening(self) -> Whitening:
        """The same subspace in the axes of the covariance D R D of the live neurons, D = diag(std).

        With D R D = P values P', W = D P / sqrt(values) takes z-scored neurons too. P and values
        come of the SVD of D V sqrt(values of R): directions below the rank tolerance stay out.
        """
        scale = self.std[self.live][:, None]
        factor = scale * self.whitening.vectors * np.sqrt(self.whitening.values)
        axes, sizes, _ = svd(factor)
        return Whitening(scale * axes, np.square(sizes))


@dataclasses.dataclass(frozen=True)
class Energies:
    """Pilot-shifted sums: |x|^2, |y|^2, |x|^2|y|^2, |y|^2 x and |x|^2 y."""

    energy_x: float
    energy_y: float
    cross: float
    y_energy_x: Vector
    x_energy_y: Float[np.ndarray, " y"]


def _total(compensated) -> np.ndarray | np.float64:
    """Sum and lost digits -> float64."""
    return np.asarray(compensated, np.float64).sum(axis=0)


def winners(correlation: Matrix) -> tuple[Vector, Int[np.ndarray, " x"]]:
    """For each row, the largest magnitude and its column (-1 where all are 0)."""
    magnitude = np.abs(correlation)
    best = magnitude.argmax(axis=1)
    value = magnitude[np.arange(len(best)), best]
    return value, np.where(value > 0, best, -1)
