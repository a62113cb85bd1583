"""Which layer pairs to accumulate in which pass, so that no pass outgrows a device's memory.

A pass reads all the audio. `pass_memory` has what it takes of a device: the state grows with the
*pairs* of representations that a pass holds, the other terms with the representations themselves,
so a pass should hold many pairs of few representations. `bin_packing` has the ways of filling
passes that are tried; the one with the fewest passes is used.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Collection, Sequence

from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.pipeline.bin_packing import Filling, candidates
from speechsim_jax.pipeline.pass_memory import IndexPair, ModelCost, PassMemory, Sizes, Triangle
from speechsim_jax.statistics.moments import ModelShape, Tile, tiles_of


@dataclasses.dataclass(frozen=True)
class NeededLayers:
    """Layers of one model that a pass needs.

    Attributes:
      model: its number.
      layers: positions among its compared layers, ascending.
      depth: number of the highest hidden state among them.
    """

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
      memory: bytes on each device; zeros for a pass of attention alone, which is not planned.
      selection: the measures that it accumulates for.
    """

    models: tuple[NeededLayers, ...]
    tiles: tuple[Tile, ...]
    memory: PassMemory
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
    """The passes, every layer pair that is compared in exactly one; `str` describes them.

    Attributes:
      passes: in order.
      shapes: layers and width of each model.
      models: what each model's forward pass takes.
      budget_bytes: memory that a pass may take on each device.
      mesh: devices along `data` and along `feature`.
      rows: of the statistics; None where not known.
      rate: FLOP/s of all devices together; None where not known.
      draws: of the null.
    """

    passes: tuple[Pass, ...]
    shapes: tuple[ModelShape, ...]
    models: tuple[ModelCost, ...]
    budget_bytes: int
    mesh: tuple[int, int]
    rows: int | None = None
    rate: float | int | None = None
    draws: int = 0

    @property
    def statistics_flops(self) -> int:
        """2 n sum of d_l d_m over all layer pairs (l, m), n rows, once more in each draw.

        Needs `rows`.
        """
        assert self.rows is not None
        return (1 + self.draws) * 2 * self.rows * sum(
            len(tile.pairs) * self.shapes[tile.a].neurons * self.shapes[tile.b].neurons
            for pass_ in self.passes
            for tile in pass_.tiles
        )  # fmt: skip

    @property
    def encoder_flops(self) -> float | int:
        """Of the forward passes of all passes; 0 where not known."""
        return sum(
            self.models[n.model].flops(n.depth) for pass_ in self.passes for n in pass_.models
        )

    @property
    def seconds(self) -> float | None:
        """Expected time of all passes; None unless rows and rate are known."""
        if self.rows is None or not self.rate:
            return None
        return (self.statistics_flops + self.encoder_flops) / self.rate

    def __str__(self) -> str:
        data, feature = self.mesh
        most = max(pass_.memory.total for pass_ in self.passes)
        count = len(self.passes)
        lines = [
            f"{f'{count} passes over the audio' if count > 1 else 'one pass'}, "
            f"data {data} x feature {feature} devices, "
            f"at most {_gb(most)} of {_gb(self.budget_bytes)} on each"
        ]
        for number, pass_ in enumerate(self.passes, start=1):
            needs = "; ".join(self._of_model(needed) for needed in pass_.models)
            pairs = sum(len(tile.pairs) for tile in pass_.tiles)
            parts = ", ".join(f"{k} {_gb(v)}" for k, v in pass_.memory._asdict().items() if v)
            lines.append(f"pass {number}: {pairs} layer pairs of {needs}; {parts}")
        if self.rows is not None:
            work = f"statistics {self.statistics_flops:.2e} FLOPs"
            if self.encoder_flops:
                work += f", encoders {self.encoder_flops:.2e} FLOPs"
            if self.seconds is not None:
                work += f", about {self.seconds / 60:.1f} min at {self.rate:.1e} FLOP/s"
            lines.append(work)
        return "\n".join(lines)

    def _of_model(self, needed: NeededLayers) -> str:
        model = self.models[needed.model]
        return f"{model.name} {_ranges([model.depths[layer] for layer in needed.layers])}"


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
    pairs: Collection[IndexPair] | None = None,
) -> Plan:
    """The fewest passes that the search finds, and of those the one with the least encoder work.

    If everything fits there is one pass, with tiles in the order of `all_tiles`.

    Args:
      shapes: layers and width of each model.
      models: what each model's forward pass takes.
      budget_bytes: memory that a pass may take on each device.
      sizes: of the buffers and batches.
      data: devices along `data`; like `rows` and `rate`, for the description only.
      rows: of the statistics.
      rate: FLOP/s of all devices together.
      division: the tiles of each pass as an earlier run divided them; the budget is then ignored.
      pairs: of representations, each with itself among them; None for all.

    Raises:
      UserError: a single layer pair does not fit; with the smallest budget that would do.
    """
    triangle = Triangle(shapes, models, sizes, pairs)
    if division is not None:
        passes = tuple(_as_divided(triangle, tiles) for tiles in division)
    else:
        passes = _fewest_passes(triangle, budget_bytes)
    mesh = (data, sizes.feature)
    return Plan(passes, shapes, tuple(models), budget_bytes, mesh, rows, rate, sizes.draws)


def _fewest_passes(triangle: Triangle, budget_bytes: int) -> tuple[Pass, ...]:
    """One pass where everything fits, else the best of the candidates."""
    least = triangle.least_budget()
    if budget_bytes < least:
        raise UserError(
            f"{budget_bytes} bytes of memory on each device are too few for one pair of layers; "
            f"give at least {least} ({_gb(least)}), or use smaller batches and rows_per_update"
        )
    single = Filling(triangle, budget_bytes)
    if all(single.add(pair) for pair in triangle.pairs):
        return (_pass_of(triangle, single, tiles_of(triangle.shapes, triangle.pairs)),)
    badness = functools.partial(_badness, triangle.models)
    fillings = min(candidates(triangle, budget_bytes), key=badness)
    return tuple(_pass_of(triangle, f, tiles_of(triangle.shapes, f.pairs)) for f in fillings)


def _pass_of(triangle: Triangle, filling: Filling, tiles: tuple[Tile, ...]) -> Pass:
    """The pass of a filling, with these tiles."""
    models = []
    indices = [
        triangle.indices[representation] for representation in sorted(filling.load.representations)
    ]
    for a, group in itertools.groupby(indices, key=lambda index: index[0]):
        layers = tuple(layer for _, layer in group)
        models.append(NeededLayers(a, layers, filling.load.depths[a]))
    return Pass(tuple(models), tiles, triangle.memory(filling.load))


def _as_divided(triangle: Triangle, tiles: Sequence[Tile]) -> Pass:
    """The pass of these tiles."""
    number = {index: k for k, index in enumerate(triangle.indices)}
    filling = Filling(triangle, sys.maxsize)
    for tile in tiles:
        for l, m in tile.pairs:
            filling.add((number[tile.a, l], number[tile.b, m]))
    return _pass_of(triangle, filling, tuple(tiles))


def _badness(models: Sequence[ModelCost], fillings: Sequence[Filling]) -> tuple[float | int, ...]:
    """Passes; then FLOPs of the encoders; then layers they compute, if FLOPs are not known."""
    needed = [(m, d) for f in fillings for m, d in zip(models, f.load.depths) if d >= 0]
    return len(fillings), sum(m.flops(d) for m, d in needed), sum(1 + d for _, d in needed)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-4,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
