"""What tracks, labels and exemplars cost: whole runs with and without them, in turns."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import processes
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders

_WHAT = "tracks"


def run(
    speech: str, labels: Sequence[str], minutes: float, repeats: int, small: bool = False
) -> None:
    """Time and memory of runs on two base-size encoders, each setting in turns.

    Args:
      speech: folder or manifest.
      labels: as `--labels`; those of alignments have all classes but the rarest.
      minutes: of audio.
      repeats: turns, of which ratios are the median.
      small: tiny encoders.
    """
    report_machine(_WHAT)
    flags = {
        "plain": [],
        "tracks": ["--tracks=logmel", f"--labels={','.join(labels)}", "--label_min_share=0.0002"],
        "exemplars": ["--exemplars=5", "--exemplars_audio=none"],
    }
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        common = [f"--max_minutes={minutes}", "--errors_source=sample"]
        settings = {name: [*common, *further] for name, further in flags.items()}
        runs = processes.in_turns(models, speech, Path(scratch), settings, repeats)
    for name, of_setting in runs.items():
        about = {"minutes": minutes, "setting": name}
        for part in ("total", "reading", "scores", "saving"):
            seconds = statistics.median(getattr(one, part) for one in of_setting)
            report(_WHAT, part, seconds, "s", **about)
        report(_WHAT, "peak RSS", max(one.peak_gib for one in of_setting), "GiB", **about)
        if name == "plain":
            continue
        for part in ("total", "reading"):
            turns = zip(of_setting, runs["plain"], strict=True)
            ratio = statistics.median(getattr(a, part) / getattr(b, part) for a, b in turns)
            report(_WHAT, f"{part}, over plain", ratio, "ratio", **about)
