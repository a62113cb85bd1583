"""Which layer pairs to accumulate in which pass, so that no pass outgrows a device's memory.

A pass reads all the audio. It needs, on every device,

    memory = state + parameters + buffers + hidden + max(forward, update) + attention

a term a function below. The state grows with the *pairs* of representations that a pass holds, the
other terms with the representations themselves, so a pass should hold many pairs of few
representations. `packing` has the ways of filling passes that are tried; the one with the fewest
passes is kept.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.pipeline.bin_packing import Filling, IndexPair, candidates
from speechsim_jax.statistics.moments import ModelShape, Tile, all_tiles

# A count of rows is two int32 (`statistics.moments`).
_COUNT_BYTES = 8
_BETWEEN_BUFFERS = 64 * 64


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What a model's forward pass takes, its hidden states aside.

    `depths`: for each layer of the model's stream, the number of its hidden state, that is of the
    transformer layers below it; rising. `front_bytes`, `layer_bytes`: parameters of all that makes
    hidden state 0, and of one transformer layer. `workspace_bytes`: temporaries of one forward pass
    on one device. `front_flops`, `layer_flops`: for one pass over the audio, 0 where not known.
    """

    name: str
    depths: tuple[int, ...]
    front_bytes: int
    layer_bytes: int
    workspace_bytes: int = 0
    front_flops: float | int = 0
    layer_flops: float | int = 0

    def flops(self, depth: int) -> float | int:
        """Of one pass that needs hidden states up to number `depth`."""
        return self.front_flops + depth * self.layer_flops


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the terms of the memory are multiples of, on each device.

    `feature`: devices that share one state. `rows_per_update`: of a device's row buffer. `frames`:
    of the largest batch, padding and fillers included. `itemsize`: bytes of a number of the state;
    rows are float32. `attention`: what the attention level takes beside all this, in every pass.
    """

    rows_per_update: int
    frames: int
    feature: int = 1
    itemsize: int = 4
    row_itemsize: int = 4
    attention: int = 0


class Bytes(NamedTuple):
    """A pass's memory on each device, term by term."""

    state: int
    parameters: int
    buffers: int
    hidden: int
    workspace: int
    attention: int = 0

    @property
    def total(self) -> int:
        """All of it, at its peak."""
        return sum(self)


@dataclasses.dataclass(frozen=True)
class Needed:
    """Layers of one model that a pass needs, as places in its stream, and the depth this takes."""

    model: int
    layers: tuple[int, ...]
    depth: int


_NOTHING = MeasureSelection(())


