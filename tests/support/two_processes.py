"""One of the processes of `test_processes`, which says what it should do.

    python -m tests.support.two_processes TASK PLACE

PLACE is JSON, the arguments of `joined`. Prints a line of JSON at last; a user's mistake goes to
stderr and exits with code 2, as it does from the scripts.
"""

import json
import signal
import socket
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import install_import_hook

with install_import_hook(
    ["speechsim_jax.runtime.processes", "speechsim_jax.runtime.watch"], "beartype.beartype"
):  # of the whole package it takes six seconds
    from speechsim_jax.errors import UserError
    from speechsim_jax.runtime import processes, watch

REASON = "no audio in /somewhere"
EXTREMES = {
    "float32": [1.0, -0.0, np.nan, np.inf, 1e-45, 3.4028235e38, np.pi],
    "float64": [1.0 + 2**-52, -0.0, np.nan, -np.inf, 5e-324, 1.7976931348623157e308, np.pi],
    "int64": [2**63 - 1, -(2**63), 0, -1],
    "uint64": [2**64 - 1, 2**53 + 1, 0],
    "bfloat16": [1.0, 3.140625],
    "bool": [True, False, True],
}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def own(number: int) -> dict[str, Any]:
    """What process `number` brings: extreme values, and more bytes than pass at a time."""
    rng = np.random.default_rng(number)
    found = {name: np.array(values, name) for name, values in EXTREMES.items()}
    found = {name: np.roll(values, number) for name, values in found.items()}
    found["none"] = np.zeros((3, 0))
    found["one"] = np.array(np.pi + number)
    found["large"] = rng.standard_normal((7, 1000))
    found["turned"] = rng.standard_normal((5, 4)).T
    return found


def exchange() -> dict[str, Any]:
    """Everything that can be exchanged, with parts so small that there are several."""
    processes._MOST_BYTES = 1 << 14
    mine, first = own(processes.index()), own(0)
    received = processes.broadcast(mine)
    ragged = np.arange(5 + 3000 * processes.index(), dtype=np.float64)
    gathered = {name: processes.gather(array) for name, array in mine.items()}
    uneven = processes.gather(ragged)
    jsons = processes.gather_json({"index": processes.index(), "text": "ü" * processes.index()})
    all_right = None
    if processes.is_first():
        all_right = {name: [_same(a, own(k)[name]) for k, a in enumerate(arrays)]
                     for name, arrays in gathered.items()}  # fmt: skip
    processes.check()
    return {
        "place": [processes.index(), processes.count(), processes.is_first()],
        "devices": [jax.local_device_count(), jax.device_count()],
        "broadcast": {name: _same(received[name], first[name]) for name in first},
        "gathered": all_right or list(gathered.values()) == [None] * len(gathered),
        "uneven": uneven and [len(one) for one in uneven],
        "uneven is right": uneven and all(_same(one, np.arange(len(one)) * 1.0) for one in uneven),
        "json": jsons,
        "share": processes.share("abcdefg", [1, 0, 1, 1, 1, 1, 1]),
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    }


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def fail() -> None:
    """Process 1 makes a mistake, the others work."""
    if processes.index() == 1:
        raise UserError(REASON)
    work()


def work() -> None:
    """Batch after batch, until something happens."""
    processes.broadcast(np.zeros(3))
    say("ready")
    while True:
        time.sleep(0.05)
        processes.check()


def stuck() -> None:
    """Process 0 waits on its devices for process 1, which does not come, and never looks."""
    processes.broadcast(np.zeros(3))
    say("ready")
    if processes.index() == 0:
        multihost_utils.process_allgather(np.zeros(3))
    time.sleep(60)


def exchanging() -> None:
    """Process 0 is in an exchange when process 1 is lost; jax says something about a socket."""
    processes.broadcast(np.zeros(3))
    say("ready")
    if processes.index() == 0:
        list(processes._exchanged(np.zeros(8, np.uint8), 8))
    time.sleep(60)


def asleep() -> None:
    """Busy with something else."""
    say("ready")
    time.sleep(60)


def nothing() -> None:
    """Come and go."""


def say(what: Any) -> None:
    """One line of JSON."""
    print(json.dumps(what), flush=True)


def main() -> None:
    task, place = globals()[sys.argv[1]], json.loads(sys.argv[2])
    watch._GRACE_SECONDS = 1.0
    if place.pop("touched", False):
        jax.devices()
    try:
        with processes.joined(**place):
            found = task()
        say(found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
