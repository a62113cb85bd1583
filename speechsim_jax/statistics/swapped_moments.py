"""Moments of rows of x with those of another speaker's utterance of y.

The two utterances may be in different batches, and in different shards. Rows wait on the host until
those they are paired with come, and are then added. What still waits at the end of a shard is a
part of its state, and is paired when shards are merged.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from speechsim_jax.statistics.accumulator import EncodedBatch, Snapshot
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.null_rows import by_utterance

# Pairs of rows that are brought to the devices together.
_STAGED = 512

UnitRows = tuple[Float[np.ndarray, "_layer _row _neuron"], ...]
"""The rows of an utterance, or of a piece of a long one, of each model."""

UnitPair = tuple[int, str, str]
"""Draw, the unit whose rows of x are taken, and the one whose rows of y are."""


@dataclasses.dataclass(frozen=True, eq=False)
class SwapPlan:
    """The utterances that are paired in each draw. The pieces of long ones are paired in order.

    Attributes:
      name: that no other corpus has.
      partners: of each draw, utterance -> the one whose rows of y it is paired with.
      pieces: of each utterance, as far as they are known before reading.
    """

    name: str
    partners: tuple[Mapping[str, str], ...]
    pieces: Mapping[str, int]

    @functools.cached_property
    def _inverse(self) -> list[dict[str, str]]:
        return [{y: x for x, y in of_draw.items()} for of_draw in self.partners]

    def unit(self, utterance: str, id_: str) -> tuple[str, set[UnitPair]]:
        """The name of a unit, and the pairs that it belongs to.

        Args:
          utterance: its utterance.
          id_: of the utterance or the piece, `utterance#piece`.
        """
        piece = 0 if id_ == utterance else int(id_.rpartition("#")[2])

        def named(other: str) -> str:
            return f"{self.name}/{other}#{piece}"

        pairs = set()
        for draw, (partners, inverse) in enumerate(zip(self.partners, self._inverse)):
            for x, y in ((utterance, partners.get(utterance)), (inverse.get(utterance), utterance)):
                if x is not None and y is not None and self._has(x, piece) and self._has(y, piece):
                    pairs.add((draw, named(x), named(y)))
        return named(utterance), pairs

    def _has(self, utterance: str, piece: int) -> bool:
        return piece < max(self.pieces[utterance], 1)


@dataclasses.dataclass(frozen=True, eq=False)
class WaitingRows:
    """Units that are in pairs of which the other unit was not read.

    Attributes:
      rows: of each unit.
      pairs: those that are not added yet.
    """

    rows: dict[str, UnitRows] = dataclasses.field(default_factory=dict)
    pairs: set[UnitPair] = dataclasses.field(default_factory=set)

    def add(self, unit: str, rows: UnitRows, pairs: set[UnitPair]) -> list[UnitPair]:
        """Add a unit; the pairs that are complete with it, which `drop` ends.

        Args:
          unit: its name.
          rows: of it.
          pairs: those that it belongs to.
        """
        self.rows[unit] = rows
        self.pairs.update(pairs)
        return self.complete(pairs)

    def complete(self, pairs: set[UnitPair]) -> list[UnitPair]:
        """Those of some pairs of which both units are here, sorted."""
        return sorted(pair for pair in pairs if pair[1] in self.rows and pair[2] in self.rows)

    def drop(self, pairs: Sequence[UnitPair]) -> None:
        """Forget pairs, and units that are in no other pair."""
        self.pairs.difference_update(pairs)
        needed = {unit for _, *units in self.pairs for unit in units}
        for unit in [unit for unit in self.rows if unit not in needed]:
            del self.rows[unit]

    def union(self, others: Sequence["WaitingRows"]) -> "WaitingRows":
        """All that wait in these."""
        both = WaitingRows(dict(self.rows), set(self.pairs))
        for other in others:
            both.rows.update(other.rows)
            both.pairs.update(other.pairs)
        return both

    def save(self, folder: Path) -> None:
        """Write units.json, sizes.npy and rows-MODEL.npy."""
        snapshot = self.snapshot()
        for number, rows in enumerate(snapshot["waiting_rows"]):
            np.save(folder / f"rows-{number}.npy", rows)
        np.save(folder / "sizes.npy", snapshot["sizes"])
        record = {name: snapshot[name] for name in ("units", "pairs")}
        record["models"] = len(snapshot["waiting_rows"])
        (folder / "units.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "WaitingRows":
        """Read what `save` wrote."""
        record = json.loads((folder / "units.json").read_text())
        rows = [np.load(folder / f"rows-{number}.npy") for number in range(record["models"])]
        sizes = np.load(folder / "sizes.npy")
        return cls.restored(
            {name: record[name] for name in ("units", "pairs")}
            | {"sizes": sizes, "waiting_rows": rows}
        )

    def snapshot(self) -> Snapshot:
        """Everything, for `restored`."""
        units = sorted(self.rows)
        models = zip(*(self.rows[unit] for unit in units), strict=True)
        return {
            "units": units,
            "pairs": sorted(map(list, self.pairs)),
            "sizes": np.array([self.rows[unit][0].shape[1] for unit in units], np.int64),
            "waiting_rows": [np.concatenate(rows, axis=1) for rows in models],
        }

    @classmethod
    def restored(cls, snapshot: Snapshot) -> "WaitingRows":
        """What `snapshot` has returned."""
        ends = np.cumsum(snapshot["sizes"])[:-1]
        models = [np.split(rows, ends, axis=1) for rows in snapshot["waiting_rows"]]
        rows = dict(zip(snapshot["units"], zip(*models, strict=True)))
        return cls(rows, {(draw, x, y) for draw, x, y in snapshot["pairs"]})


class PairedRows:
    """Adds pairs of rows to the moments of a draw, many at a time.

    Args:
      accumulator: of the draw.
    """

    def __init__(self, accumulator: MomentsAccumulator):
        self._accumulator = accumulator
        self._staged: list[UnitRows] = []
        self._count = 0

    def add(self, x: UnitRows, y: UnitRows) -> None:
        """Add the rows of two units, cut to their common length."""
        common = min(x[0].shape[1], y[0].shape[1])
        self._staged.append(tuple(rows[:, :common] for rows in (*x, *y)))
        self._count += common
        while self._count >= _STAGED:
            self._bring(_STAGED)

    def flush(self) -> None:
        """Add what is still here to the moments."""
        if self._count:
            self._bring(self._count)

    def _bring(self, count: int) -> None:
        joined = tuple(np.concatenate(rows, axis=1) for rows in zip(*self._staged, strict=True))
        self._accumulator.append_host(tuple(rows[:, :count] for rows in joined))
        self._staged = [tuple(rows[:, count:] for rows in joined)]
        self._count -= count


def paired(state: MomentsState, waiting: WaitingRows, pairs: Sequence[UnitPair]) -> MomentsState:
    """The moments of some pairs of units, of the same kind as those of a state."""
    dtype = str(state.small.reference[0].dtype)
    accumulator = MomentsAccumulator(
        state.shapes, _STAGED, dtype, tiles=state.tiles, layers=state.layers
    )
    rows = PairedRows(accumulator)
    for _, x, y in pairs:
        rows.add(waiting.rows[x], waiting.rows[y])
    rows.flush()
    return accumulator.result()


class SwappedPairs:
    """Finds the rows that belong together, batch by batch.

    Args:
      accumulators: of each draw.
      plan: which utterances are paired.
    """

    def __init__(self, accumulators: Sequence[MomentsAccumulator], plan: SwapPlan):
        self._draws = [PairedRows(accumulator) for accumulator in accumulators]
        self._plan, self.waiting = plan, WaitingRows()

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch, and the pairs that are complete with them."""
        flat = [np.asarray(x).reshape(len(x), -1, x.shape[-1]) for x in batch.hidden]
        parts = zip(batch.rows.utterances, by_utterance(batch.rows), strict=True)
        for utterance, (id_, positions) in parts:
            if not len(positions):
                continue
            rows = tuple(x[:, positions] for x in flat)
            unit, pairs = self._plan.unit(utterance, id_)
            complete = self.waiting.add(unit, rows, pairs)
            for draw, x, y in complete:
                self._draws[draw].add(self.waiting.rows[x], self.waiting.rows[y])
            self.waiting.drop(complete)

    def flush(self) -> None:
        """Add all complete pairs to the moments."""
        for draw in self._draws:
            draw.flush()
