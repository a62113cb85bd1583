"""The folder of a job: its plan, its checkpoints and its stored statistics.

    plan.RUN.json              what the job is, and how it is divided over passes
    shard-K-of-N/
      started.RUN.json         which process works on the shard, and since when
      pass-P.batch-B.RUN/      a checkpoint: snapshots of the accumulators, and a cursor
      pass-P.RUN/              the statistics of one pass
      complete.RUN.json        which passes these are, and what was read; written last

Machines that share nothing else fill the folder together. Nothing is renamed or written twice: each
run adds entries under its own RUN, a time, and of several complete entries the first counts. So the
folder may be in a bucket. Where there are locks, a shard is locked while a process works on it.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from speechsim_jax.errors import UserError
from speechsim_jax.runtime import atomic_write
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, in_bucket, remove_folder
from speechsim_jax.runtime.checked_files import DamagedFileError, read_record, write_record
from speechsim_jax.runtime.lock import describe, is_locked, locked, this_process
from speechsim_jax.runtime.shards import Shard
from speechsim_jax.statistics import store
from speechsim_jax.statistics.accumulator import Snapshot
from speechsim_jax.statistics.store import PassStatistics

# Of plan, started and complete; others are refused.
_FORMAT = 1
# Checkpoints that exist at once: if the newest is damaged, there is the previous one.
_CHECKPOINTS = 2
_PLAN = re.compile(r"plan\.(.+)\.json")
_PASS = re.compile(r"pass-(\d+)\.(?:batch-(\d+)\.)?([^.]+)")

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What was saved during a pass.

    Attributes:
      batch: after how many batches.
      snapshots: of the accumulators, by kind.
      metadata: counts and cursor.
    """

    batch: int
    snapshots: dict[str, Snapshot]
    metadata: dict[str, Any]


def new_run() -> str:
    """Name of a run, later ones sort later: the time, UTC, and a random number."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


class JobFolder:
    """The folder of one job.

    Args:
      path: the folder; made when something is written. It may be in a bucket.
    """

    def __init__(self, path: AnyPath):
        self.path = path

    @functools.cached_property
    def _run(self) -> str:
        """The name of this run."""
        return new_run()

    def plan(self) -> dict[str, Any] | None:
        """The plan, None if there is none; its "checksum" names it in all other entries.

        Raises:
          UserError: it is damaged or of another format.
        """
        names = sorted(name for name in _names(self.path) if _PLAN.fullmatch(name))
        return read_record(self.path / names[0], _FORMAT) if names else None

    def write_plan(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Write the plan; returns that of another run if it was first.

        Raises:
          StorageError: it cannot be written.
        """
        with writing(self.path):
            write_record(self.path / f"plan.{self._run}.json", _FORMAT, plan)
        written = self.plan()
        assert written is not None
        return written

    def shard(self, shard: Shard, plan: Mapping[str, Any], minutes: float | int) -> "ShardFolder":
        """The part of the folder that a shard fills.

        Args:
          shard: which.
          plan: of the job.
          minutes: between checkpoints; with 0 one is always due.
        """
        name = f"shard-{shard.index}-of-{shard.count}"
        return ShardFolder(self.path / name, self._run, plan["checksum"], minutes)

    def shards(self, plan: Mapping[str, Any]) -> list["ShardFolder"]:
        """All shards of the job, whether they have begun or not."""
        count = plan["shards"]
        return [self.shard(Shard(k + 1, count), plan, 0) for k in range(count)]


