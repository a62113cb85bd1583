"""Several processes of one job: what they exchange, and how they end when one of them is lost.

Real processes (`two_processes`) of two simulated devices each.
"""

import concurrent.futures
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechsim_jax.errors import UserError
from speechsim_jax.runtime import processes, watch
from tests.support import two_processes
from tests.support.paths import ROOT
from tests.support.two_processes import free_port

SILENCE = 3.0
GONE = "has gone (killed, or out of memory?)"
AGAIN = (
    "; the job cannot finish without it; start all processes again with --resume to go on from the "
    "last checkpoints"
)

# What runs in this process: seconds of audio and the number of processes.
_weights = st.lists(st.one_of(st.just(0), st.floats(0.1, 100)), max_size=40)
_few = st.lists(st.floats(0.1, 100), min_size=1, max_size=6)


@given(_weights, st.integers(1, 9))
def test_shares_are_disjoint_and_cover(weights, count):
    parts = processes.shares(weights, count)
    assert len(parts) == count
    assert sorted(itertools.chain(*parts)) == list(range(len(weights)))
    assert all(part == sorted(part) for part in parts)
    # Nobody is idle while another one has two.
    assert min(map(len, parts)) > 0 or max(map(len, parts)) <= 1


@given(_few, st.integers(1, 3))
def test_shares_are_balanced(weights, count):
    """Graham's bound for the heaviest first, against all ways there are."""
    heaviest = max(sum(weights[i] for i in part) for part in processes.shares(weights, count))
    best = min(
        max(np.bincount(way, weights, count))
        for way in itertools.product(range(count), repeat=len(weights))
    )
    assert heaviest <= (4 / 3 - 1 / (3 * count)) * best * (1 + 1e-12)


