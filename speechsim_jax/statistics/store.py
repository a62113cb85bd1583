"""Stored statistics: everything that scores are computed from, in a folder that is checked.

    statistics.json    format, kinds of the statistics, metadata, size and checksum of every other
                       file; written last, so a folder that has it is complete
    KIND/              one folder a statistic: what its `State` saves, or a snapshot of its
                       accumulator (arrays as .npy files, the rest in snapshot.json)

The store knows statistics through the `State` protocol and their snapshots only. It writes each
folder once and reads nothing whose checksum does not match. A folder may be in a bucket: files are
then written to this machine first, and read from a copy on it.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import (
    AnyPath,
    download,
    flush,
    in_bucket,
    remove_folder,
    upload,
)
from speechsim_jax.runtime.checked_files import (
    DamagedFileError,
    check_file,
    fingerprint,
    read_record,
    write_record,
)
from speechsim_jax.statistics.accumulator import Snapshot, State
from speechsim_jax.statistics.attention_finished import AttentionState, FinishedAttention
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.exemplars import Exemplars
from speechsim_jax.statistics.folded_moments import FinishedFolds, FoldedMoments, UtteranceFolds
from speechsim_jax.statistics.grams import FinishedGrams
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState
from speechsim_jax.statistics.null_moments import NullMoments
from speechsim_jax.statistics.partial_moments import ExplainedMoments, PartialMoments
from speechsim_jax.statistics.sample import Sample

# Of the files; others are refused.
_FORMAT = 4
_RECORD = "statistics.json"
_SNAPSHOT = "snapshot.json"

STATES: dict[str, type[State]] = {
    s.kind: s
    for s in (
        MomentsState,
        FoldedMoments,
        UtteranceFolds,
        NullMoments,
        Sample,
        ClusteredSample,
        AttentionState,
        Exemplars,
    )
}
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
        """The moments; None if no measure reads them, or their norms are known only."""
        moments = self.by_kind.get(MomentsState.kind)
        return moments if isinstance(moments, FinishedMoments) else None

    @property
    def _moments(self) -> FinishedMoments | FinishedGrams | None:
        return self.by_kind.get(MomentsState.kind)

    @property
    def sample(self) -> Sample | None:
        """The sample of rows, None if no measure reads it."""
        return self.by_kind.get(Sample.kind)

    @property
    def clustered(self) -> ClusteredSample | None:
        """The rows that standard errors are estimated from, None without these."""
        return self.by_kind.get(ClusteredSample.kind)

    @property
    def exemplars(self) -> Exemplars | None:
        """The frames that excite each neuron most, None where they were not asked for."""
        return self.by_kind.get(Exemplars.kind)

    @property
    def attention(self) -> FinishedAttention | None:
        """The means over attention maps, None if no measure reads them."""
        return self.by_kind.get(AttentionState.kind)

    def given(self, numbers: Sequence[int], explained: bool = False) -> "FinishedStatistics":
        """What measures read of residuals on given representations, which leave.

        Args:
          numbers: of the given representations.
          explained: of what these explain instead; of that there is no sample, as influences of
            rows are not those of explained rows.

        Raises:
          UserError: nothing is given, or nothing is left; there are no moments.
        """
        if self.moments is None:
            raise UserError("given: only measures on moments have partial scores")
        kind = ExplainedMoments if explained else PartialMoments
        moments = kind(self.moments, numbers)
        finished: dict[str, Any] = {MomentsState.kind: moments}
        if FoldedMoments.kind in self.by_kind:
            folds = self.by_kind[FoldedMoments.kind].folds
            try:
                finished[FoldedMoments.kind] = FinishedFolds(
                    moments, tuple(kind(fold, numbers) for fold in folds)
                )
            except UserError:  # what is given is constant in a fold, and explains nothing there
                finished[FoldedMoments.kind] = FinishedFolds(moments, ())
        if self.clustered is not None and isinstance(moments, PartialMoments):
            rows = moments.residuals(self.clustered.representations)
            finished[ClusteredSample.kind] = dataclasses.replace(
                self.clustered,
                rows=tuple(of_one[None] for of_one in rows),
                layers=tuple(r.index for r in moments.representations),
            )
        if self.exemplars is not None:  # of the layers as they are
            finished[Exemplars.kind] = self.exemplars.without(numbers)
        return FinishedStatistics(finished)

    def residuals(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Rows of all representations, or of those that are left less what given ones explain.

        Args:
          rows: of each representation, [row, neuron].
        """
        if isinstance(self.moments, PartialMoments):
            return self.moments.residuals(rows)
        return rows

    @property
    def numeric(self) -> dict[str, Any]:
        """The numeric settings that were used, for the result's record."""
        moments = self._moments or (self.attention.moments if self.attention else None)
        if moments is None:
            return {}
        return {"stats_dtype": moments.dtype, "rank_tolerance": moments.rank_tolerance}

    def rows(self, frames: int) -> int:
        """Rows of the statistics; without moments, the frames that were read."""
        return self._moments.rows if self._moments is not None else frames


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
        if kind == FoldedMoments.kind:
            finished[MomentsState.kind] = finished[kind].whole
    return FinishedStatistics(finished)


def write(folder: AnyPath, statistics: PassStatistics, metadata: Mapping[str, Any]) -> None:
    """Write states into a new folder.

    Args:
      folder: it may hold what is left of an interrupted write.
      statistics: the states.
      metadata: JSON that is written with them.

    Raises:
      OSError: that failed.
    """
    savers = {kind: state.save for kind, state in statistics.states.items()}
    _write(folder, "states", savers, metadata)


