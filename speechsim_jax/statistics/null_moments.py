"""Moments of rows that do not belong together, for the score that two representations have anyway.

A *draw* pairs the rows of x with other rows of y. Its moments are `moments` of twice the models: as
they are (x), and once more with the other rows (y). Of the products within x or within y only the
diagonal pairs are added up.

In the opposite order, y's rows are kept and x's are replaced, by the inverse of the same pairing,
which is as likely. So a draw needs no more products than the moments do.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.accumulator import BatchRows, EncodedBatch, LayerIndex, Snapshot
from speechsim_jax.statistics.moments import ModelShape, Tile
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import (
    FinishedMoments,
    MomentsState,
    RepresentationMoments,
)
from speechsim_jax.statistics.swapped_moments import (
    SwappedPairs,
    SwapPlan,
    WaitingRows,
    paired,
)

# Added to the number of a model where it has the other rows; there are fewer models.
_OTHER_ROWS = 2**20

_log = logging.getLogger(__name__)

Pairing = Callable[[BatchRows, int], Int64[np.ndarray, "2 row"]]
"""(rows of a batch, draw) -> positions of x's rows and of those of y that they are paired with."""


def paired_shapes(shapes: tuple[ModelShape, ...]) -> tuple[ModelShape, ...]:
    """The models of a draw: all of x, then all of y."""
    return (*shapes, *shapes)


def paired_tiles(tiles: Sequence[Tile], models: int, own: str) -> tuple[Tile, ...]:
    """The layer pairs of a draw: x with y, and the products of layers with themselves.

    Args:
      tiles: of the pass, numbered within its models.
      models: of the pass.
      own: of which sides products with themselves are added up: "xy", "x" or "".
    """
    paired = [Tile(tile.a, models + tile.b, tile.pairs) for tile in tiles]
    for offset in [offset for side, offset in (("x", 0), ("y", models)) if side in own]:
        for tile in tiles:
            diagonal = tuple((l, m) for l, m in tile.pairs if tile.a == tile.b and l == m)
            if diagonal:
                paired.append(Tile(tile.a + offset, tile.b + offset, diagonal))
    return tuple(paired)


def paired_layers(layers: Sequence[LayerIndex]) -> tuple[LayerIndex, ...]:
    """The index of each representation of a draw."""
    return (*layers, *map(_other_rows, layers))


def _other_rows(index: LayerIndex) -> LayerIndex:
    model, layer = index
    return model + _OTHER_ROWS, layer


@dataclasses.dataclass(frozen=True, eq=False)
class NullMoments:
    """The moments of all draws at the end of a pass: a `State`.

    Attributes:
      draws: of each; those after the first may lack the products of x and y with themselves, which
        are then those of the first.
      waiting: rows to be paired with some of other shards.
    """

    kind: ClassVar[str] = "null_moments"

    draws: tuple[MomentsState, ...]
    waiting: WaitingRows = dataclasses.field(default_factory=WaitingRows)

    def save(self, folder: Path) -> None:
        """Write each draw into a folder, 0, 1, ..., and what waits into another."""
        (folder / "waiting").mkdir()
        self.waiting.save(folder / "waiting")
        for number, draw in enumerate(self.draws):
            (folder / str(number)).mkdir()
            draw.save(folder / str(number))
        (folder / "draws.json").write_text(json.dumps(len(self.draws)))

    @classmethod
    def load(cls, folder: Path) -> "NullMoments":
        """Read what `save` wrote."""
        count = json.loads((folder / "draws.json").read_text())
        draws = tuple(MomentsState.load(folder / str(number)) for number in range(count))
        return cls(draws, WaitingRows.load(folder / "waiting"))

    def merge(self, others: Sequence["NullMoments"]) -> "NullMoments":
        """The moments over the rows of all, draw by draw. Lazy: it can be saved once.

        What waits in one for rows that wait in another is paired.

        Raises:
          UserError: states of other models, layer pairs or precision, or of more or fewer draws.
        """
        states = [self, *others]
        if len({len(state.draws) for state in states}) > 1:
            raise UserError("nulls of different numbers of draws cannot be merged (null_draws)")
        waiting = self.waiting.union([state.waiting for state in others])
        complete = waiting.complete(waiting.pairs)
        draws = []
        for number, (first, *rest) in enumerate(
            zip(*(state.draws for state in states), strict=True)
        ):
            if pairs := [pair for pair in complete if pair[0] == number]:
                rest.append(paired(first, waiting, pairs))
            draws.append(first.merge(rest))
        waiting.drop(complete)
        return NullMoments(tuple(draws), waiting)

    def finish(
        self, others: Sequence["NullMoments"] = (), rank_tolerance: float | None = None
    ) -> "FinishedNull":
        """The moments of the layer pairs of this and the other passes."""
        states = [self, *others]
        rows = [moments.count_of(draw.small) for draw in self.draws]
        if min(rows) < 2:
            _log.warning("no null: %d rows can be paired with others of another time", min(rows))
            return FinishedNull(())
        draws: list[NullDraw] = []
        for of_draw in zip(*(state.draws for state in states), strict=True):
            finished = FinishedMoments(of_draw, rank_tolerance)
            own = finished.representations
            x = tuple(r for r in own if r.index[0] < _OTHER_ROWS)
            y = tuple(r for r in own if r.index[0] >= _OTHER_ROWS)
            if not y:  # the same rows in another order
                first = draws[0].moments if draws else finished
                x = first.representations
                y = tuple(dataclasses.replace(r, index=_other_rows(r.index)) for r in x)
                first.lend_own(finished, {r.index: r.index for r in x})
                first.lend_own(finished, {r.index: _other_rows(r.index) for r in x})
            draws.append(NullDraw(finished, x, y))
        return FinishedNull(tuple(draws))


