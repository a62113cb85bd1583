"""Moments at the end of a pass: as a stored state, and finished for the measures in float64.

Names follow the literature: with X [row, neuron] centred, S_xy = X'Y, R_xy its correlations.
Decompositions are numpy's: scipy's hold Python's lock, so threads would wait for each other.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Bool, Float

from speechsim_jax.statistics import moments, moments_merge
from speechsim_jax.statistics.accumulator import LayerIndex, all_layers
from speechsim_jax.statistics.linalg import Matrix, Vector, Whitening, map_in_threads, svd, whiten
from speechsim_jax.statistics.moments import Compensated, ModelShape, Moments, Reference, Tile

# Relative to the mean: a float32 neuron that varies less is rounding noise. In float64 a constant
# neuron has a variance of exactly 0, since the reference shift takes its value.
_DEAD_STD = {"float32": 1e-6, "float64": 0.0}
# Relative to the mean's distance from the reference shift, about 1 for what varies. A neuron may be
# constant in one fold, at another value than the shift; then all terms of a product are equal and
# round to the same side. Of 4096 float32 rows that is at most the root of 4096 / 2^24, 1.6e-2;
# measured 5.7e-3.
_DEAD_SHIFT = {"float32": 2e-2, "float64": 1e-5}


@dataclasses.dataclass(frozen=True, eq=False)
class MomentsState:
    """The moments of some layer pairs at the end of a pass: a `State`.

    Cross moments are read pair by pair, so those of many passes need not be in memory together.

    Attributes:
      layers: index of each representation among all that are compared, ascending.
      shapes: layers and width of each model of this pass.
      tiles: its layer pairs.
      block: (tile, pair) -> cross moments of that pair, [part, x, y].
      rest: -> the state without its cross moments; of a merged state once every block was read.
    """

    kind: ClassVar[str] = "moments"

    layers: tuple[LayerIndex, ...]
    shapes: tuple[ModelShape, ...]
    tiles: tuple[Tile, ...]
    block: Callable[[int, int], Compensated]
    rest: Callable[[], Moments]

    @classmethod
    def of(cls, state: Moments, layers: tuple[LayerIndex, ...] | None = None) -> "MomentsState":
        """The state of moments in memory.

        Args:
          state: the moments.
          layers: index of each representation; by default all layers of all models are compared.
        """
        layers = all_layers(state.shapes) if layers is None else layers
        return cls(
            layers,
            state.shapes,
            state.tiles,
            block=lambda tile, pair: _block(state.sums.cross[tile], pair),
            rest=lambda: jax.device_get(moments_merge.without_cross(state)),
        )

    @functools.cached_property
    def small(self) -> Moments:
        """The state without its cross moments."""
        return self.rest()

    def cross(self, tile: int, pair: int) -> Matrix:
        """Cross moments of one pair in float64, lost digits added."""
        return np.asarray(self.block(tile, pair)).sum(axis=0, dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write cross-TILE.npy [pair, 1, x, y] and the other sums, in float64."""
        for t, tile in enumerate(self.tiles):
            blocks = (self.cross(t, k)[None] for k in range(len(tile.pairs)))
            _write_blocks(folder / f"cross-{t}.npy", len(tile.pairs), blocks)
        for number, leaf in enumerate(jax.tree.leaves(moments_merge.on_host(self.small))):
            np.save(folder / f"small-{number}.npy", leaf)
        record = {
            "layers": self.layers,
            "shapes": [dataclasses.astuple(shape) for shape in self.shapes],
            "tiles": [dataclasses.astuple(tile) for tile in self.tiles],
        }
        (folder / "state.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "MomentsState":
        """Read what `save` wrote; cross moments are read on demand."""
        record = json.loads((folder / "state.json").read_text())
        shapes = tuple(ModelShape(*shape) for shape in record["shapes"])
        tiles = tuple(map(Tile.from_json, record["tiles"]))
        structure = jax.tree.structure(moments_merge.without_cross(moments.zero(shapes, ())))
        leaves = [np.load(folder / f"small-{k}.npy") for k in range(structure.num_leaves)]
        small = dataclasses.replace(jax.tree.unflatten(structure, leaves), tiles=tiles)

        @functools.cache
        def layout(tile: int) -> tuple[tuple[int, ...], int]:
            """The shape of a block, and the offset of the first in the file."""
            blocks = np.load(folder / f"cross-{tile}.npy", mmap_mode="r")
            return blocks.shape[1:], blocks.offset

        def block(tile: int, pair: int) -> np.ndarray:
            # Read, not mapped: mapped pages count as memory of the process.
            shape, start = layout(tile)
            count = math.prod(shape)
            path = folder / f"cross-{tile}.npy"
            return np.fromfile(path, "<f8", count, offset=start + 8 * count * pair).reshape(shape)

        layers = tuple((model, layer) for model, layer in record["layers"])
        return cls(layers, shapes, tiles, block, lambda: small)

    def merge(
        self, others: Sequence["MomentsState"], reference: Reference | None = None
    ) -> "MomentsState":
        """The moments over the rows of all, re-expressed about one reference shift pair by pair.

        Lazy: it can be saved once.

        Args:
          others: states over other rows.
          reference: the reference shift; by default that of the first state with rows.

        Raises:
          UserError: states of other models, layer pairs or precision.
        """
        states = [self, *others]
        merging = moments_merge.Merging([state.small for state in states], reference)

        def block(tile: int, pair: int) -> np.ndarray:
            return merging.block(tile, pair, [s.cross(tile, pair) for s in states])[None]

        return MomentsState(self.layers, merging.shapes, merging.tiles, block, merging.rest)

    def finish(
        self, others: Sequence["MomentsState"] = (), rank_tolerance: float | None = None
    ) -> "FinishedMoments":
        """The moments of the layer pairs of this and the other passes."""
        return FinishedMoments([self, *others], rank_tolerance)


def _block(blocks: moments.Values, number: int) -> moments.Values:
    """One of several blocks; on a single CPU a view, as JAX compiles a program for an index."""
    if isinstance(blocks, np.ndarray):
        return blocks[number]
    devices = list(blocks.devices())
    of_one_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    return np.asarray(blocks)[number] if of_one_cpu else blocks[number]


def without_dead(std: Vector, mean: Vector, dtype: str) -> Vector:
    """The standard deviations, 0 for neurons that vary by no more than the precision of rows.

    Args:
      std: of each neuron.
      mean: of each neuron.
      dtype: of the rows.
    """
    return np.where(std <= _DEAD_STD[dtype] * np.maximum(np.abs(mean), 1e-30), 0.0, std)


def _write_blocks(path: Path, count: int, blocks: Iterator[np.ndarray]) -> None:
    """Write `count` arrays of one shape into one .npy file, one at a time."""
    with path.open("wb") as file:
        for number, block in enumerate(blocks):
            if number == 0:
                header = {"descr": "<f8", "fortran_order": False, "shape": (count, *block.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block, "<f8").data)


@dataclasses.dataclass(frozen=True)
class _PairSums:
    """Where the sums of a pair of representations are.

    Attributes:
      state: of the pass that has the pair.
      tile, pair: its cross moments.
      x, y: the representations, numbered within the pass.
    """

    state: MomentsState
    tile: int
    pair: int
    x: int
    y: int

    @property
    def swapped(self) -> "_PairSums":
        return dataclasses.replace(self, x=self.y, y=self.x)

    def cross(self) -> Matrix:
        """The cross moments as stored, even if x and y are swapped."""
        return np.asarray(moments.total(self.state.block(self.tile, self.pair)))

    def first(self, representation: int) -> Vector:
        model, layer = self._local(representation)
        return np.asarray(moments.total(self.state.small.sums.first[model][:, layer]))

    def reference(self, representation: int) -> Vector:
        model, layer = self._local(representation)
        return np.asarray(moments.total(self.state.small.reference[model][:, layer]))

    def energy_first(self, of: int, representation: int) -> Vector:
        """Sum of |of|^2 times the representation's rows."""
        model, layer = self._local(representation)
        return np.asarray(moments.total(self.state.small.sums.energy_first[model][:, of, layer]))

    def _local(self, representation: int) -> LayerIndex:
        for model, shape in enumerate(self.state.shapes):
            if representation < shape.layers:
                return model, representation
            representation -= shape.layers
        raise IndexError(representation)


class FinishedMoments:
    """Means, scatters and correlations of all representations and pairs, in float64.

    Everything about a pair comes from the one pass that has it, so the reference shifts of passes
    may differ. `representations` are those with products with themselves, by index.

    Args:
      states: moments in memory, or those of one or several passes over the same rows.
      rank_tolerance: tau, the smallest eigenvalue that whitening keeps, relative to the largest;
        by default 1e-6 for float32 statistics and width * 2.2e-16 for float64. Post-norm layers
        are exactly singular, and directions of rounding noise would count as fully correlated.
    """

    def __init__(
        self, states: Moments | Sequence[MomentsState], rank_tolerance: float | None = None
    ):
        self.states = (MomentsState.of(states),) if isinstance(states, Moments) else tuple(states)
        first = self.states[0].small
        self.rows = moments.count_of(first)
        self.dtype = str(first.reference[0].dtype)
        self._sums = {
            (state.layers[pair.x], state.layers[pair.y]): pair
            for state in self.states
            for pair in _pairs(state)
        }
        widest = max(shape.neurons for state in self.states for shape in state.shapes)
        default = 1e-6 if self.dtype == "float32" else widest * 2.2e-16
        self.rank_tolerance = default if rank_tolerance is None else rank_tolerance
        layers = sorted(x for x, y in self._sums if x == y)
        self.representations = tuple(map_in_threads(self._representation, layers))

    def _representation(self, index: LayerIndex) -> "RepresentationMoments":
        """The moments of one representation by itself."""
        sums = self._sums[index, index]
        first, reference = sums.first(sums.x), sums.reference(sums.x)
        scatter = sums.cross() - np.outer(first, first) / self.rows
        shift = first / self.rows
        mean = reference + shift
        std = np.sqrt(np.maximum(np.diagonal(scatter), 0) / self.rows)
        std = without_dead(std, mean, self.dtype)
        std = np.where(std <= _DEAD_SHIFT[self.dtype] * np.abs(shift), 0.0, std)
        rows = self.rows  # not self: a cycle would keep the statistics on the devices
        return RepresentationMoments(
            index=index,
            mean=mean,
            std=std,
            live=std > 0,
            scatter_norm=float(np.linalg.norm(scatter)),
            rows=self.rows,
            rank_tolerance=self.rank_tolerance,
            scatter=lambda: sums.cross() - np.outer(first, first) / rows,
        )

    @property
    def degrees(self) -> int:
        """Rows less the number of directions that were fitted to them, the mean among these."""
        return self.rows - 1

    def unbiased_squared_norm(
        self, x: "RepresentationMoments", y: "RepresentationMoments"
    ) -> float:
        """An estimate of ||C_xy||_F^2, C the covariances, without bias: HSIC with linear kernels.

        Song et al.'s U-statistic (2012, JMLR 13, equation 5); rows are shifted by the reference
        shift. With sx = sum x, C = sum x y', qx = sum |x|^2, p = sum |x|^2 |y|^2, vy = sum |x|^2 y:
        tr = |C|^2 - p; a = |sx|^2 - qx; b = |sy|^2 - qy; m = sx'C sy - vy.sy - vx.sx + p;
        [tr + a b / ((n-1)(n-2)) - 2 m / (n-2)] / (n (n-3)).
        """
        n = self.rows
        sums = self.energies(x, y)
        sx, sy = sums.first_x, sums.first_y
        cross = self.shifted_cross(x, y)
        trace = float(np.sum(np.square(cross))) - sums.cross
        a, b = sx @ sx - sums.energy_x, sy @ sy - sums.energy_y
        middle = sx @ cross @ sy - sums.x_energy_y @ sy - sums.y_energy_x @ sx + sums.cross
        return float((trace + a * b / ((n - 1) * (n - 2)) - 2 * middle / (n - 2)) / (n * (n - 3)))

    def has(self, x: "RepresentationMoments", y: "RepresentationMoments") -> bool:
        """Whether there are cross moments of a pair."""
        return (x.index, y.index) in self._sums or (y.index, x.index) in self._sums

    def lend_own(self, other: "FinishedMoments", indices: Mapping[LayerIndex, LayerIndex]) -> None:
        """Give another the sums of representations with themselves that it lacks.

        Args:
          other: moments of the same rows of these representations.
          indices: of a representation here -> there.
        """
        for here, there in indices.items():
            other._sums.setdefault((there, there), self._sums[here, here])

    def _of(self, x: "RepresentationMoments", y: "RepresentationMoments") -> tuple[_PairSums, bool]:
        """The sums of a pair, and whether its cross moments are those of (y, x)."""
        if (x.index, y.index) in self._sums:
            return self._sums[x.index, y.index], False
        return self._sums[y.index, x.index].swapped, True

    def shifted_cross(self, x: "RepresentationMoments", y: "RepresentationMoments") -> Matrix:
        """Sum of x y' over rows, shifted but not centred."""
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
        sums = pair.state.small.sums
        return Energies(
            first_x=pair.first(pair.x),
            first_y=pair.first(pair.y),
            energy_x=float(moments.total(sums.energy[:, pair.x])),
            energy_y=float(moments.total(sums.energy[:, pair.y])),
            cross=float(moments.total(sums.energy_cross[:, pair.x, pair.y])),
            y_energy_x=pair.energy_first(pair.y, pair.x),
            x_energy_y=pair.energy_first(pair.x, pair.y),
        )


def _pairs(state: MomentsState) -> Iterator[_PairSums]:
    """All pairs of representations of a state's tiles."""
    start = moments.first_representations(state.shapes)
    for t, tile in enumerate(state.tiles):
        for k, (l, m) in enumerate(tile.pairs):
            yield _PairSums(state, t, k, start[tile.a] + l, start[tile.b] + m)


@dataclasses.dataclass(frozen=True, eq=False)
class RepresentationMoments:
    """The moments of one representation by itself.

    Attributes:
      index: model and layer, as positions among all that are compared.
      mean: of each neuron.
      std: population standard deviation, 0 for a dead neuron.
      live: neurons that are not dead.
      scatter_norm: ||S_xx||_F.
      rows: n.
      rank_tolerance: of the whitening.
      scatter: -> S_xx.
    """

    index: LayerIndex
    mean: Vector
    std: Vector
    live: Bool[np.ndarray, " x"]
    scatter_norm: float
    rows: int
    rank_tolerance: float | None
    scatter: Callable[[], Float[np.ndarray, "x x"]]

    def _correlation(self) -> Float[np.ndarray, "live live"]:
        """R_xx of the live neurons."""
        live = self.live
        of_live = (self.scatter() / self.rows)[np.ix_(live, live)]
        return of_live / np.outer(self.std[live], self.std[live])

    @functools.cached_property
    def correlation_norm(self) -> float:
        """||R_xx||_F."""
        return float(np.linalg.norm(self._correlation()))

    @functools.cached_property
    def whitening(self) -> Whitening:
        """Of the live neurons; the decomposition that takes longest."""
        tolerance = self.rank_tolerance
        assert tolerance is not None
        return whiten(self._correlation(), tolerance)

    @property
    def width(self) -> int:
        """Neurons, dead ones included."""
        return len(self.mean)

    @functools.cached_property
    def centred_whitening(self) -> Whitening:
        """The same subspace in the axes of the covariance D R D of the live neurons, D = diag(std).

        With D R D = P values P', W = D P / sqrt(values) applies to z-scored neurons, too. P and
        values come from the SVD of D V sqrt(values of R), without directions below the rank
        tolerance.
        """
        scale = self.std[self.live][:, None]
        factor = scale * self.whitening.vectors * np.sqrt(self.whitening.values)
        axes, sizes, _ = svd(factor)
        return Whitening(scale * axes, np.square(sizes))


@dataclasses.dataclass(frozen=True)
class Energies:
    """Sums over rows about the reference shifts.

    Attributes:
      first_x, first_y: of x and of y.
      energy_x, energy_y: of |x|^2 and of |y|^2.
      cross: of |x|^2 |y|^2.
      y_energy_x: of |y|^2 x.
      x_energy_y: of |x|^2 y.
    """

    first_x: Vector
    first_y: Float[np.ndarray, " y"]
    energy_x: float
    energy_y: float
    cross: float
    y_energy_x: Vector
    x_energy_y: Float[np.ndarray, " y"]
