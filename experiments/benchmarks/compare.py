"""The whole job, `experiments.compare` in a process of its own, for some amounts of audio."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.machine import write_encoders
from speechsim_jax.errors import UserError


def run(speech: str, minutes: Sequence[float]) -> None:
    """Wall time, rate and peak resident memory of whole runs."""
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models")
        for wanted in minutes:
            timed_run(models, speech, Path(scratch) / f"run{wanted}", [f"--max_minutes={wanted}"])


def timed_run(models: Sequence[Path], speech: str, workdir: Path, flags: Sequence[str]) -> None:
    """One run of `experiments.compare` with these flags: its time, memory and log."""
    command = [
        sys.executable, "-m", "experiments.compare",
        f"--models={','.join(map(str, models))}", f"--audio={speech}", f"--workdir={workdir}",
        *flags,
    ]  # fmt: skip
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise UserError(f"the run failed: {' '.join(command)}")
    log = (workdir / "log.jsonl").read_text().splitlines()
    peak = usage.ru_maxrss / 2**20
    print(f"\n{' '.join(flags)}: {seconds:.0f} s in all, peak RSS {peak:.2f} GiB")
    for line in log:
        print("  " + json.loads(line)["message"])