@dataclasses.dataclass(frozen=True, eq=False)
class NullDraw:
    """What the scores of one draw are computed from.

    Attributes:
      moments: of x with the other rows of y.
      x: the representations as they are, in order.
      y: the same with the other rows.
    """

    moments: FinishedMoments
    x: tuple[RepresentationMoments, ...]
    y: tuple[RepresentationMoments, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedNull:
    """The draws; none where no rows could be paired."""

    draws: tuple[NullDraw, ...]

    @property
    def representations(self) -> tuple[RepresentationMoments, ...]:
        """As they are."""
        return self.draws[0].x if self.draws else ()


class NullMomentsAccumulator:
    """Accumulates the moments of all draws: an `Accumulator`.

    Args:
      accumulators: an empty one for each draw, of `paired_shapes`, `paired_tiles` and
        `paired_layers`.
    """

    def __init__(self, accumulators: Sequence[MomentsAccumulator]):
        self._draws = tuple(accumulators)

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch."""
        raise NotImplementedError

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        for draw in self._draws:
            draw.wait()

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        parts = [draw.snapshot() for draw in self._draws]
        return {
            f"{name}_{k}": value for k, part in enumerate(parts) for name, value in part.items()
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; raises as `MomentsAccumulator.restore`."""
        for k, draw in enumerate(self._draws):
            end = f"_{k}"
            draw.restore({n.removesuffix(end): v for n, v in snapshot.items() if n.endswith(end)})

    def result(self) -> NullMoments:
        """The moments of all draws."""
        return NullMoments(tuple(draw.result() for draw in self._draws))


class ShiftedMomentsAccumulator(NullMomentsAccumulator):
    """Pairs rows with others of the same utterance.

    Args:
      accumulators: as in `NullMomentsAccumulator`.
      pairing: which rows are paired; those of a pair are on one device.
    """

    def __init__(self, accumulators: Sequence[MomentsAccumulator], pairing: Pairing):
        super().__init__(accumulators)
        self._pairing = pairing

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch."""
        models = len(batch.hidden)
        for number, draw in enumerate(self._draws):
            positions = np.repeat(self._pairing(batch.rows, number), models, axis=0)
            draw.append_each(batch.hidden * 2, positions)


class SwappedMomentsAccumulator(NullMomentsAccumulator):
    """Pairs rows with those of other utterances, which wait for each other on the host.

    Args:
      accumulators: as in `NullMomentsAccumulator`.
      plan: which utterances are paired.
    """

    def __init__(self, accumulators: Sequence[MomentsAccumulator], plan: SwapPlan):
        super().__init__(accumulators)
        self._pairs = SwappedPairs(accumulators, plan)

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch."""
        self._pairs.update(batch)

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        self._pairs.flush()
        return super().snapshot() | self._pairs.waiting.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; raises as `MomentsAccumulator.restore`."""
        super().restore(snapshot)
        self._pairs.waiting = WaitingRows.restored(snapshot)

    def result(self) -> NullMoments:
        """The moments of all draws, and what still waits."""
        self._pairs.flush()
        return NullMoments(super().result().draws, self._pairs.waiting)
