"""Moments of two folds of the audio, for held-out scores: fitted on one, evaluated on the other.

Both folds have one reference shift, so the moments of all rows are the sums of theirs: rows are
added once, and what needs no folds reads the sum.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Int64

from speechsim_jax.array_types import HiddenStates
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.accumulator import BatchRows, EncodedBatch, Snapshot
from speechsim_jax.statistics.moments import Compensated, Moments, Tile
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState

_log = logging.getLogger(__name__)

FoldNumbers = Callable[[BatchRows], Int64[np.ndarray, " row"]]
"""The fold, 0 or 1, of each row of a batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedMoments:
    """The moments of two folds at the end of a pass: a `State`.

    Attributes:
      folds: of each; with the same reference shift.
      fold_of: cluster -> its fold, 0 or 1; empty where clusters are not known.
      divided: clusters that merged jobs have put into different folds; with any there is nothing
        held out.
    """

    kind: ClassVar[str] = "folded_moments"

    folds: tuple[MomentsState, MomentsState]
    fold_of: Mapping[str, int]
    divided: tuple[str, ...] = ()

    @functools.cached_property
    def whole(self) -> MomentsState:
        """The moments of all rows."""
        first, second = self.folds

        def block(tile: int, pair: int) -> Compensated:
            parts = [np.asarray(fold.block(tile, pair)) for fold in self.folds]
            return np.concatenate(parts)

        return MomentsState(
            first.layers, first.shapes, first.tiles, block,
            rest=lambda: _together(first.small, second.small),
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write each fold into a folder, 0 and 1."""
        for number, fold in enumerate(self.folds):
            (folder / str(number)).mkdir()
            fold.save(folder / str(number))
        record = {"fold_of": dict(self.fold_of), "divided": self.divided}
        (folder / "folds.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "FoldedMoments":
        """Read what `save` wrote."""
        record = json.loads((folder / "folds.json").read_text())
        folds = (MomentsState.load(folder / "0"), MomentsState.load(folder / "1"))
        return cls(folds, record["fold_of"], tuple(record["divided"]))

    def merge(self, others: Sequence["FoldedMoments"]) -> "FoldedMoments":
        """The moments over the rows of all, fold by fold, about one reference shift.

        Lazy: it can be saved once.

        Raises:
          UserError: states of other models, layer pairs or precision.
        """
        states = [self, *others]
        filled = [fold for s in states for fold in s.folds if moments.count_of(fold.small)]
        reference = (filled or [self.folds[0]])[0].small.reference
        merged = (
            first.merge(rest, reference)
            for first, *rest in zip(*(state.folds for state in states), strict=True)
        )
        fold_of: dict[str, int] = {}
        divided = {name for state in states for name in state.divided}
        for state in states:
            divided |= {
                n for n, fold in state.fold_of.items() if fold_of.setdefault(n, fold) != fold
            }
        return type(self)((next(merged), next(merged)), fold_of, tuple(sorted(divided)))

    def finish(
        self, others: Sequence["FoldedMoments"] = (), rank_tolerance: float | None = None
    ) -> "FinishedFolds":
        """The moments of the layer pairs of this and the other passes."""
        whole = FinishedMoments([state.whole for state in (self, *others)], rank_tolerance)
        return FinishedFolds(whole, self.finished_folds(others, rank_tolerance))

    def finished_folds(
        self, others: Sequence["FoldedMoments"], rank_tolerance: float | None
    ) -> tuple[FinishedMoments, ...]:
        """The moments of each fold; none, with a warning, where they cannot be told apart."""
        states = [self, *others]
        if self.divided:
            _log.warning(
                "no held-out scores: the merged jobs have %s in different folds (%d clusters)",
                self.divided[0], len(self.divided),
            )  # fmt: skip
            return ()
        rows = [moments.count_of(fold.small) for fold in self.folds]
        if min(rows) < 2:
            _log.warning("no held-out scores: the folds have %d and %d rows", *rows)
            return ()
        return tuple(
            FinishedMoments([state.folds[k] for state in states], rank_tolerance) for k in (0, 1)
        )


class UtteranceFolds(FoldedMoments):
    """Folds that divide the utterances of each speaker, for labels that are the speakers.

    Speakers of one fold say nothing of those of the other, so what layers encode of them is held
    out on other utterances of the same speakers. With the products of representations with
    themselves and with such label tracks only.
    """

    kind: ClassVar[str] = "utterance_folds"

    def finish(
        self, others: Sequence["FoldedMoments"] = (), rank_tolerance: float | None = None
    ) -> "FinishedFolds":
        """The moments of each fold; those of all rows are not needed."""
        folds = self.finished_folds(others, rank_tolerance)
        if folds:
            return FinishedFolds(folds[0], folds)
        whole = FinishedMoments([state.whole for state in (self, *others)], rank_tolerance)
        return FinishedFolds(whole, ())


def tiles_with(tiles: Sequence[Tile], tracks: Collection[int]) -> tuple[Tile, ...]:
    """The layer pairs of `UtteranceFolds` among those of a pass.

    Args:
      tiles: of the pass, numbered within its models.
      tracks: numbers of the label tracks that are of speakers.
    """
    chosen = []
    for tile in tiles:
        if tile.a in tracks or tile.b in tracks:
            chosen.append(tile)
        elif tile.a == tile.b:
            chosen.append(
                dataclasses.replace(tile, pairs=tuple(p for p in tile.pairs if p[0] == p[1]))
            )
    return tuple(tile for tile in chosen if tile.pairs)


def _together(first: Moments, second: Moments) -> Moments:
    """The small sums of both folds, as more parts of one sum."""
    rows = moments.count_of(first) + moments.count_of(second)
    sums = jax.tree.map(
        lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)]), first.sums, second.sums
    )
    return dataclasses.replace(first, count=moments.as_count(rows), sums=sums)


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedFolds:
    """What held-out scores are computed from.

    Attributes:
      whole: the moments of all rows.
      folds: those of each fold; empty where one has no two rows.
    """

    whole: FinishedMoments
    folds: tuple[FinishedMoments, ...]

    @property
    def representations(self) -> tuple:
        """Of all rows."""
        return self.whole.representations


class FoldedMomentsAccumulator:
    """Accumulates the moments of two folds: an `Accumulator`.

    Args:
      accumulators: an empty one for each fold, of the same models, pairs and precision.
      numbers: the fold of each row of a batch.
      fold_of: cluster -> its fold.
      state: what these folds are.
    """

    def __init__(
        self,
        accumulators: tuple[MomentsAccumulator, MomentsAccumulator],
        numbers: FoldNumbers,
        fold_of: Mapping[str, int] = {},
        state: type[FoldedMoments] = FoldedMoments,
    ):
        self._folds, self._numbers, self._fold_of = accumulators, numbers, fold_of
        self._state = state

    @property
    def rows(self) -> int:
        """Rows added so far."""
        return sum(fold.rows for fold in self._folds)

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch."""
        self.append(batch.hidden, batch.rows)

    def append(self, hidden: tuple[HiddenStates, ...], rows: BatchRows) -> None:
        """Add rows of each model, each to its fold.

        Args:
          hidden: of each model.
          rows: which frames, and what identifies them.
        """
        numbers = self._numbers(rows)
        for number, fold in enumerate(self._folds):
            positions = rows.positions[numbers == number]
            if len(positions):
                fold.append(hidden, positions)
                self._share_reference()

    def _share_reference(self) -> None:
        """Give the reference shift of the first fold that has one to the other."""
        one, other = self._folds
        one.share_reference(other)
        other.share_reference(one)

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        for fold in self._folds:
            fold.wait()

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        parts = [fold.snapshot() for fold in self._folds]
        return {
            f"{name}_{k}": value for k, part in enumerate(parts) for name, value in part.items()
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; raises as `MomentsAccumulator.restore`."""
        for k, fold in enumerate(self._folds):
            end = f"_{k}"
            fold.restore(
                {n.removesuffix(end): value for n, value in snapshot.items() if n.endswith(end)}
            )
        self._share_reference()

    def result(self) -> FoldedMoments:
        """The moments of both folds."""
        for fold in self._folds:
            fold.flush()
            self._share_reference()
        first, second = self._folds
        return self._state((first.result(), second.result()), self._fold_of)
