"""Programs in processes of their own: how long they take, and how much memory."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks.machine import SMALL, report, write_encoders
from speechsim_jax.errors import UserError


class Completed(NamedTuple):
    """A process that has ended.

    Attributes:
        began: Its start, in seconds since the epoch.
        seconds: Wall time.
        peak_gib: Peak of resident memory.
        stdout: What it printed.
    """

    began: float
    seconds: float
    peak_gib: float
    stdout: str

    def last_line(self) -> dict:
        """The line of JSON that the process printed last."""
        return json.loads(self.stdout.splitlines()[-1])


def run_module(module: str, arguments: Sequence[str], **environment: str) -> Completed:
    """Run `python -m module` with these arguments; raises UserError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began, started = time.time(), time.monotonic()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        stdout.seek(0)
        stderr.seek(0)
        if status:
            raise UserError(f"the run failed: {' '.join(command)}: {stderr.read()[-2000:]}")
        return Completed(began, seconds, usage.ru_maxrss / 2**20, stdout.read())


class Run(NamedTuple):
    """One run of `experiments.compare`.

    Attributes:
        total: Wall time in seconds; the sum of the next four.
        startup: Until audio is read: imports, loading, planning and compiling.
        reading: The passes over the audio.
        scores: From the end of the last pass until everything is scored.
        saving: What comes after, figures included.
        compiling: Seconds of compiling, in all threads; part of the others.
        peak_gib: Peak of resident memory.
    """

    total: float
    startup: float
    reading: float
    scores: float
    saving: float
    compiling: float
    peak_gib: float


def compare(models: Sequence[Path], speech: str, workdir: Path, flags: Sequence[str]) -> Run:
    """Run `experiments.compare` with these flags; the result is in `workdir`."""
    # Programs that an earlier run has compiled would hide the time of compiling.
    audio = [
        f"--models={','.join(map(str, models))}", f"--audio={speech}", "--compilation_cache=none",
    ]  # fmt: skip
    completed = run_module(
        "experiments.benchmarks.timed_compare", [*audio, f"--workdir={workdir}", *flags]
    )
    times = completed.last_line()
    return Run(
        total=completed.seconds,
        startup=times["reading"] - completed.began,
        reading=times["read"] - times["reading"],
        scores=times["scored"] - times["read"],
        saving=completed.began + completed.seconds - times["scored"],
        compiling=times["compiling_seconds"],
        peak_gib=completed.peak_gib,
    )


def in_turns(
    models: Sequence[Path],
    speech: str,
    folder: Path,
    settings: Mapping[str, Sequence[str]],
    turns: int,
) -> dict[str, list[Run]]:
    """Runs of each setting, a turn of all after the other, so that a busy machine is fair.

    Args:
        models: Folders of encoders.
        speech: Folder or manifest.
        folder: For what the runs write.
        settings: Flags by name.
        turns: Of all settings.
    """
    runs: dict[str, list[Run]] = {name: [] for name in settings}
    for turn in range(turns):
        for name, flags in settings.items():
            runs[name].append(compare(models, speech, folder / f"{name}-{turn}", flags))
    return runs


def report_settings(
    what: str,
    speech: str,
    settings: Mapping[str, Sequence[str]],
    minutes: float,
    turns: int,
    small: bool,
) -> None:
    """Time and memory of runs on two base-size encoders, and their ratios to the first setting.

    Args:
        what: Name of the benchmark.
        speech: Folder or manifest.
        settings: Flags by name.
        minutes: Of audio.
        turns: Of all settings, of which figures and ratios are medians.
        small: Tiny encoders.
    """
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        limited = {name: [f"--max_minutes={minutes}", *of] for name, of in settings.items()}
        runs = in_turns(models, speech, Path(scratch), limited, turns)
    first, *_ = settings
    for name, of_setting in runs.items():
        about = {"minutes": minutes, "setting": name}
        for part in ("total", "reading", "scores", "saving"):
            seconds = statistics.median(getattr(one, part) for one in of_setting)
            report(what, part, seconds, "s", **about)
        report(what, "peak RSS", max(one.peak_gib for one in of_setting), "GiB", **about)
        if name == first:
            continue
        pairs = list(zip(of_setting, runs[first], strict=True))
        for part in ("total", "reading"):
            ratio = statistics.median(getattr(a, part) / getattr(b, part) for a, b in pairs)
            report(what, f"{part}, over {first}", ratio, "ratio", **about)
        more = statistics.median(a.peak_gib - b.peak_gib for a, b in pairs)
        report(what, f"peak RSS, more than {first}", more, "GiB", **about)
