"""A lock on a folder that a dead process does not hold."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import AnyPath, in_bucket, write_text

_LOCK, _HOLDER = ".lock", ".lock.json"


class LockedError(UserError):
    """Another process works in the folder; the message says which, where and since when."""


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Hold the lock of a folder; made if missing. A bucket has no locks: there it does nothing.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
      LockedError: another process holds it.
    """
    if in_bucket(folder):
        yield
        return
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise LockedError(f"{folder}: {describe(_holder(folder))} works in it") from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        write_text(folder / _HOLDER, json.dumps(this_process()))
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def check_unlocked(folder: AnyPath) -> None:
    """Raise LockedError if another process holds the lock of a folder."""
    if not in_bucket(folder) and (folder / _LOCK).exists():
        with locked(folder):
            pass


def is_locked(folder: AnyPath) -> bool:
    """Whether another process holds the lock of a folder; False where there are no locks."""
    try:
        check_unlocked(folder)
    except LockedError:
        return True
    return False


def this_process() -> dict[str, Any]:
    """Host, process id and the time, UTC."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}


def describe(process: dict[str, Any]) -> str:
    """A process in words, from `this_process`; "another process" if nothing is known of it."""
    if not process:
        return "another process"
    return f"process {process['process']} on {process['host']}, since {process['since']},"


def _holder(folder: AnyPath) -> dict[str, Any]:
    try:
        return json.loads((folder / _HOLDER).read_text())
    except (OSError, ValueError):  # it has not written it yet, or has ended
        return {}
