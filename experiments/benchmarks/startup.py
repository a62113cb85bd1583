"""How soon a command answers: its help, a mistake, and the first line of a run.

Each is a process of its own, `python -m experiments.compare` in a checkout of this repository. With
another checkout to compare with, both take turns.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.machine import report, report_machine

_WHAT = "startup"
_HERE = Path(__file__).resolve().parents[2]
_MODELS = "--models=zoo:contrastive_s,zoo:predictive_s"
_MISSING = "no/such/folder"


def run(speech: str, repeats: int, against: str | None, small: bool = False) -> None:
    """Time each answer; medians over the repeats.

    Args:
      speech: folder of the run whose first line is timed.
      repeats: of each.
      against: another checkout, None for none.
      small: once only.
    """
    report_machine(_WHAT)
    checkouts = {"this": _HERE} | ({"the other": Path(against)} if against else {})
    with tempfile.TemporaryDirectory() as scratch:
        workdir = f"--workdir={Path(scratch, 'run')}"
        answers = {
            "help": ["--help"],
            "wrong flag": ["--modells=x"],
            "missing model folder": [f"--models={_MISSING}", f"--audio={speech}", workdir],
            "missing audio": [_MODELS, f"--audio={_MISSING}", workdir],
            "first line of a run": [_MODELS, f"--audio={speech}", "--max_minutes=0.2", workdir],
        }
        for figure, arguments in answers.items():
            seconds: dict[str, list[float]] = {name: [] for name in checkouts}
            for _ in range(1 if small else repeats):
                for name, folder in checkouts.items():
                    until_first = figure.startswith("first line")
                    seconds[name].append(_seconds(folder, [*arguments, "--overwrite"], until_first))
            for name, times in seconds.items():
                report(_WHAT, figure, statistics.median(times), "s", checkout=name)


def _seconds(checkout: Path, arguments: Sequence[str], until_first_line: bool) -> float:
    """From the start of the command to its end, or to the first line that it prints."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.compare", *arguments],
        cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        if until_first_line:
            process.stdout.readline()
            seconds = time.perf_counter() - started
            process.kill()
            return seconds
        process.stdout.read()
    return time.perf_counter() - started
