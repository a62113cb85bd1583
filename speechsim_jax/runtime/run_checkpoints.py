"""Checkpoints of a long run: its state and its position in the corpus, committed together.

A checkpoint is an orbax step: `state`, arrays and what JSON can hold, and `record`, JSON. Orbax
writes into a temporary folder and renames it, so a run that is killed while it writes leaves the
previous checkpoint. This is the only module that uses orbax.
"""

import dataclasses
import functools
import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from speechsim_jax.errors import UserError

# Checkpoints that exist at once: if the newest cannot be read, there is the previous one.
_MAX_TO_KEEP = 2
# Of the files. It is part of a job's identity, so checkpoints of another format are refused.
_FORMAT = 2

_log = logging.getLogger(__name__)

SavedState = dict[str, dict[str, Any]]
"""By part and name: an array, a list of arrays, or what JSON can hold."""


class RunCheckpoint(NamedTuple):
    """What was saved.

    Attributes:
      step: number of the checkpoint.
      state: arrays, and what JSON can hold.
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
        # In the form in which it is read back: tuples are lists in JSON.
        self._identity = json.loads(json.dumps({"format": _FORMAT} | identity))
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
        # Every process saves its own checkpoints and waits for no other.
        this = jax.process_index()
        alone = {
            "multiprocessing_options": self._orbax.options.MultiprocessingOptions(
                primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
            )
        }
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=_MAX_TO_KEEP,
            cleanup_tmp_directories=True,
            create=False,
            # Orbax's threads would wait for signals of other processes; `save` has its own.
            enable_async_checkpointing=False,
            **alone,
        )
        handlers = {
            "state": _array_handler()[0],
            "record": self._orbax.JsonCheckpointHandler(**alone),
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._orbax.CheckpointManager(
                self._folder, options=options, item_handlers=handlers
            )
        except OSError as error:
            raise UserError(f"checkpoints cannot be written to {self._folder}: {error}") from error

    @property
    def started(self) -> bool:
        """Whether anything has been saved, by this run or an earlier one."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def latest(self) -> RunCheckpoint | None:
        """The newest checkpoint that can be read; None if there are none.

        Raises:
          UserError: it is of another job, or there are some and none can be read.
        """
        if not self.started:
            return None
        args = self._orbax.args
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(
                    step,
                    args=args.Composite(state=_array_handler()[1](), record=args.JsonRestore()),
                )
            except (OSError, ValueError, KeyError) as error:
                _log.warning("checkpoint %d cannot be read: %s", step, error)
                continue
            if "identity" not in restored.record:
                raise UserError(f"{self._folder} holds checkpoints of another program")
            self._check(restored.record["identity"])
            return RunCheckpoint(step, restored.state, restored.record)
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read; delete the folder")
        _log.warning("no checkpoint in %s: starting from the beginning", self._folder)
        return None

    def _check(self, identity: dict[str, Any]) -> None:
        for name in sorted(identity.keys() | self._identity.keys()):
            then, now = identity.get(name), self._identity.get(name)
            if then != now:
                raise UserError(
                    f"the checkpoint in {self._folder} is of another job: "
                    f"{_difference(name, then, now)}; undo the change, or start from the "
                    "beginning in another folder"
                )

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
          UserError: the previous checkpoint could not be written.
        """
        args = self._orbax.args
        metadata = metadata | {"identity": self._identity}
        step_args = args.Composite(state=_array_handler()[1](state), record=args.JsonSave(metadata))
        self.wait()
        self._writing = self._writer.submit(self._manager.save, step, args=step_args)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Block until the last checkpoint is written; raises UserError if it could not be."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"checkpoints cannot be written to {self._folder}: {reason}") from error

    def close(self) -> None:
        """Wait as `wait` does, and release everything."""
        self.wait()
        self._writer.shutdown()
        if self.started:
            self._manager.close()


def _difference(name: str, then: Any, now: Any) -> str:
    """A description of what has changed; for mappings, which entries."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return f"{name} was {then!r} and is {now!r} now"
    parts = [f"{key} is missing" for key in then if key not in now]
    parts += [f"{key} is new" for key in now if key not in then]
    for key in then.keys() & now.keys():
        if isinstance(then[key], str) and then[key] != now[key]:
            parts.append(f"{key} was {then[key]!r} and is {now[key]!r} now")
        elif then[key] != now[key]:
            parts.append(f"{key} has changed")
    return f"{name}: {', '.join(sorted(parts))}"


@functools.cache
def _array_handler() -> tuple[Any, type]:
    """The handler that writes and reads a `SavedState` for orbax, and its arguments.

    Orbax's own handler would write numpy arrays on process 0 of a job only.
    """
    import orbax.checkpoint

    class Handler(orbax.checkpoint.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            _write_state(Path(directory), args.state)

        def restore(self, directory: Any, args: Any) -> SavedState:
            return _read_state(Path(directory))

    @orbax.checkpoint.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Arguments(orbax.checkpoint.args.CheckpointArgs):
        state: SavedState | None = None

    return Handler(), Arguments


def _write_state(folder: Path, state: SavedState) -> None:
    """Write a .npy file for each array, and everything else to state.json."""
    record: dict[str, dict[str, Any]] = {}
    for part, names in state.items():
        record[part] = {}
        for name, value in names.items():
            arrays = value if isinstance(value, list) else [value]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                record[part][name] = {"value": value}
                continue
            record[part][name] = {"arrays": len(arrays), "list": isinstance(value, list)}
            for number, array in enumerate(arrays):
                np.save(folder / f"{part}.{name}.{number}.npy", array)
    (folder / "state.json").write_text(json.dumps(record))


def _read_state(folder: Path) -> SavedState:
    state: SavedState = {}
    for part, names in json.loads((folder / "state.json").read_text()).items():
        state[part] = {}
        for name, record in names.items():
            if "value" in record:
                state[part][name] = record["value"]
                continue
            files = [folder / f"{part}.{name}.{k}.npy" for k in range(record["arrays"])]
            arrays = [np.load(file) for file in files]
            state[part][name] = arrays if record["list"] else arrays[0]
    return state
