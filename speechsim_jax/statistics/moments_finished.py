"""Finished moments: what measures read, in float64 on the host, one block at a time.

Names follow the literature: with X [row, neuron] centred, S_xy = X'Y, R_xy its correlations.
Decompositions are numpy's: scipy's hold Python's lock, so that threads would wait for each other.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from speechsim_jax.statistics import moments
from speechsim_jax.statistics.linalg import Matrix, Vector, Whitening, map_in_threads, svd, whiten
from speechsim_jax.statistics.moments import Compensated, Moments

# Relative to the mean: a float32 neuron that varies less is rounding noise. In float64 a constant
# neuron has a variance of exactly 0, since the pilot takes its value.
_DEAD_STD = {"float32": 1e-6, "float64": 0.0}


LayerIndex = tuple[int, int]
"""Stream and layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class PassMoments:
    """The moments of some layer pairs, at the end of the stream.

    `places`: of the state's representations among all that are compared, rising. `block`: the cross
    moments of a tile's pair [part, x, y]; those of the state may lie elsewhere.
    """

    state: Moments
    places: tuple[LayerIndex, ...]
    block: Callable[[int, int], Compensated]

    @classmethod
    def whole(cls, state: Moments) -> "PassMoments":
        """All layer pairs of all streams, in one part."""
        places = tuple((s, l) for s, x in enumerate(state.streams) for l in range(x.layers))
        return cls.held(state, places)

    @classmethod
    def held(cls, state: Moments, places: tuple[LayerIndex, ...]) -> "PassMoments":
        """Of a state that has its cross moments."""
        return cls(state, places, lambda tile, pair: state.sums.cross[tile][pair])


@dataclasses.dataclass(frozen=True)
class _PairSums:
    """Where the sums of a pair of representations are: a part's tile, its pair, and its two representations."""

    part: PassMoments
    tile: int
    pair: int
    x: int
    y: int

    @property
    def swapped(self) -> "_PairSums":
        return dataclasses.replace(self, x=self.y, y=self.x)

    def cross(self) -> Matrix:
        """Of the part's pair, whatever x and y."""
        return np.asarray(_total(self.part.block(self.tile, self.pair)))

    def first(self, representation: int) -> Vector:
        stream, layer = self._local(representation)
        return np.asarray(_total(self.part.state.sums.first[stream][:, layer]))

    def pilot(self, representation: int) -> Vector:
        stream, layer = self._local(representation)
        return np.asarray(_total(self.part.state.pilot[stream][:, layer]))

    def energy_first(self, of: int, representation: int) -> Vector:
        """Sum of |of|^2 times the representation's rows."""
        stream, layer = self._local(representation)
        return np.asarray(_total(self.part.state.sums.energy_first[stream][:, of, layer]))

    def _local(self, representation: int) -> LayerIndex:
        for stream, shape in enumerate(self.part.state.streams):
            if representation < shape.layers:
                return stream, representation
            representation -= shape.layers
        raise IndexError(representation)


