"""The whole job, `experiments.compare` in a process of its own, for some amounts of audio."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import processes
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders

_WHAT = "memory"


def run(speech: str, minutes: Sequence[float], small: bool = False) -> None:
    """Peak resident memory and wall time of whole runs, and how the first grows with the audio."""
    report_machine(_WHAT)
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        for amount in minutes:
            flags = [f"--max_minutes={amount}"]
            times = processes.compare(models, speech, Path(scratch) / f"run{amount}", flags)
            report_run(_WHAT, times, minutes=amount)
            peaks[amount] = times.peak_gib
    low, high = min(peaks), max(peaks)
    if low < high:
        report(_WHAT, f"peak RSS, over that at {low:g} minutes", peaks[high] / peaks[low], "ratio",
               minutes=high)  # fmt: skip


def report_run(what: str, run: processes.Run, minutes: float) -> None:
    """Print the memory of a run, its time, and where that went."""
    report(what, "peak RSS", run.peak_gib, "GiB", minutes=minutes)
    for part, seconds in run._asdict().items():
        if part != "peak_gib":
            report(what, part, seconds, "s", minutes=minutes)
    report(what, "audio pass", 60 * minutes / run.reading, "audio-s/s", minutes=minutes)