class ShardFolder:
    """What one shard of a job has stored: see `JobFolder.shard`."""

    def __init__(self, path: AnyPath, run: str, plan: str, minutes: float | int):
        self.path = path
        self._run, self._plan = run, plan
        self._seconds = 60.0 * minutes
        self._last = time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future | None = None

    def reading(self, key: str) -> "ShardFolder":
        """Where a second reading of this shard has its checkpoints, of pass 1.

        Args:
          key: what tells it from others.
        """
        return ShardFolder(self.path / f"reading-{key}", self._run, self._plan, self._seconds / 60)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Work on this shard: nobody else does as long as this lasts, where there are locks.

        Raises:
          LockedError: another process works on it.
        """
        with contextlib.ExitStack() as stack:
            with writing(self.path):
                stack.enter_context(locked(self.path))
                write_record(self.path / f"started.{self._run}.json", _FORMAT, this_process())
            self._last = time.monotonic()
            try:
                yield
            finally:
                if self._writer is not None:
                    self._writer.shutdown()

    # --- what is complete ---

    def complete(self, strict: bool = False) -> dict[str, Any] | None:
        """What the shard has read, once all its passes are complete; else None.

        Args:
          strict: whether a damaged record is an error; otherwise it counts as missing, with a
            warning.
        """
        for name in sorted(_names(self.path)):
            if name.startswith("complete."):
                record = self._unless_damaged(lambda n=name: read_record(self.path / n, _FORMAT))
                if record is None and strict:
                    read_record(self.path / name, _FORMAT)
                if record is not None and record["plan"] == self._plan:
                    passes = [self.path / name for name in record["passes"]]
                    if all(map(store.is_complete, passes)):
                        return record
        return None

    def statistics(self, number: int) -> tuple[str, PassStatistics, dict[str, Any]] | None:
        """A complete pass: its name, statistics and metadata; None if there is none."""
        for name, _ in self._passes(number, checkpoints=False):
            read = self._unless_damaged(lambda n=name: store.read(self.path / n))
            if read is not None and read[1]["plan"] == self._plan:
                return name, *read
        return None

    def checkpoint(self, number: int) -> Checkpoint | None:
        """The newest checkpoint of a pass that is not damaged; None if there is none."""
        for name, batch in reversed(self._passes(number, checkpoints=True)):
            read = self._unless_damaged(lambda n=name: store.read_snapshots(self.path / n))
            if read is not None and read[1]["plan"] == self._plan:
                return Checkpoint(batch, *read)
        return None

    def metadata(self, number: int) -> dict[str, Any] | None:
        """The metadata of a pass or, before it is complete, of its newest checkpoint."""
        entries = [*self._passes(number, checkpoints=True), *self._passes(number, False)]
        for name, _ in reversed(entries):
            read = self._unless_damaged(lambda n=name: store.read_metadata(self.path / n))
            if read is not None and read["plan"] == self._plan:
                return read
        return None

    @property
    def has_checkpoints(self) -> bool:
        """Whether this or an earlier run has saved one."""
        names = map(_PASS.fullmatch, _names(self.path))
        return any(match is not None and match[2] for match in names)

    def _passes(self, number: int, checkpoints: bool) -> list[tuple[str, int]]:
        """Names of the complete entries of a pass, each with its batch, in order."""
        found = []
        for name in _names(self.path):
            match = _PASS.fullmatch(name)
            if match is None or int(match[1]) != number or (match[2] is not None) != checkpoints:
                continue
            if store.is_complete(self.path / name):
                found.append((int(match[2] or 0), match[3], name))
        return [(name, batch) for batch, _, name in sorted(found)]

    @staticmethod
    def _unless_damaged(read: Any) -> Any:
        try:
            return read()
        except DamagedFileError as error:
            _log.warning("%s; it is left out", error)
            return None

    # --- writing ---

    def due(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() - self._last >= self._seconds

    def save(
        self,
        number: int,
        batch: int,
        snapshots: Mapping[str, Snapshot],
        metadata: Mapping[str, Any],
    ) -> None:
        """Start writing a checkpoint, once the previous one is written.

        Args:
          number: of the pass.
          batch: after how many batches, ascending.
          snapshots: must not change until `wait` or the next `save`.
          metadata: JSON.

        Raises:
          StorageError: the previous checkpoint could not be written.
        """
        self.wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="speechsim-checkpoint")
        self._writing = self._writer.submit(self._save, number, batch, snapshots, metadata)
        self._last = time.monotonic()

    def _save(self, number: int, batch: int, snapshots: Any, metadata: Mapping[str, Any]) -> None:
        folder = self.path / f"pass-{number}.batch-{batch:06}.{self._run}"
        store.write_snapshots(folder, snapshots, {**metadata, "plan": self._plan})
        for name, _ in self._passes(number, checkpoints=True)[:-_CHECKPOINTS]:
            remove_folder(self.path / name)

    def wait(self) -> None:
        """Block until the last checkpoint is written; raises StorageError if it could not be."""
        pending, self._writing = self._writing, None
        if pending is not None:
            with writing(self.path):
                pending.result()

    def store(self, number: int, statistics: PassStatistics, metadata: Mapping[str, Any]) -> str:
        """Write the statistics of a complete pass and delete its checkpoints; returns its name.

        Raises:
          StorageError: they cannot be written.
        """
        self.wait()
        name = f"pass-{number}.{self._run}"
        with writing(self.path):
            store.write(self.path / name, statistics, {**metadata, "plan": self._plan})
        for checkpoint, _ in self._passes(number, checkpoints=True):
            remove_folder(self.path / checkpoint)
        return name

    def partial(self, number: int, count: int, statistics: PassStatistics) -> AnyPath:
        """Write a sum on the way to the statistics of a pass; returns its folder.

        Args:
          number: of the pass.
          count: number of the sum, from 1 on; the one before is deleted.
          statistics: the sum.

        Raises:
          StorageError: they cannot be written.
        """
        folder = self.path / f"sum-{number}-{count}.{self._run}"
        with writing(self.path):
            store.write(folder, statistics, {})
        remove_folder(self.path / f"sum-{number}-{count - 1}.{self._run}")
        return folder

    def delete_partial(self, number: int) -> None:
        """Delete what `partial` has written, in earlier runs too."""
        for name in _names(self.path):
            if name.startswith(f"sum-{number}-"):
                remove_folder(self.path / name)

    def retract(self) -> None:
        """Delete the records that say that the shard is complete: some of it was damaged."""
        for name in _names(self.path):
            if name.startswith("complete."):
                (self.path / name).unlink(missing_ok=True)

    def finish(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write what the shard has read, which makes it complete.

        Returns:
          The record, or that of another run of this shard that was complete first.

        Raises:
          StorageError: it cannot be written.
        """
        with writing(self.path):
            path = self.path / f"complete.{self._run}.json"
            write_record(path, _FORMAT, {**record, "plan": self._plan, "run": self._run})
        first = self.complete(strict=True)
        assert first is not None
        if first["run"] != self._run:
            _log.warning("%s: another run was complete first; its statistics count", self.path)
        return first

    # --- progress ---

    def status(self, shard: Shard) -> "ShardStatus":
        """How far the shard is, from its folder alone."""
        names = _names(self.path)
        started = sorted(name for name in names if name.startswith("started."))
        process = self._unless_damaged(
            lambda: read_record(self.path / started[-1], _FORMAT) if started else {}
        )
        since = (process or {}).get("since", "")
        where = describe(process or {}) if started else ""
        if complete := self.complete():
            return ShardStatus(shard, "done", since, where, complete["counts"]["seconds"])
        if not started:
            return ShardStatus(shard, "missing", "", "", 0.0)
        read = 0.0
        entries = [(int(m[1]), int(m[2] or 0), m[0]) for m in map(_PASS.fullmatch, names) if m]
        for *_, name in sorted(entries):
            if store.is_complete(self.path / name):
                metadata = self._unless_damaged(lambda n=name: store.read_metadata(self.path / n))
                read = metadata["counts"]["seconds"] if metadata else read
        if in_bucket(self.path):
            state: State = "started"
        else:
            state = "running" if is_locked(self.path) else "stopped"
        return ShardStatus(shard, state, since, where, read)


