"""Measure, and print figures; nothing here asserts anything.

    python -m experiments.benchmark --what=memory --speech=FOLDER --minutes=4,30
    python -m experiments.benchmark --what=pipeline --speech=FOLDER --minutes=5 --repeats=3
    python -m experiments.benchmark --what=scaling
    python -m experiments.benchmark --what=streaming --speech=FOLDER
    python -m experiments.benchmark --what=scores
    python -m experiments.benchmark --what=accuracy --speech=FOLDER
    python -m experiments.benchmark --what=encoder
    python -m experiments.benchmark --what=attention --speech=FOLDER --minutes=3
    python -m experiments.benchmark --what=statistics
    python -m experiments.benchmark --what=plots --lines=FILE --out=FOLDER

memory: the whole job (`experiments.compare`, a process of its own each time) with two base-size
encoders, wav2vec2 and HuBERT layouts with seeded random weights: peak memory and wall time for each
of --minutes. pipeline: the same job against the published pipeline in torch (needs the [parity]
extra), of which --pairs pairs of representations are timed. scaling: work and collectives of each
device of several meshes, from compiled programs. streaming: in one process, the same audio once and
eight times over: peak of live device bytes and of host memory. scores: the measures of the paper
alone, on 26 representations of width 768, against a plain numpy loop over pairs. accuracy: float32
statistics against float64, on difficult rows and on real hidden states. encoder: forward passes of
base and large against torch transformers (needs the [parity] extra). attention: the attention level
of two base-size encoders over the first of --minutes, against a plain loop over stored maps.
statistics: the update of the moments against the machine's matrix products. plots: draws the lines
that memory, pipeline and scaling have printed.

All but plots print a line of JSON for the machine and one for each figure.
"""

import importlib
import os
from collections.abc import Callable

from absl import flags

from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError

_SPEECH = flags.DEFINE_string(
    "speech", os.environ.get("SPEECHSIM_SPEECH"), "Speech to use (default: $SPEECHSIM_SPEECH)."
)
_MINUTES = flags.DEFINE_list(
    "minutes", None, "Minutes of audio (default: memory 4,30, pipeline 5, attention 3)."
)
_REPEATS = flags.DEFINE_integer(
    "repeats",
    None,
    "Interleaved runs of which a figure is the median (default: 7, pipeline 3).",
    lower_bound=1,
)
_PAIRS = flags.DEFINE_integer(
    "pairs", 12, "Pairs of representations that are timed of the published pipeline; 0: all.",
    lower_bound=0,
)  # fmt: skip
_LINES = flags.DEFINE_string("lines", None, "File of the lines that other runs have printed.")
_OUT = flags.DEFINE_string("out", None, "Folder for plots.")
_SMALL = flags.DEFINE_bool(
    "small", False, "Tiny encoders and few rows, to try a benchmark; the figures mean nothing."
)


def _speech() -> str:
    if not _SPEECH.value:
        raise UserError("--speech (or $SPEECHSIM_SPEECH) must name a folder or manifest of speech")
    return _SPEECH.value


def _minutes(*default: float) -> list[float]:
    texts = _MINUTES.value or []
    try:
        return [float(minutes) for minutes in texts] or [*default]
    except ValueError:
        raise UserError(f"--minutes={','.join(texts)}: expected numbers") from None


def _repeats(default: int = 7) -> int:
    return _REPEATS.value or default


def _files() -> tuple[str, str]:
    if not _LINES.value or not _OUT.value:
        raise UserError("--lines must name a file of JSON lines, and --out a folder for the plots")
    return _LINES.value, _OUT.value


# The arguments of `run` in the module of experiments.benchmarks of that name, but for `small`.
_ARGUMENTS: dict[str, Callable[[], tuple]] = {
    "memory": lambda: (_speech(), _minutes(4, 30)),
    "pipeline": lambda: (_speech(), _minutes(5), _repeats(3), _PAIRS.value),
    "scaling": lambda: (),
    "streaming": lambda: (_speech(),),
    "scores": lambda: (),
    "accuracy": lambda: (_speech(),),
    "encoder": lambda: (_repeats(),),
    "statistics": lambda: (_repeats(),),
    "attention": lambda: (_speech(), _minutes(3)[0], _repeats()),
    "plots": _files,
}
_WHAT = flags.DEFINE_enum("what", "memory", list(_ARGUMENTS), "What to measure.")


def main() -> None:
    """Measure what --what names."""
    module = importlib.import_module(f"experiments.benchmarks.{_WHAT.value}")
    options = {} if _WHAT.value == "plots" else {"small": _SMALL.value}
    module.run(*_ARGUMENTS[_WHAT.value](), **options)


if __name__ == "__main__":
    _flags.start(main)
