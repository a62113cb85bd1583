"""Measure, and print figures; nothing here asserts anything.

    python -m experiments.benchmark --what=compare --speech=FOLDER --minutes=4,30
    python -m experiments.benchmark --what=streaming --speech=FOLDER
    python -m experiments.benchmark --what=scores
    python -m experiments.benchmark --what=accuracy --speech=FOLDER
    python -m experiments.benchmark --what=encoder
    python -m experiments.benchmark --what=attention --speech=FOLDER --minutes=3
    python -m experiments.benchmark --what=statistics

compare: the whole job (`experiments.compare`, a process of its own each time) with two base-size
encoders, wav2vec2 and HuBERT layouts with seeded random weights: wall time, audio-seconds per
second and peak memory, for each of --minutes. streaming: in one process, the same audio once and
eight times over: peak of live device bytes and of host memory. scores: the measures of the paper
alone, on 26 networks of width 768, against a plain numpy loop over pairs. accuracy: float32
statistics against float64, on rows made to be hard and on real hidden states. encoder: forward
passes of base and large against torch transformers (needs the [parity] extra). attention: the
attention level of two base-size encoders over the first of --minutes, against a plain loop over
stored maps. statistics: the update of the moments against the machine's own products.
"""

import importlib
import os
from collections.abc import Callable

from absl import flags

from experiments import _flags
from speechsim_jax.errors import UserError

_SPEECH = flags.DEFINE_string(
    "speech", os.environ.get("SPEECHSIM_SPEECH"), "Speech to use (default: $SPEECHSIM_SPEECH)."
)
_MINUTES = flags.DEFINE_list("minutes", ["4", "30"], "Minutes of audio for --what=compare.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved runs behind a median.", lower_bound=1)


def _speech() -> str:
    if not _SPEECH.value:
        raise UserError("--speech (or $SPEECHSIM_SPEECH) must name a folder or manifest of speech")
    return _SPEECH.value


# The arguments of `run` in the module of experiments.benchmarks of that name.
_ARGUMENTS: dict[str, Callable[[], tuple]] = {
    "compare": lambda: (_speech(), [float(minutes) for minutes in _MINUTES.value]),
    "streaming": lambda: (_speech(),),
    "scores": lambda: (),
    "accuracy": lambda: (_speech(),),
    "encoder": lambda: (_REPEATS.value,),
    "statistics": lambda: (_REPEATS.value,),
    "attention": lambda: (_speech(), float(_MINUTES.value[0]), _REPEATS.value),
}
_WHAT = flags.DEFINE_enum("what", "compare", list(_ARGUMENTS), "What to measure.")


def main() -> None:
    """Measure what --what names."""
    module = importlib.import_module(f"experiments.benchmarks.{_WHAT.value}")
    module.run(*_ARGUMENTS[_WHAT.value]())


if __name__ == "__main__":
    _flags.start(main)
