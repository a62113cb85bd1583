"""Jobs in shards, each shard a process, against one job: prints JSON for `test_shard_processes`.

    python -m tests.support.shard_runs FOLDER

"four": one shard is killed and run again, one is started twice at once, one runs on four simulated
devices. "hosts": two processes that `jax.distributed` numbers, as on a pod. "rivals": two processes
in one workdir at once, many times, the second after a random time: how many have written results.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

import speechsim_jax as ss
from tests.support.paths import DATA, ROOT
from tests.support.same_result import CHOICES

_MODELS = [str(DATA / "parity" / name) for name in ("wavlm-base", "hubert-large")]
_RIVALS = 20


def main(folder: Path, rivals: int = _RIVALS) -> None:
    """Run them all."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    for number in range(16):
        wave = 0.1 * rng.standard_normal(rng.choice([7000, 9000]))
        soundfile.write(folder / "audio" / f"{number}.wav", wave, 16_000)
    command = [
        sys.executable, "-m", "experiments.compare", f"--models={','.join(_MODELS)}",
        f"--audio={folder / 'audio'}", "--measures=maxcorr,mincorr,linreg,lincka,svcca,pwcca,rsa",
        "--batch_seconds=2", "--buckets=1", "--rows_per_update=40", "--sample_frames=100",
        "--checkpoint_every=0", f"--compilation_cache={folder / 'xla'}",
    ]  # fmt: skip
    assert _start(command, folder / "one").wait() == 0
    one = ss.SimilarityResult.load(folder / "one" / "result.nc")
    report = {
        "four": _four(command, folder / "four"),
        "hosts": _hosts(command, folder / "hosts"),
        "rivals": _rivals(command, folder, rivals),
    }
    for name in ("four", "hosts"):
        report[name] |= _against(one, folder / name)
    print(json.dumps(report))


def _start(command: list[str], workdir: Path, *flags: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _four(command: list[str], workdir: Path) -> dict[str, object]:
    killed = _start(command, workdir, "--shard=1/4")
    while killed.poll() is None and not list(workdir.glob("statistics/shard-1-of-4/pass-*")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    twice = [_start(command, workdir, "--shard=2/4") for _ in range(2)]
    codes = sorted(process.wait() for process in twice)
    errors = [_last_line(process) for process in twice if process.returncode]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    others = [
        _start(command, workdir, "--shard=3/4", **devices).wait(),
        _start(command, workdir, "--shard=4/4").wait(),
        _start(command, workdir, "--shard=1/4", "--resume").wait(),
    ]
    return {"killed": killed.returncode, "twice": codes, "said": errors, "others": others}


def _hosts(command: list[str], workdir: Path) -> dict[str, object]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    hosts = [
        _start(
            command, workdir, "--shard=pod",
            JAX_COORDINATOR_ADDRESS=address,
            OMPI_MCA_orte_hnp_uri="4096.0;tcp://127.0.0.1:1",
            OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK=str(k), OMPI_COMM_WORLD_LOCAL_RANK="0",
        )
        for k in range(2)
    ]  # fmt: skip
    codes = [host.wait() for host in hosts]
    return {"codes": codes, "said": [_last_line(host) for host in hosts if host.returncode]}


def _rivals(command: list[str], folder: Path, count: int) -> dict[str, object]:
    rng = random.Random(0)
    winners, refused = [], []
    started = time.monotonic()
    assert _start(command, folder / "timed").wait() == 0
    seconds = time.monotonic() - started
    for number in range(count):
        workdir = folder / f"rivals{number}"
        first = _start(command, workdir)
        time.sleep(rng.uniform(0, seconds))
        second = _start(command, workdir)
        both = [first, second]
        codes = [process.wait() for process in both]
        winners.append(codes.count(0))
        refused += [_last_line(process) for process in both if process.returncode]
    said = [any(w in line for w in ("works in it", "exists", "unfinished")) for line in refused]
    return {"winners": winners, "said": all(said) and len(said) == count}


def _last_line(process: subprocess.Popen) -> str:
    assert process.stderr is not None
    return (process.stderr.read().splitlines() or [""])[-1]


def _against(one: ss.SimilarityResult, workdir: Path) -> dict[str, object]:
    if not (workdir / "result.nc").exists():
        return {}
    found = ss.SimilarityResult.load(workdir / "result.nc")
    return {
        "errors": {
            m: float(np.nanmax(np.abs(found.matrix(m).values - one.matrix(m).values)))
            for m in one.measures
        },
        "choices": [
            found.dataset[name].equals(one.dataset[name])
            for name in CHOICES
            if name in one.dataset
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
