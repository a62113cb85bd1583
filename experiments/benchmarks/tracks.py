"""What tracks, labels and exemplars cost: whole runs with and without them, in turns."""

from collections.abc import Sequence

from experiments.benchmarks.machine import report_machine
from experiments.benchmarks.processes import report_settings

_WHAT = "tracks"
_RAREST = 0.0002  # classes of a smaller share of the labelled audio are left out


def run(
    speech: str, labels: Sequence[str], minutes: float, repeats: int, small: bool = False
) -> None:
    """Time and memory of runs on two base-size encoders, each setting in turns.

    Args:
      speech: folder or manifest.
      labels: as `--labels`.
      minutes: of audio.
      repeats: turns, of which ratios are the median.
      small: tiny encoders.
    """
    report_machine(_WHAT)
    named = [f"--labels={','.join(labels)}", f"--label_min_share={_RAREST}"]
    settings = {
        "plain": [],
        "tracks": ["--tracks=logmel", *named],
        "exemplars": ["--exemplars=5", "--exemplars_audio=none"],
    }
    with_sample = {name: ["--errors_source=sample", *of] for name, of in settings.items()}
    report_settings(_WHAT, speech, with_sample, minutes, repeats, small)
