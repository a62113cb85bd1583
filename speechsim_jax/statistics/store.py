"""Stores the states of a pass in a folder: everything that scores are computed from.

    statistics.json    format, kinds of the statistics, metadata; written last
    KIND/              one folder a statistic, written by its `State`

The store knows statistics through the `State` protocol only.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import State
from speechsim_jax.statistics.attention_finished import AttentionState, FinishedAttention
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState
from speechsim_jax.statistics.sample import Sample

# Of the files; others are refused.
_FORMAT = 2
_RECORD = "statistics.json"

STATES: dict[str, type[State]] = {s.kind: s for s in (MomentsState, Sample, AttentionState)}
"""The statistics that can be stored, by kind; see `pipeline.accumulators.register_statistic`."""


@dataclasses.dataclass(frozen=True, eq=False)
class PassStatistics:
    """The states of one pass, by kind."""

    states: Mapping[str, State]


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedStatistics:
    """What measures read, by the kind of statistic."""

    by_kind: Mapping[str, Any]

    @property
    def moments(self) -> FinishedMoments | None:
        """The moments, None if no measure reads them."""
        return self.by_kind.get(MomentsState.kind)

    @property
    def sample(self) -> Sample | None:
        """The sample of rows, None if no measure reads it."""
        return self.by_kind.get(Sample.kind)

    @property
    def attention(self) -> FinishedAttention | None:
        """The means over attention maps, None if no measure reads them."""
        return self.by_kind.get(AttentionState.kind)

    @property
    def numeric(self) -> dict[str, Any]:
        """The numeric settings that were used, for the result's record."""
        moments = self.moments or (self.attention.moments if self.attention else None)
        if moments is None:
            return {}
        return {"stats_dtype": moments.dtype, "rank_tolerance": moments.rank_tolerance}

    def rows(self, frames: int) -> int:
        """Rows of the statistics; without moments, the frames that were read."""
        return self.moments.rows if self.moments is not None else frames


def finish(
    passes: Sequence[PassStatistics], rank_tolerance: float | None = None
) -> FinishedStatistics:
    """Finish the states of all passes over the same rows.

    Args:
      passes: their states.
      rank_tolerance: as in `Settings`.

    Raises:
      UserError: a statistic without any data, such as attention without an utterance.
    """
    kinds = dict.fromkeys(kind for of_pass in passes for kind in of_pass.states)
    finished = {}
    for kind in kinds:
        first, *others = (p.states[kind] for p in passes if kind in p.states)
        finished[kind] = first.finish(others, rank_tolerance)
    return FinishedStatistics(finished)


def write(folder: Path, statistics: PassStatistics, metadata: Mapping[str, Any]) -> None:
    """Write into a new folder, which gets its name only once it is complete.

    Raises:
      UserError: it cannot be written.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for kind, state in statistics.states.items():
            (temporary / kind).mkdir()
            state.save(temporary / kind)
        record = {"format": _FORMAT, "kinds": list(statistics.states), "metadata": metadata}
        (temporary / _RECORD).write_text(json.dumps(record))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError as error:
        raise UserError(f"statistics cannot be written to {folder}: {error.strerror}") from error


def read(folder: Path) -> tuple[PassStatistics, dict[str, Any]]:
    """Read what `write` wrote: the states and the metadata.

    Raises:
      UserError: the folder holds nothing that this version can read.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        if record["format"] != _FORMAT:
            raise UserError(f"{folder}: statistics of format {record['format']}, not {_FORMAT}")
        if unknown := [kind for kind in record["kinds"] if kind not in STATES]:
            raise UserError(f"{folder}: an unknown statistic {unknown[0]!r}; register it first")
        states = {kind: STATES[kind].load(folder / kind) for kind in record["kinds"]}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no statistics that can be read: {error}") from error
    return PassStatistics(states), record["metadata"]


def write_merged(
    folder: Path, parts: Sequence[PassStatistics], metadata: Mapping[str, Any]
) -> None:
    """Write the statistics over the rows of all parts.

    Args:
      folder: where.
      parts: of the same models and statistics, over different rows.
      metadata: JSON that is written with them.

    Raises:
      UserError: parts of other models or statistics, or the folder cannot be written.
    """
    first, *others = parts
    for other in others:
        if list(other.states) != list(first.states):
            raise UserError("statistics of other measures cannot be merged")
    merged = {
        kind: state.merge([other.states[kind] for other in others])
        for kind, state in first.states.items()
    }
    write(folder, PassStatistics(merged), metadata)
