"""A lock on a folder: one process at a time, and never a dead one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speechsim_jax.runtime.lock import LockedError, is_locked, locked

HOLDS = """
import sys, time
from pathlib import Path
from speechsim_jax.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_no_dead_one(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert is_locked(folder)
        message = rf"process {holder.pid} on .*, since 20.* works in"
        with pytest.raises(LockedError, match=message), locked(folder):
            pytest.fail("two hold it")
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
    assert not is_locked(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_it_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0
    with locked(tmp_path):
        pass