def read(
    folder: AnyPath, only: Collection[str] | None = None
) -> tuple[PassStatistics, dict[str, Any]]:
    """Read what `write` wrote: the states and the metadata.

    Args:
      folder: where they are.
      only: kinds to read (default: all).

    Raises:
      DamagedFileError: a file is missing or not as it was written.
      UserError: the folder is of another format, or holds a statistic that is not registered.
    """
    record = _record(folder, "states")
    kinds = [kind for kind in record["kinds"] if only is None or kind in only]
    if unknown := [kind for kind in kinds if kind not in STATES]:
        raise UserError(f"{folder}: an unknown statistic {unknown[0]!r}; register it first")
    states = {}
    for kind in kinds:
        local = _checked(folder, record, kind)
        states[kind] = STATES[kind].load(local)
        if in_bucket(folder):  # a state may read its files on demand
            weakref.finalize(states[kind], _delete_copy, folder, local)
    return PassStatistics(states), record["metadata"]


def write_snapshots(
    folder: AnyPath, snapshots: Mapping[str, Snapshot], metadata: Mapping[str, Any]
) -> None:
    """Write the snapshots of accumulators into a new folder, by kind; otherwise as `write`."""

    def saver(snapshot: Snapshot) -> Callable[[Path], None]:
        return lambda folder: _save_snapshot(folder, snapshot)

    savers = {kind: saver(snapshot) for kind, snapshot in snapshots.items()}
    _write(folder, "snapshots", savers, metadata)


def read_snapshots(folder: AnyPath) -> tuple[dict[str, Snapshot], dict[str, Any]]:
    """Read what `write_snapshots` wrote; raises as `read`."""
    record, snapshots = _record(folder, "snapshots"), {}
    for kind in record["kinds"]:
        local = _checked(folder, record, kind)
        snapshots[kind] = _load_snapshot(local)
        _delete_copy(folder, local)
    return snapshots, record["metadata"]


def read_metadata(folder: AnyPath) -> dict[str, Any]:
    """The metadata of states or snapshots alone; raises as `read`."""
    return read_record(folder / _RECORD, _FORMAT)["metadata"]


def kinds(folder: AnyPath) -> list[str]:
    """The statistics in a folder; raises as `read`."""
    return _record(folder, "states")["kinds"]


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder was written to its end."""
    return (folder / _RECORD).exists()


def _write(
    folder: AnyPath,
    content: str,
    savers: Mapping[str, Callable[[Path], None]],
    metadata: Mapping[str, Any],
) -> None:
    """Write a folder of states or snapshots; the record, which completes it, last."""
    with contextlib.ExitStack() as scratch:
        local = folder
        if in_bucket(folder):
            local = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-")))
        else:
            remove_folder(folder)
        for kind, save in savers.items():
            (local / kind).mkdir(parents=True)
            save(local / kind)
        files = sorted(path for kind in savers for path in (local / kind).rglob("*"))
        listed = {}
        for path in (path for path in files if path.is_file()):
            name = path.relative_to(local).as_posix()
            listed[name] = fingerprint(path)
            if in_bucket(folder):
                upload(path, folder / name)
            else:
                flush(path)
        record = {
            "content": content, "kinds": list(savers), "files": listed, "metadata": metadata,
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / _RECORD, _FORMAT, record)


def _record(folder: AnyPath, content: str) -> dict[str, Any]:
    record = read_record(folder / _RECORD, _FORMAT)
    if record["content"] != content:
        raise UserError(f"{folder} holds {record['content']}, not {content}")
    return record


def _checked(folder: AnyPath, record: Mapping[str, Any], kind: str) -> Path:
    """Where the files of one statistic, which are as they were written, can be read.

    Of a folder in a bucket it is a copy on this machine, to be deleted with `_delete_copy`.
    """
    files = {n: f for n, f in record["files"].items() if n.startswith(f"{kind}/")}
    local = folder
    if in_bucket(folder):
        local = Path(tempfile.mkdtemp(prefix="speechsim-"))
        (local / kind).mkdir()
    for name, expected in files.items():
        if local is not folder:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                download(folder / name, local / name)
            except OSError as error:
                raise DamagedFileError(f"{folder / name} cannot be read: {error}") from error
        check_file(local / name, expected, shown=folder / name)
    return local / kind


def _delete_copy(folder: AnyPath, of_kind: Path) -> None:
    """Delete what `_checked` has returned if it is a copy."""
    if in_bucket(folder):
        shutil.rmtree(of_kind.parent, ignore_errors=True)


def _save_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a .npy file for each array, and everything else to snapshot.json."""
    record: dict[str, dict[str, Any]] = {}
    for name, value in snapshot.items():
        arrays = value if isinstance(value, list) else [value]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            record[name] = {"value": value}
            continue
        record[name] = {"arrays": len(arrays), "list": isinstance(value, list)}
        for number, array in enumerate(arrays):
            np.save(folder / f"{name}.{number}.npy", array)
    (folder / _SNAPSHOT).write_text(json.dumps(record))


def _load_snapshot(folder: Path) -> Snapshot:
    snapshot: Snapshot = {}
    for name, record in json.loads((folder / _SNAPSHOT).read_text()).items():
        if "value" in record:
            snapshot[name] = record["value"]
            continue
        arrays = [np.load(folder / f"{name}.{k}.npy") for k in range(record["arrays"])]
        snapshot[name] = arrays if record["list"] else arrays[0]
    return snapshot
