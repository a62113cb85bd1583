"""Checkpoints of a training: weights, moments of the optimiser and the step, committed together.

A checkpoint is an orbax step: .npy files, and a record with the checksum of each. Orbax writes into
a temporary folder and renames it, so a run that is killed while it writes leaves the previous
checkpoint. This is the only module that uses orbax.
"""

import dataclasses
import functools
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.errors import StorageError, UserError
from speechsim_jax.runtime.atomic_write import flush
from speechsim_jax.runtime.checked_files import (
    DamagedFileError,
    check_file,
    fingerprint,
    read_record,
    write_record,
)
from speechsim_jax.runtime.identity import as_json, difference

# Checkpoints that exist at once: if the newest cannot be read, there is the previous one.
_MAX_TO_KEEP = 2
# Of the files; others are refused.
_FORMAT = 3
_RECORD = "record.json"

_log = logging.getLogger(__name__)

SavedState = dict[str, dict[str, np.ndarray]]
"""Arrays by part and name."""


class TrainingCheckpoint(NamedTuple):
    """What was saved.

    Attributes:
      step: number of the checkpoint.
      state: the arrays.
      metadata: JSON.
    """

    step: int
    state: SavedState
    metadata: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of one job in a folder, which is created when the first is written.

    Args:
      folder: where they are.
      identity: everything that affects the numbers, as JSON; checkpoints of another job are
        refused.
      minutes: between checkpoints; with 0 one is always due.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], minutes: float | int):
        self._folder = Path(folder).expanduser().resolve()
        self._identity = as_json(identity)
        self._seconds = 60.0 * minutes
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="speechsim-checkpoint")
        self._writing: Future | None = None

    @functools.cached_property
    def _orbax(self) -> Any:
        import orbax.checkpoint  # takes seconds

        # It logs its progress through absl; errors are raised.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=_MAX_TO_KEEP,
            cleanup_tmp_directories=True,
            create=False,
            enable_async_checkpointing=False,  # `save` has a thread
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._orbax.CheckpointManager(
                self._folder, options=options, item_handlers=_array_handler()[0]
            )
        except OSError as error:
            raise StorageError(
                f"checkpoints cannot be written to {self._folder}: {error}"
            ) from error

    @property
    def started(self) -> bool:
        """Whether anything has been saved, by this run or an earlier one."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def latest(self) -> TrainingCheckpoint | None:
        """The newest checkpoint that can be read; None if there are none.

        Raises:
          UserError: it is of another job, or there are some and none can be read.
        """
        if not self.started:
            return None
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state, record = self._manager.restore(step, args=_array_handler()[1]())
            except (OSError, KeyError, ValueError) as error:
                if isinstance(error, UserError) and not isinstance(error, DamagedFileError):
                    raise
                _log.warning("checkpoint %d is left out: %s", step, error)
                continue
            if (differing := difference(record["identity"], self._identity)) is not None:
                raise UserError(
                    f"the checkpoint in {self._folder} is of another training: {differing}; undo "
                    "the change, or start from the beginning in another folder"
                )
            return TrainingCheckpoint(step, state, record["metadata"])
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read; delete the folder")
        _log.warning("no checkpoint in %s: starting from the beginning", self._folder)
        return None

    def due(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, state: SavedState, metadata: dict[str, Any]) -> None:
        """Start writing, once the previous checkpoint is written.

        Args:
          step: number of the checkpoint, ascending.
          state: must not change until `wait` or the next `save`.
          metadata: JSON.

        Raises:
          StorageError: the previous checkpoint could not be written.
        """
        record = {"identity": self._identity, "metadata": metadata}
        step_args = _array_handler()[1](state, record)
        self.wait()
        self._writing = self._writer.submit(self._manager.save, step, args=step_args)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Block until the last checkpoint is written; raises StorageError if it could not be."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise StorageError(
                f"checkpoints cannot be written to {self._folder}: {reason}"
            ) from error

    def close(self) -> None:
        """Wait as `wait` does, and release everything."""
        self.wait()
        self._writer.shutdown()
        if self.started:
            self._manager.close()


@functools.cache
def _array_handler() -> tuple[Any, type]:
    """The handler that writes and reads a checkpoint for orbax, and its arguments."""
    import orbax.checkpoint

    class Handler(orbax.checkpoint.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            _write(Path(directory), args.state, args.record)

        def restore(self, directory: Any, args: Any) -> tuple[SavedState, dict[str, Any]]:
            return _read(Path(directory))

    @orbax.checkpoint.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Arguments(orbax.checkpoint.args.CheckpointArgs):
        state: SavedState | None = None
        record: dict[str, Any] | None = None

    return Handler(), Arguments


def _write(folder: Path, state: SavedState, record: dict[str, Any]) -> None:
    """Write a .npy file for each array, and the record with their checksums."""
    files: dict[str, dict[str, list[int]]] = {}
    for part, arrays in state.items():
        files[part] = {}
        for name, array in arrays.items():
            path = folder / f"{part}.{name}.npy"
            np.save(path, array)
            flush(path)
            files[part][name] = fingerprint(path)
    write_record(folder / _RECORD, _FORMAT, record | {"files": files})


def _read(folder: Path) -> tuple[SavedState, dict[str, Any]]:
    record = read_record(folder / _RECORD, _FORMAT)
    state: SavedState = {}
    for part, files in record["files"].items():
        state[part] = {}
        for name, expected in files.items():
            path = folder / f"{part}.{name}.npy"
            check_file(path, expected)
            state[part][name] = np.load(path)
    return state, record