class FinishedMoments:
    """Moments at the end of the stream, or those of several streams merged (`merging`).

    Those of several passes are `parts`, each with layer pairs of its own. What is said of a pair is
    made of the sums of the one part that has it, so the parts' pilots may differ.
    `rank_tolerance` (tau) defaults to max width * 2.2e-16 for float64 statistics and 1e-6 for
    float32: post-norm layers are exactly singular, and directions of rounding noise would otherwise
    count as perfectly correlated.
    """

    def __init__(self, parts: Moments | Sequence[PassMoments], rank_tolerance: float | None = None):
        self.parts = (PassMoments.whole(parts),) if isinstance(parts, Moments) else tuple(parts)
        states = [part.state for part in self.parts]
        self.rows = moments.count_of(states[0])
        self.dtype = str(states[0].pilot[0].dtype)
        self._sums = {
            (part.places[pair.x], part.places[pair.y]): pair
            for part in self.parts
            for pair in _pairs(part)
        }
        widest = max(stream.neurons for state in states for stream in state.streams)
        default = 1e-6 if self.dtype == "float32" else widest * 2.2e-16
        self.rank_tolerance = default if rank_tolerance is None else rank_tolerance
        places = sorted({place for part in self.parts for place in part.places})
        self.representations = tuple(map_in_threads(self._representation, places))

    def _representation(self, place: LayerIndex) -> "RepresentationMoments":
        """Work out one representation's own moments."""
        sums = self._sums[place, place]
        first, pilot = sums.first(sums.x), sums.pilot(sums.x)
        scatter = sums.cross() - np.outer(first, first) / self.rows
        mean = pilot + first / self.rows
        std = np.sqrt(np.maximum(np.diagonal(scatter), 0) / self.rows)
        std = np.where(std <= _DEAD_STD[self.dtype] * np.maximum(np.abs(mean), 1e-30), 0.0, std)
        live = std > 0
        correlation = (scatter / self.rows)[np.ix_(live, live)] / np.outer(std[live], std[live])
        stream, layer = place
        return RepresentationMoments(
            stream=stream,
            layer=layer,
            mean=mean,
            std=std,
            live=live,
            scatter_norm=float(np.linalg.norm(scatter)),
            correlation_norm=float(np.linalg.norm(correlation)),
            whitening=whiten(correlation, self.rank_tolerance),
        )

    def _of(self, x: "RepresentationMoments", y: "RepresentationMoments") -> tuple[_PairSums, bool]:
        """The sums of a pair, and whether its cross moments are those of (y, x)."""
        a, b = (x.stream, x.layer), (y.stream, y.layer)
        if (a, b) in self._sums:
            return self._sums[a, b], False
        return self._sums[b, a].swapped, True

    def shifted_cross(self, x: "RepresentationMoments", y: "RepresentationMoments") -> Matrix:
        """Sum of x y' over rows, pilot-shifted but not centred."""
        sums, swapped = self._of(x, y)
        return sums.cross().T if swapped else sums.cross()

    def scatter(self, x: "RepresentationMoments", y: "RepresentationMoments") -> Matrix:
        """S_xy = Xc' Yc."""
        sums, _ = self._of(x, y)
        outer = np.outer(sums.first(sums.x), sums.first(sums.y))
        return self.shifted_cross(x, y) - outer / self.rows

    def correlate(
        self, scatter: Matrix, x: "RepresentationMoments", y: "RepresentationMoments"
    ) -> Matrix:
        """R_xy of S_xy, 0 for dead neurons."""
        scale = [
            np.where(representation.live, representation.std, np.inf) for representation in (x, y)
        ]
        return scatter / (self.rows * scale[0][:, None] * scale[1])

    def energies(self, x: "RepresentationMoments", y: "RepresentationMoments") -> "Energies":
        """The sums of squared norms of two representations, and those of their rows."""
        pair, _ = self._of(x, y)
        sums = pair.part.state.sums
        return Energies(
            first_x=pair.first(pair.x),
            first_y=pair.first(pair.y),
            energy_x=float(_total(sums.energy[:, pair.x])),
            energy_y=float(_total(sums.energy[:, pair.y])),
            cross=float(_total(sums.energy_cross[:, pair.x, pair.y])),
            y_energy_x=pair.energy_first(pair.y, pair.x),
            x_energy_y=pair.energy_first(pair.x, pair.y),
        )


def _pairs(part: PassMoments) -> Iterator[_PairSums]:
    """All pairs of representations of a part's tiles."""
    start = [0, *itertools.accumulate(stream.layers for stream in part.state.streams)]
    for t, tile in enumerate(part.state.tiles):
        for k, (l, m) in enumerate(tile.pairs):
            yield _PairSums(part, t, k, start[tile.a] + l, start[tile.b] + m)


@dataclasses.dataclass(frozen=True, eq=False)
class RepresentationMoments:
    """One layer of one stream: its own moments.

    `std`: population standard deviation, 0 where a neuron is dead, that is not `live`.
    `scatter_norm`: ||S_xx||_F. `correlation_norm`: ||R_xx||_F. `whitening`: of the live neurons.
    """

    stream: int
    layer: int
    mean: Vector
    std: Vector
    live: Bool[np.ndarray, " x"]
    scatter_norm: float
    correlation_norm: float
    whitening: Whitening

    @property
    def width(self) -> int:
        """Neurons, dead ones included."""
        return len(self.mean)

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
    """Pilot-shifted sums: x, y, |x|^2, |y|^2, |x|^2|y|^2, |y|^2 x and |x|^2 y."""

    first_x: Vector
    first_y: Float[np.ndarray, " y"]
    energy_x: float
    energy_y: float
    cross: float
    y_energy_x: Vector
    x_energy_y: Float[np.ndarray, " y"]


def _total(compensated) -> np.ndarray | np.float64:
    """Sum and lost digits -> float64."""
    return np.asarray(compensated, np.float64).sum(axis=0)