@dataclasses.dataclass(frozen=True)
class Pass:
    """One reading of the audio.

    Attributes:
      models: the models and layers that it runs.
      tiles: layer pairs that are accumulated, in numbers among all models and layers.
      bytes: memory on each device.
      selection: the measures that it accumulates for.
    """

    models: tuple[Needed, ...]
    tiles: tuple[Tile, ...]
    bytes: Bytes
    selection: MeasureSelection = _NOTHING

    @property
    def local_tiles(self) -> tuple[Tile, ...]:
        """The same tiles, numbered within `models` and their `layers`."""
        model_at = {needed.model: k for k, needed in enumerate(self.models)}
        layer_at = [{l: k for k, l in enumerate(needed.layers)} for needed in self.models]
        tiles = []
        for tile in self.tiles:
            a, b = model_at[tile.a], model_at[tile.b]
            pairs = tuple((layer_at[a][l], layer_at[b][m]) for l, m in tile.pairs)
            tiles.append(Tile(a, b, pairs))
        return tuple(tiles)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The passes, every layer pair of every model pair in exactly one; `str` tells a user of them.

    `rows`: of the statistics, and `rate`: FLOP/s of all devices together, None where not known.
    """

    passes: tuple[Pass, ...]
    shapes: tuple[ModelShape, ...]
    models: tuple[ModelCost, ...]
    budget_bytes: int
    mesh: tuple[int, int]
    rows: int | None = None
    rate: float | int | None = None

    @property
    def statistics_flops(self) -> int:
        """2 n sum of d_l d_m over all layer pairs (l, m), n rows; needs `rows`."""
        assert self.rows is not None
        return 2 * self.rows * sum(
            len(tile.pairs) * self.shapes[tile.a].neurons * self.shapes[tile.b].neurons
            for one in self.passes
            for tile in one.tiles
        )  # fmt: skip

    @property
    def encoder_flops(self) -> float | int:
        """Of the forward passes of all passes; 0 where not known."""
        return sum(self.models[n.model].flops(n.depth) for one in self.passes for n in one.models)

    @property
    def seconds(self) -> float | None:
        """Expected time of all passes; None unless rows and rate are known."""
        if self.rows is None or not self.rate:
            return None
        return (self.statistics_flops + self.encoder_flops) / self.rate

    def __str__(self) -> str:
        data, feature = self.mesh
        most = max(one.bytes.total for one in self.passes)
        count = len(self.passes)
        lines = [
            f"{f'{count} passes over the audio' if count > 1 else 'one pass'}, "
            f"data {data} x feature {feature} devices, "
            f"at most {_gb(most)} of {_gb(self.budget_bytes)} on each"
        ]
        for number, one in enumerate(self.passes, start=1):
            needs = "; ".join(self._of_model(needed) for needed in one.models)
            pairs = sum(len(tile.pairs) for tile in one.tiles)
            parts = ", ".join(f"{k} {_gb(v)}" for k, v in one.bytes._asdict().items() if v)
            lines.append(f"pass {number}: {pairs} layer pairs of {needs}; {parts}")
        if self.rows is not None:
            work = f"statistics {self.statistics_flops:.2e} FLOPs"
            if self.encoder_flops:
                work += f", encoders {self.encoder_flops:.2e} FLOPs"
            if self.seconds is not None:
                work += f", about {self.seconds / 60:.1f} min at {self.rate:.1e} FLOP/s"
            lines.append(work)
        return "\n".join(lines)

    def _of_model(self, needed: Needed) -> str:
        model = self.models[needed.model]
        return f"{model.name} {_ranges([model.depths[layer] for layer in needed.layers])}"


class _Load(NamedTuple):
    """All that memory depends on, of the pairs a pass holds.

    `depths`: by model, -1 for one that is not needed. `neurons`: of all representations. `widest`:
    neurons of the widest representation. `cells`: products x y of all pairs, a device's share of
    each.
    """

    representations: frozenset[int]
    depths: tuple[int, ...]
    neurons: int = 0
    widest: int = 0
    cells: int = 0


def state_bytes(load: _Load, sizes: Sizes) -> int:
    """`moments.Moments`: count, reference shift and the compensated sums, all in two parts.

    cross [x / feature, y] of every pair; first and reference shift [neuron]; energy
    [representation]; energy_cross [representation, representation]; energy_first [representation,
    neuron] (`moments.zero`).
    """
    n = len(load.representations)
    numbers = load.cells + load.neurons * (n + 2) + n + n**2
    return _COUNT_BYTES + 2 * sizes.itemsize * numbers


def parameter_bytes(load: _Load, models: Sequence[ModelCost]) -> int:
    """Of the models that are needed, up to the highest layer (`models.encoder.Transformer`)."""
    needed = zip(models, load.depths)
    return sum(m.front_bytes + depth * m.layer_bytes for m, depth in needed if depth >= 0)


def buffer_bytes(load: _Load, sizes: Sizes) -> int:
    """Row buffers [layer, row, neuron] of every model (`rows.MomentsStream`)."""
    return sizes.rows_per_update * load.neurons * sizes.row_itemsize


def hidden_bytes(load: _Load, sizes: Sizes) -> int:
    """Hidden states of one batch, of all models at once (`reading.read_through`)."""
    return sizes.frames * load.neurons * sizes.row_itemsize


def forward_bytes(load: _Load, models: Sequence[ModelCost]) -> int:
    """Temporaries of a forward pass; models run one after the other (`reading.read_through`)."""
    return max(m.workspace_bytes for m, depth in zip(models, load.depths) if depth >= 0)


def update_bytes(load: _Load, sizes: Sizes) -> int:
    """Temporaries of `moments.update`, and of `programs` where devices share a state.

    Rows of all these devices: gathered; shifted; of one layer of two shapes, taken out. Energies
    [representation, row], their sums with the rows [representation, neuron], the small sums. A
    product, and both parts that it is added to; and what XLA leaves free between some dozens of
    buffers, which start at multiples of 64 bytes. (4096 rows of 13 x 768 and 25 x 1024 neurons:
    0.635 GB, as by XLA's own count.)
    """
    rows, n = sizes.feature * sizes.rows_per_update, len(load.representations)
    gathered = rows * load.neurons * sizes.row_itemsize if sizes.feature > 1 else 0
    made = rows * (load.neurons + 2 * load.widest + n) + (n + 2) * load.neurons + 2 * n**2
    product = 3 * load.widest * -(-load.widest // sizes.feature)
    return gathered + sizes.itemsize * (made + product) + _BETWEEN_BUFFERS


class _Triangle:
    """All pairs of representations, and what a pass that holds some of them takes."""

    def __init__(self, shapes: tuple[ModelShape, ...], models: Sequence[ModelCost], sizes: Sizes):
        self.shapes, self.models, self.sizes = shapes, models, sizes
        self.indices = [(a, l) for a, stream in enumerate(shapes) for l in range(stream.layers)]
        self.widths = [shapes[a].neurons for a, _ in self.indices]
        self.count = len(self.indices)
        self.pairs = list(itertools.combinations_with_replacement(range(self.count), 2))
        self.nothing = _Load(frozenset(), (-1,) * len(shapes))

    def memory(self, load: _Load) -> Bytes:
        """The memory of a pass."""
        return Bytes(
            state=state_bytes(load, self.sizes),
            parameters=parameter_bytes(load, self.models),
            buffers=buffer_bytes(load, self.sizes),
            hidden=hidden_bytes(load, self.sizes),
            workspace=max(forward_bytes(load, self.models), update_bytes(load, self.sizes)),
            attention=self.sizes.attention,
        )

    def total(self, load: _Load) -> int:
        """The memory of a pass in all."""
        return self.memory(load).total

    def with_pair(self, load: _Load, pair: IndexPair) -> _Load:
        """The load of a pass that takes one pair more."""
        i, j = pair
        cells = load.cells + -(-self.widths[i] // self.sizes.feature) * self.widths[j]
        new = {i, j} - load.representations
        if not new:
            return load._replace(cells=cells)
        depths = list(load.depths)
        for a, layer in (self.indices[representation] for representation in new):
            depths[a] = max(depths[a], self.models[a].depths[layer])
        widths = [self.widths[representation] for representation in new]
        neurons, widest = load.neurons + sum(widths), max(load.widest, *widths)
        return _Load(load.representations | new, tuple(depths), neurons, widest, cells)

    def least_budget(self) -> int:
        """With less, some pair fits nowhere; with as much, a pass for every pair does."""
        return max(self.total(self.with_pair(self.nothing, pair)) for pair in self.pairs)


def plan(
    shapes: tuple[ModelShape, ...],
    models: Sequence[ModelCost],
    budget_bytes: int,
    sizes: Sizes,
    *,
    data: int = 1,
    rows: int | None = None,
    rate: float | int | None = None,
    division: Sequence[Sequence[Tile]] | None = None,
) -> Plan:
    """The fewest passes that the search finds, and of those the one with the least encoder work.

    `budget_bytes`: of each device. If everything fits there is one pass with `all_tiles`, in its
    order. `data`, `rows` and `rate` are for what `str` says only. `division`: the tiles of each
    pass as an earlier run had them, whatever the budget. Raises UserError, with the smallest budget
    that would do, if a single layer pair does not fit.
    """
    triangle = _Triangle(shapes, models, sizes)
    if division is not None:
        passes = tuple(_as_divided(triangle, tiles) for tiles in division)
        return Plan(passes, shapes, tuple(models), budget_bytes, (data, sizes.feature), rows, rate)
    least = triangle.least_budget()
    if budget_bytes < least:
        raise UserError(
            f"{budget_bytes} bytes of memory on each device are too few for one pair of layers; "
            f"give at least {least} ({_gb(least)}), or use smaller batches and rows_per_update"
        )
    whole = Filling(triangle, budget_bytes)
    if all(whole.take(pair) for pair in triangle.pairs):
        passes = (_pass_of(triangle, whole, all_tiles(shapes)),)
    else:
        badness = functools.partial(_badness, models)
        fillings = min(candidates(triangle, budget_bytes), key=badness)
        passes = tuple(_pass_of(triangle, one, _tiles_of(triangle, one.pairs)) for one in fillings)
    return Plan(passes, shapes, tuple(models), budget_bytes, (data, sizes.feature), rows, rate)


def _pass_of(triangle: _Triangle, filling: Filling, tiles: tuple[Tile, ...]) -> Pass:
    """The finished record."""
    models = []
    indices = [
        triangle.indices[representation] for representation in sorted(filling.load.representations)
    ]
    for a, group in itertools.groupby(indices, key=lambda index: index[0]):
        layers = tuple(layer for _, layer in group)
        models.append(Needed(a, layers, filling.load.depths[a]))
    return Pass(tuple(models), tiles, triangle.memory(filling.load))


def _as_divided(triangle: _Triangle, tiles: Sequence[Tile]) -> Pass:
    """The pass of these tiles."""
    number = {place: k for k, place in enumerate(triangle.indices)}
    whole = Filling(triangle, sys.maxsize)
    for tile in tiles:
        for l, m in tile.pairs:
            whole.take((number[tile.a, l], number[tile.b, m]))
    return _pass_of(triangle, whole, tuple(tiles))


def _tiles_of(triangle: _Triangle, pairs: Iterable[IndexPair]) -> tuple[Tile, ...]:
    """Pairs of representations as tiles, in the order of `all_tiles`."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, j in sorted(pairs):
        (a, l), (b, m) = triangle.indices[i], triangle.indices[j]
        found.setdefault((a, b), []).append((l, m))
    return tuple(Tile(a, b, tuple(found[a, b])) for a, b in sorted(found))


def _badness(models: Sequence[ModelCost], fillings: Sequence[Filling]) -> tuple[float | int, ...]:
    """Passes; then FLOPs of the encoders; then layers they compute, if FLOPs are not known."""
    needed = [(m, d) for one in fillings for m, d in zip(models, one.load.depths) if d >= 0]
    return len(fillings), sum(m.flops(d) for m, d in needed), sum(1 + d for _, d in needed)


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as 0-4,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
