"""What standard errors and held-out scores cost: whole runs with and without them, in turns.

Of a sample of frames: a second reading, where that says too little, costs a reading.
"""

from experiments.benchmarks.machine import report_machine
from experiments.benchmarks.processes import report_settings

_WHAT = "errors"
_FLAGS = {
    "plain": ["--errors=none"],
    "errors": ["--errors=auto", "--errors_source=sample"],
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
    report_settings(_WHAT, speech, _FLAGS, minutes, repeats, small)