def test_unknown_lengths_count_as_the_mean():
    assert processes.shares([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    assert (
        processes.shares([3, 0, 1, 2], 2) == processes.shares([3, 2, 1, 2], 2) == [[0, 2], [1, 3]]
    )


def test_processes_that_have_not_joined_are_refused(monkeypatch):
    processes.check_joined()
    monkeypatch.setattr(processes.jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="there are 4 processes, and each would do the whole job"):
        processes.check_joined()


def test_alone():
    """Without others nothing is asked of them, and no device is touched to know it."""
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    tree = {"a": np.arange(3.0), "b": [np.float64(1).reshape(())]}
    with processes.joined(), processes.joined("localhost:1", count=1, index=0):
        assert processes.share("abc", [1, 2, 3]) == ("a", "b", "c")
        assert processes.gather_json({"a": 1}) == [{"a": 1}]
        assert processes.gather(tree["a"])[0] is tree["a"]
        assert processes.broadcast(tree)["a"] is tree["a"]
        processes.check()
    with pytest.raises(UserError, match="mine"), processes.joined():
        raise UserError("mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(coordinator="localhost:1234"), "is not clear from coordinator 'localhost:1234'"),
        (dict(count=2, index=0), "is not clear from coordinator None, number of processes 2"),
        (dict(coordinator="localhost:1234", count=2), "number of this process None"),
        (dict(coordinator="auto", count=2, index=0), "is not clear from coordinator 'auto'"),
        (dict(coordinator="localhost", count=2, index=0), "'localhost' is no HOST:PORT"),
        (dict(coordinator="localhost:0", count=2, index=0), "'localhost:0' is no HOST:PORT"),
        (dict(coordinator="localhost:70000", count=2, index=0), "is no HOST:PORT"),
        (
            dict(coordinator="localhost:1234", count=2, index=2),
            "no process 2 of 2: they are 0 to 1",
        ),
        (dict(coordinator="localhost:1234", count=2, index=-1), "no process -1 of 2"),
    ],
)
def test_places_that_make_no_sense(given, said):
    with pytest.raises(UserError, match=said) as caught, processes.joined(**given):
        pass
    assert "\n" not in str(caught.value)


def test_the_environment(monkeypatch):
    """SLURM says which process this is; outside of it and its like nothing does."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "OMPI", "TPU"))]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="does not say which process"), processes.joined("auto"):
        pass
    slurm = dict(
        SLURM_JOB_ID="70000", SLURM_STEP_NODELIST="node[3-4]", SLURM_NTASKS="2", SLURM_PROCID="1",
        SLURM_LOCALID="0", SLURM_STEP_NUM_NODES="2",
    )  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    place, devices = processes._place("auto", None, None, 1)
    assert place == watch.Place("node3", 61440 + 70000 % 4096, count=2, index=1)
    assert devices == [0]
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with processes.joined("auto"):
        assert processes.count() == 1


class Pair:
    """Two processes with a task; what each has said and how it has ended."""

    def __init__(self, folder: Path, task: str, *changes: dict[str, Any]):
        self.port = free_port()
        place = dict(
            coordinator=f"localhost:{self.port}", count=2,
            timeout_seconds=30, silence_seconds=SILENCE,
        )  # fmt: skip
        changes = changes or ({"index": 0}, {"index": 1})
        self.said = [folder / f"out{k}" for k in range(len(changes))]
        self.errors = [folder / f"err{k}" for k in range(len(changes))]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.two_processes",
                    task,
                    json.dumps(place | change),
                ],
                cwd=ROOT,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
                stdout=out.open("w"),
                stderr=err.open("w"),
            )
            for out, err, change in zip(self.said, self.errors, changes)
        ]

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def signal(self, who: int, what: signal.Signals) -> None:
        """Send a signal when both are at work."""
        until = time.monotonic() + 60
        while not all("ready" in out.read_text() for out in self.said):
            assert time.monotonic() < until, [path.read_text() for path in self.errors]
            time.sleep(0.02)
        time.sleep(0.3)
        self.processes[who].send_signal(what)

    def end(self, who: int, seconds: float = 60) -> tuple[int, str]:
        """The exit code of one, and its last line on stderr."""
        code = self.processes[who].wait(seconds)
        lines = self.errors[who].read_text().splitlines()
        return code, lines[-1] if lines else ""


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> list[dict[str, Any]]:
    with Pair(tmp_path_factory.mktemp("exchange"), "exchange") as pair:
        assert [pair.end(k) for k in (0, 1)] == [(0, ""), (0, "")]
        return [json.loads(said.read_text().splitlines()[-1]) for said in pair.said]


def test_they_know_each_other(exchanged):
    assert [one["place"] for one in exchanged] == [[0, 2, True], [1, 2, False]]
    assert [one["devices"] for one in exchanged] == [[2, 4], [2, 4]]
    assert [one["share"] for one in exchanged] == [["a", "c", "e", "g"], ["b", "d", "f"]]


def test_every_bit_arrives(exchanged):
    names = set(two_processes.own(0))
    assert set(two_processes.EXTREMES) < names
    for one in exchanged:
        assert one["broadcast"] == dict.fromkeys(names, True)
    assert exchanged[0]["gathered"] == {name: [True, True] for name in names}
    assert exchanged[1]["gathered"] is True  # nothing but None
    assert exchanged[0]["uneven"] == [5, 3005] and exchanged[0]["uneven is right"]
    assert exchanged[0]["json"] == [{"index": 0, "text": ""}, {"index": 1, "text": "ü"}]
    assert exchanged[1]["json"] is exchanged[1]["uneven"] is None


def test_a_signal_to_end_still_does(exchanged):
    """jax catches SIGTERM and goes on."""
    assert all(one["sigterm"] for one in exchanged)


def test_one_fails(tmp_path):
    with Pair(tmp_path, "fail") as pair:
        assert pair.end(1) == (2, f"error: {two_processes.REASON}")
        failed = f"error: process 1 of 2 failed: {two_processes.REASON}{AGAIN}"
        assert pair.end(0) == (2, failed)


@pytest.mark.parametrize(("task", "killed"), [("work", 0), ("work", 1), ("exchanging", 1)])
def test_one_is_killed(task, killed, tmp_path):
    """The other one stops at its next look, before it could wonder at the silence."""
    with Pair(tmp_path, task) as pair:
        pair.signal(killed, signal.SIGKILL)
        assert pair.end(1 - killed, SILENCE) == (2, f"error: process {killed} of 2 {GONE}{AGAIN}")
        assert "fatal" not in pair.errors[1 - killed].read_text()  # jax had no say


@pytest.mark.parametrize("task", ["stuck", "asleep"])
def test_one_that_never_looks(task, tmp_path):
    """The other is frozen: the watch itself has to end a process that waits for it or is busy."""
    with Pair(tmp_path, task) as pair:
        pair.signal(1, signal.SIGSTOP)
        silent = f"error: process 1 of 2 has not been heard of for 3 s{AGAIN}"
        assert pair.end(0, SILENCE + 4) == (2, silent)


def _meet(place: tuple[int, int], port: int, seconds: float) -> str:
    """What keeps one of several processes from joining; empty if nothing does."""
    try:
        watch.meet(watch.Place("localhost", port, *place), seconds)
    except UserError as error:
        return str(error)
    return ""


def _meet_all(*places: tuple[int, int], seconds: float = 1.0) -> list[str]:
    """Processes (count, index) that come 0.2 s after each other."""
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = []
        for place in places:
            futures.append(pool.submit(_meet, place, port, seconds))
            time.sleep(0.2)
        return [future.result().replace(str(port), "PORT") for future in futures]


def test_meeting():
    assert _meet_all((3, 2), (3, 0), (3, 1)) == ["", "", ""]


def test_who_cannot_join():
    """Who does not come is named; who says otherwise than process 0 is sent away."""
    first, *others = _meet_all((3, 0), (3, 1), (2, 1), (3, 1), (3, 3))
    assert first == "process 2 of 3 did not come within 1 s to localhost:PORT; start all 3"
    assert others == [
        f"process 1 cannot join at localhost:PORT: {first}",
        "process 1 cannot join at localhost:PORT: this job has 3 processes, not 2",
        "process 1 cannot join at localhost:PORT: there is already a process 1 of 3",
        "process 3 cannot join at localhost:PORT: there is no process 3 of 3",
    ]


def test_strangers_at_the_door():
    """Whatever else connects is not counted, and does no harm."""
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(_meet, (2, 0), port, 5)
        time.sleep(0.2)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", b'["hello", [2]]\n', b""):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(words)
        second = pool.submit(_meet, (2, 1), port, 5)
        assert [first.result(), second.result()] == ["", ""]


def test_the_door_is_taken():
    with socket.create_server(("", 0)) as server:
        taken = f"localhost:{server.getsockname()[1]}"
        place = dict(coordinator=taken, count=2, index=0)
        with pytest.raises(UserError, match="cannot listen on port"), processes.joined(**place):
            pass
    place = dict(coordinator=taken, count=2, index=1, timeout_seconds=0.5)
    with pytest.raises(UserError, match="was not reached at") as caught, processes.joined(**place):
        pass
    assert f"process 0 of 2 was not reached at {taken} within 0.5 s" in str(caught.value)


def test_too_late_to_join(tmp_path):
    with Pair(tmp_path, "nothing", dict(index=0), dict(index=1, touched=True)) as pair:
        code, said = pair.end(1)
        assert code == 2 and "its devices have been touched" in said
        code, said = pair.end(0)
        assert code == 2 and said.startswith("error: process 1 of 2 failed: this process cannot")
