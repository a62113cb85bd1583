"""Checkpoints of a long run: its state and its position in the corpus, committed together.

A checkpoint is an orbax step: `state`, arrays and what JSON can hold, and `metadata`, JSON. Orbax
writes into a temporary folder and renames it, so a run that is killed while it writes leaves the
checkpoint before. This module is the only one that knows orbax.
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

# Checkpoints that exist at once: if the newest cannot be read, there is the one before.
_MAX_TO_KEEP = 2
# Of the files: part of the identity of a job, so those of another are refused.
_FORMAT = 2

_log = logging.getLogger(__name__)

State = dict[str, dict[str, Any]]
"""By part and name: an array, a list of arrays, or what JSON can hold."""


class RunCheckpoint(NamedTuple):
    """What was saved."""

    step: int
    state: State
    metadata: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of one job in a folder, which is created when the first is written.

    Args:
      folder: where they are.
      identity: everything that affects the numbers, as JSON; checkpoints of another job are
        refused.
      minutes: how often one is due (0: always).
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], minutes: float | int):
        self._folder = Path(folder).expanduser().resolve()
        # As it will be read back: tuples are lists in JSON.
        self._identity = json.loads(json.dumps({"format": _FORMAT} | identity))
        self._seconds = 60.0 * minutes
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="speechsim-checkpoint")
        self._writing: Future | None = None

    @functools.cached_property
    def _orbax(self) -> Any:
        import orbax.checkpoint  # it takes seconds

        # It logs its progress; what goes wrong, it raises.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        # This process saves for itself, and waits for no other.
        own = jax.process_index()
        alone = {
            "multiprocessing_options": self._orbax.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
            )
        }
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=_MAX_TO_KEEP,
            cleanup_tmp_directories=True,
            create=False,
            # Its own threads would wait for signals of other processes: see `save`.
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
        """Whether anything has been saved, by this run or one before it."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def latest(self) -> RunCheckpoint | None:
        """The newest that can be read, None if there is none.

        Raises UserError if it is of another job, or if there are some and none can be read.
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
                    f"{_difference(name, then, now)}; use what it was, or start from "
                    "the beginning in another folder"
                )

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, state: State, metadata: dict[str, Any]) -> None:
        """Start writing, after the one before is written; `state` must not change any more."""
        args = self._orbax.args
        metadata = metadata | {"identity": self._identity}
        step_args = args.Composite(state=_array_handler()[1](state), record=args.JsonSave(metadata))
        self.wait()
        self._writing = self._writer.submit(self._manager.save, step, args=step_args)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Block until it is written; raises UserError if that fails."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"checkpoints cannot be written to {self._folder}: {reason}") from error

    def close(self) -> None:
        """Wait until all is written."""
        self.wait()
        self._writer.shutdown()
        if self.started:
            self._manager.close()


def _difference(name: str, then: Any, now: Any) -> str:
    """What has changed; of mappings, which entries."""
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
    """The handler that writes and reads a `State` for orbax, and its arguments.

    Orbax's own handler leaves numpy arrays to process 0 of a job, for all processes.
    """
    import orbax.checkpoint

    class Handler(orbax.checkpoint.CheckpointHandler):
        def save(self, directory: Any, args: Any) -> None:
            _write_state(Path(directory), args.state)

        def restore(self, directory: Any, args: Any) -> State:
            return _read_state(Path(directory))

    @orbax.checkpoint.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Arguments(orbax.checkpoint.args.CheckpointArgs):
        state: State | None = None

    return Handler(), Arguments


def _write_state(folder: Path, state: State) -> None:
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


def _read_state(folder: Path) -> State:
    state: State = {}
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
