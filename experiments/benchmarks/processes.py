"""Programs in processes of their own: how long they take, and how much memory."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from speechsim_jax.errors import UserError

_COMPILED = re.compile(r"Finished (?:jaxpr to MLIR|XLA compilation).* in ([\d.e-]+) sec")
_MESSAGE = re.compile(r"(read|scored) .* in ([\d.]+) s\b")


class Ended(NamedTuple):
    """A process that has ended: `began` is seconds since the epoch."""

    began: float
    seconds: float
    peak_gib: float
    out: str
    errors: str


def python(module: str, arguments: Sequence[str], **environment: str) -> Ended:
    """Run `python -m module`; raises UserError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began, started = time.time(), time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read())
    if status:
        raise UserError(f"the run failed: {' '.join(command)}: {texts[1][-2000:]}")
    return Ended(began, seconds, usage.ru_maxrss / 2**20, *texts)


class Run(NamedTuple):
    """One run of `experiments.compare`, in seconds, and its peak of resident memory.

    `startup`: until the first batch; `reading`: the pass over the audio; `scores`; `saving`: what
    comes after, figures included. These four make up `total`. `compiling` is part of all of them.
    """

    total: float
    startup: float
    reading: float
    scores: float
    saving: float
    compiling: float
    peak_gib: float


def compare(models: Sequence[Path], speech: str, workdir: Path, flags: Sequence[str]) -> Run:
    """Run `experiments.compare` with these flags. The result is in `workdir`."""
    given = [f"--models={','.join(map(str, models))}", f"--audio={speech}", f"--workdir={workdir}"]
    ended = python("experiments.compare", [*given, *flags], JAX_LOG_COMPILES="1")
    spent = {"read": 0.0, "scored": 0.0}
    times = {"read": ended.began, "scored": ended.began}
    for line in (workdir / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if found := _MESSAGE.match(entry["message"]):
            spent[found[1]] += float(found[2])
            times[found[1]] = entry["time"]
    return Run(
        total=ended.seconds,
        startup=times["read"] - ended.began - spent["read"],
        reading=spent["read"],
        scores=times["scored"] - times["read"],
        saving=ended.began + ended.seconds - times["scored"],
        compiling=sum(map(float, _COMPILED.findall(ended.errors))),
        peak_gib=ended.peak_gib,
    )
