"""What standard errors and held-out scores cost: whole runs with and without them, in turns."""

import statistics
import tempfile
from pathlib import Path

from experiments.benchmarks import processes
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders

_WHAT = "errors"
_FLAGS = {
    "plain": ["--errors=none"],
    "errors": ["--errors=auto"],
    "held out": ["--errors=none", "--heldout"],
}


def run(speech: str, minutes: float, repeats: int, small: bool = False) -> None:
    """Time and memory of runs on two base-size encoders, each setting in turns.

    Args:
      speech: folder or manifest.
      minutes: of audio.
      repeats: turns, of which ratios are the median.
      small: tiny encoders.
    """
    report_machine(_WHAT)
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        settings = {name: [f"--max_minutes={minutes}", *flags] for name, flags in _FLAGS.items()}
        runs = processes.in_turns(models, speech, Path(scratch), settings, repeats)
    for name, of_setting in runs.items():
        labels = {"minutes": minutes, "setting": name}
        for part in ("total", "reading", "scores", "saving"):
            seconds = statistics.median(getattr(one, part) for one in of_setting)
            report(_WHAT, part, seconds, "s", **labels)
        report(_WHAT, "peak RSS", max(one.peak_gib for one in of_setting), "GiB", **labels)
        if name == "plain":
            continue
        turns = list(zip(of_setting, runs["plain"], strict=True))
        for part in ("total", "reading"):
            ratio = statistics.median(getattr(a, part) / getattr(b, part) for a, b in turns)
            report(_WHAT, f"{part}, over plain", ratio, "ratio", **labels)
        more = statistics.median(a.peak_gib - b.peak_gib for a, b in turns)
        report(_WHAT, "peak RSS, more than plain", more, "GiB", **labels)
