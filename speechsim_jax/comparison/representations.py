"""What is compared, in order: layers of models, then tracks; and which of these are given."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from speechsim_jax.comparison.arrays import representation_names
from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.measures.concepts import LabelTrack
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.pipeline.pass_memory import IndexPair
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.statistics import store
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.store import FinishedStatistics, PassStatistics


@dataclasses.dataclass(frozen=True)
class Representations:
    """What the statistics are of.

    Attributes:
      names: of all, in the order of the statistics.
      labels: those that are label tracks.
      given: numbers of those that are regressed out of the others, and leave.
      explained: whether the others are what is given explains of them, not what is left.
      pairs: that are compared, by number, each with itself among them; None for all.
    """

    names: tuple[RepresentationName, ...]
    labels: tuple[LabelTrack, ...] = ()
    given: tuple[int, ...] = ()
    explained: bool = False
    pairs: frozenset[IndexPair] | None = None

    def with_given(
        self, given: Sequence[str], selection: MeasureSelection, part: str = "rest"
    ) -> "Representations":
        """The same, of which some are given.

        Args:
          given: their keys.
          selection: the measures, which must have partial scores.
          part: "rest" or "explained", as `Settings.given_part`.

        Raises:
          UserError: a name that is none of these; a measure without a partial score.
        """
        if isinstance(given, str):
            raise UserError(f"given is {given!r}; expected a list of names")
        known = [str(name) for name in self.names]
        numbers = []
        for key in representation_names(given, layer=0, argument="given"):
            if str(key) not in known:
                raise UserError(f"given: no representation {key}{did_you_mean(str(key), known)}")
            numbers.append(known.index(str(key)))
        check_partial(given, selection)
        if self.pairs is not None:
            wanted = {(min(k, z), max(k, z)) for z in numbers for k in range(len(known))}
            if not wanted <= self.pairs:
                raise UserError(
                    "given: its products with all others are needed, and pairs left them out"
                )
        return dataclasses.replace(self, given=tuple(numbers), explained=part == "explained")

    @property
    def left(self) -> "Representations":
        """Those that stay where some are given, in the order of the finished statistics."""
        places = [k for k in range(len(self.names)) if k not in self.given]
        return Representations(
            tuple(self.names[k] for k in places),
            tuple(
                dataclasses.replace(track, number=places.index(track.number))
                for track in self.labels
                if track.number in places
            ),
            pairs=None
            if self.pairs is None
            else frozenset(
                (places.index(i), places.index(j))
                for i, j in self.pairs
                if i in places and j in places
            ),
        )

    def finish(
        self, passes: Sequence[PassStatistics], rank_tolerance: float | None
    ) -> FinishedStatistics:
        """The finished statistics of those that are left, less what given ones explain.

        Raises:
          UserError: as `store.finish`; everything is given.
        """
        finished = store.finish(passes, rank_tolerance)
        return finished.given(self.given, self.explained) if self.given else finished

    def as_json(self) -> dict[str, Any]:
        """For the plan of a job; what is given is no part of it."""
        return {
            "representations": [[name.model, name.layer] for name in self.names],
            "labels": [[track.name, track.number, list(track.classes)] for track in self.labels],
            "pairs": None if self.pairs is None else sorted(self.pairs),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Representations":
        """The inverse of `as_json`, through JSON."""
        return cls(
            tuple(RepresentationName(*name) for name in record["representations"]),
            tuple(
                LabelTrack(name, number, tuple(classes))
                for name, number, classes in record.get("labels", ())
            ),
            pairs=None
            if record.get("pairs") is None
            else frozenset((i, j) for i, j in record["pairs"]),
        )


def check_partial(given: Sequence[str], selection: MeasureSelection) -> None:
    """Raise UserError for a measure without a partial score, if anything is given."""
    for measure in selection.measures if len(given) else ():
        if measure.statistic != MomentsState.kind or not measure.partial:
            raise UserError(f"{measure.name} has no partial score; leave it out, or given")
