"""What a long run keeps on disk: its statistics and its place in the corpus, committed together.

A checkpoint is an orbax step: `state`, a tree of arrays, and `facts`, what JSON can hold. Orbax
writes into a temporary folder and renames it, so a run that is killed while it writes leaves the
checkpoint before. This module is the only one that knows orbax.
"""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.errors import UserError

# Checkpoints that exist at once: if the newest cannot be read, there is the one before.
_KEPT = 2

_log = logging.getLogger(__name__)

State = dict[str, dict[str, Any]]
"""By part and name: an array, a list of arrays, or what JSON can hold."""


class Checkpoint(NamedTuple):
    """What was saved."""

    step: int
    state: State
    facts: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of one job in a folder, which is made when there is one to write.

    `identity` says which job: everything that has a say in the numbers, as JSON. What another job
    has left is never taken up. One is due every `minutes` (0: always).
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], minutes: float | int):
        self._folder = Path(folder).expanduser().resolve()
        # As it will be read back: tuples are lists in JSON.
        self._identity = json.loads(json.dumps(identity))
        self._seconds = 60.0 * minutes
        self._last = time.monotonic()

    @functools.cached_property
    def _orbax(self) -> Any:
        import orbax.checkpoint  # it takes seconds

        # Its progress is of no interest, and what is wrong it raises.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=_KEPT, cleanup_tmp_directories=True
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._orbax.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise UserError(f"checkpoints cannot be written to {self._folder}: {error}") from error

    @property
    def started(self) -> bool:
        """Whether anything has been saved, by this run or one before it."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def latest(self) -> Checkpoint | None:
        """The newest that can be read, None if there is none.

        Raises UserError if it is of another job, or if there are some and none can be read.
        """
        if not self.started:
            return None
        args = self._orbax.args
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                found = self._manager.restore(
                    step,
                    args=args.Composite(state=args.StandardRestore(), facts=args.JsonRestore()),
                )
            except (OSError, ValueError, KeyError) as error:
                _log.warning("checkpoint %d cannot be read: %s", step, error)
                continue
            if "identity" not in found.facts:
                raise UserError(f"{self._folder} holds checkpoints of another program")
            self._check(found.facts["identity"])
            plain = found.facts["plain"]
            state = {part: found.state.get(part, {}) | names for part, names in plain.items()}
            return Checkpoint(step, state, found.facts)
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read; delete the folder")
        return None

    def _check(self, identity: dict[str, Any]) -> None:
        for name in sorted(identity.keys() | self._identity.keys()):
            then, now = identity.get(name), self._identity.get(name)
            if then != now:
                raise UserError(
                    f"the checkpoint in {self._folder} is of another job: {name} was {then!r} and "
                    f"is {now!r} now; go on with what it was, or start anew in another folder"
                )

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Begin to write, once the one before is written; `state` must not change any more."""
        args = self._orbax.args
        arrays = {part: _some(names, _is_arrays) for part, names in state.items()}
        plain = {part: _some(names, lambda x: not _is_arrays(x)) for part, names in state.items()}
        facts = facts | {"identity": self._identity, "plain": plain}
        step_args = args.Composite(state=args.StandardSave(arrays), facts=args.JsonSave(facts))
        manager = self._manager
        with self._written():
            manager.save(step, args=step_args)
        self._last = time.monotonic()

    def close(self) -> None:
        """Wait until all is written."""
        if self.started:
            manager = self._manager
            with self._written():
                manager.wait_until_finished()
            manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """What goes wrong while a checkpoint is written, now or at the one before, in one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"checkpoints cannot be written to {self._folder}: {said}") from error


def _is_arrays(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) and value else value, np.ndarray)


def _some(names: dict[str, Any], wanted: Callable[[Any], bool]) -> dict[str, Any]:
    return {name: value for name, value in names.items() if wanted(value)}