State = Literal["done", "running", "stopped", "started", "missing"]


@dataclasses.dataclass(frozen=True)
class ShardStatus:
    """How far a shard is.

    Attributes:
      shard: which.
      state: "done"; "running"; "stopped" (it was killed or has failed); "started" (running or
        stopped: in a bucket nobody knows); "missing" (no run has begun it).
      since: when its last run began, UTC.
      process: which process that was.
      seconds: of audio that it had read at its last checkpoint.
    """

    shard: Shard
    state: State
    since: str
    process: str
    seconds: float | int


def step_folder(path: AnyPath, number: int) -> JobFolder:
    """The folder of a step, from 1 on, of a comparison whose audio is read in steps."""
    return JobFolder(path / f"step-{number}")


def step_folders(path: AnyPath) -> list[JobFolder]:
    """The folders of the steps of a comparison, in order; none if it reads its audio at once."""
    folders = (step_folder(path, number) for number in itertools.count(1))
    return list(itertools.takewhile(lambda folder: folder.plan() is not None, folders))


def job_status(path: AnyPath) -> list[ShardStatus]:
    """How far the shards of a job are; of one that reads its audio in steps, each step.

    Raises:
      UserError: the folder holds no job, or its plan is damaged.
    """
    folder = JobFolder(path)
    plan = folder.plan()
    if plan is None and (steps := step_folders(path)):
        return [status for step in steps for status in job_status(step.path)]
    if plan is None:
        raise UserError(f"{path} holds no plan of a job")
    return [
        shard.status(Shard(k, plan["shards"])) for k, shard in enumerate(folder.shards(plan), 1)
    ]


def writing(path: AnyPath) -> contextlib.AbstractContextManager[None]:
    """`atomic_write.writing` for what belongs to a job."""
    advice = "; what was complete before is kept, so run it again once that is mended"
    return atomic_write.writing(path, advice)


def _names(path: AnyPath) -> list[str]:
    return [entry.name for entry in path.iterdir()] if path.is_dir() else []


def job_folder(path: str | os.PathLike[str]) -> JobFolder:
    """The folder of a job at a path, local or in a bucket."""
    return JobFolder(as_path(path))
