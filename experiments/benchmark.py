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
    python -m experiments.benchmark --what=startup --speech=FOLDER --against=CHECKOUT
    python -m experiments.benchmark --what=merging
    python -m experiments.benchmark --what=coverage --rows=300
    python -m experiments.benchmark --what=pwcca
    python -m experiments.benchmark --what=errors --speech=FOLDER --minutes=10
    python -m experiments.benchmark --what=bootstraps --speech=FOLDER --glob=PATTERN
    python -m experiments.benchmark --what=null --speech=FOLDER --minutes=3 --repeats=1
    python -m experiments.benchmark --what=target --speech=MANIFEST
    python -m experiments.benchmark --what=answer --speech=FOLDER
    python -m experiments.benchmark --what=tracks --speech=FOLDER --labels=phone:FILE,speaker
    python -m experiments.benchmark --what=features --speech=FOLDER
    python -m experiments.benchmark --what=doors --speech=FOLDER --minutes=1
    python -m experiments.benchmark --what=arrays
    python -m experiments.benchmark --what=one_by_one --speech=FOLDER
    python -m experiments.benchmark --what=accelerator --minutes_limit=5
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
statistics: the update of the moments against the machine's matrix products. startup: seconds until
`experiments.compare` answers, here and in another checkout. merging: time and memory of `merge` for
5 and 50 stores. coverage: how often 95 % intervals cover the score, over --repeats simulated
corpora (400) of each kind, or of those of --rows rows a cluster. pwcca: the same of several
estimators for pwcca, which has no standard error. errors: whole runs with and without standard
errors, and held-out scores, in turns. bootstraps: standard errors of two encoders of the zoo
against --repeats bootstraps (300) over the speakers of the utterances that --glob matches. null:
p-values of 400 simulated corpora of unrelated signals, and whole runs with and without a null, if
there is --speech. target: minutes of audio that --target_se predicts, against those that plain runs
need. answer: seconds until every score of two base-size encoders is known to 0.01, by --target_se,
against reading an hour. tracks: whole runs with labels, log-mel and exemplars and without, in
turns. features: seconds of speech a second of each acoustic feature. doors: a base-size encoder
that torch runs against its port (needs the [parity] extra). arrays: a quick look at arrays against
pytorch-cka, if that is installed. one_by_one: 20 utterances of different lengths, one call for
each, against torch transformers (needs the [parity] extra), the first time and the second; programs
that 1,000 lengths compile. accelerator: selfcheck, peaks of products, moments, encoders, whole
comparisons and scaling on this device, whatever it is, in about --minutes_limit; with synthetic
speech and random weights. plots: draws the lines that memory, pipeline and scaling have printed.

All but plots print a line of JSON for the machine and one for each figure.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.entry import run_module
from speechsim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Flags:
    what: Literal[
        "memory", "pipeline", "scaling", "streaming", "scores", "accuracy", "encoder", "statistics",
        "attention", "startup", "merging", "coverage", "pwcca", "errors", "bootstraps", "null",
        "target", "answer", "tracks", "features", "doors", "arrays", "one_by_one", "accelerator",
        "plots",
    ] = flags.own("memory", "What to measure.")  # fmt: skip
    speech: str | None = flags.own(
        os.environ.get("SPEECHSIM_SPEECH"), "Speech to use (default: $SPEECHSIM_SPEECH)."
    )
    glob: tuple[str, ...] = flags.own((), "bootstraps: only utterances of these ids.")
    labels: tuple[str, ...] = flags.own((), "tracks: labels of the speech, as --labels elsewhere.")
    minutes: tuple[str, ...] = flags.own(
        (), "Minutes of audio (default: memory 4,30, pipeline 5, attention 3)."
    )
    repeats: int | None = flags.own(
        None,
        "Interleaved runs of which a figure is the median (default: 7, pipeline 3, startup 5,"
        " one_by_one 3).",
        at_least=1,
    )
    pairs: int = flags.own(
        12, "Pairs of representations that are timed of the published pipeline; 0: all.", at_least=0
    )
    rows: int | None = flags.own(
        None, "coverage: only corpora of so many rows a cluster (default: all).", at_least=1
    )
    minutes_limit: float | int = flags.own(
        5.0, "accelerator: what does not fit into so many minutes is left out.", above=0
    )
    against: str | None = flags.own(None, "Another checkout, for startup.")
    lines: str | None = flags.own(None, "File of the lines that other runs have printed.")
    out: str | None = flags.own(None, "Folder for plots.")
    small: bool = flags.own(
        False, "Tiny encoders and few rows, to try a benchmark; the figures mean nothing."
    )


def _speech(given: _Flags) -> str:
    if not given.speech:
        raise UserError("--speech (or $SPEECHSIM_SPEECH) must name a folder or manifest of speech")
    return given.speech


def _minutes(given: _Flags, *default: float) -> list[float]:
    try:
        return [float(minutes) for minutes in given.minutes] or [*default]
    except ValueError:
        raise UserError(f"--minutes={','.join(given.minutes)}: expected numbers") from None


def _labels(given: _Flags) -> tuple[str, ...]:
    if not given.labels:
        raise UserError("--labels must name labels of the speech, as phone:ALIGNMENTS")
    return given.labels


def _files(given: _Flags) -> tuple[str, str]:
    if not given.lines or not given.out:
        raise UserError("--lines must name a file of JSON lines, and --out a folder for the plots")
    return given.lines, given.out


# The arguments of `run` in the module of experiments.benchmarks of that name, but for `small`.
_ARGUMENTS: dict[str, Callable[[_Flags], tuple[Any, ...]]] = {
    "memory": lambda given: (_speech(given), _minutes(given, 4, 30)),
    "pipeline": lambda given: (
        _speech(given), _minutes(given, 5), given.repeats or 3, given.pairs,
    ),
    "scaling": lambda given: (),
    "streaming": lambda given: (_speech(given),),
    "scores": lambda given: (),
    "accuracy": lambda given: (_speech(given),),
    "encoder": lambda given: (given.repeats or 7,),
    "statistics": lambda given: (given.repeats or 7,),
    "attention": lambda given: (_speech(given), _minutes(given, 3)[0], given.repeats or 7),
    "startup": lambda given: (_speech(given), given.repeats or 5, given.against),
    "errors": lambda given: (_speech(given), _minutes(given, 10)[0], given.repeats or 3),
    "null": lambda given: (
        20 if given.small else 400, given.speech, _minutes(given, 3)[0], given.repeats or 3,
    ),
    "target": lambda given: (_speech(given),),
    "answer": lambda given: (_speech(given), 0.5 if given.small else 0.01),
    "features": lambda given: (_speech(given), given.repeats or 7),
    "doors": lambda given: (_speech(given), _minutes(given, 1)[0], given.repeats or 7),
    "arrays": lambda given: (given.repeats or 3,),
    "one_by_one": lambda given: (_speech(given), given.repeats or 3),
    "tracks": lambda given: (
        _speech(given), _labels(given), _minutes(given, 5)[0], given.repeats or 3,
    ),
    "coverage": lambda given: (given.repeats or 400, given.rows),
    "bootstraps": lambda given: (_speech(given), given.glob, given.repeats or 300),
    "pwcca": lambda given: (given.repeats or 400,),
    "accelerator": lambda given: (given.minutes_limit,),
    "merging": lambda given: ((2, 4) if given.small else (5, 50),),
    "plots": _files,
}  # fmt: skip


def define_flags() -> FlagValues:
    """The flags of this script."""
    return flags.define(_Flags)


def main(values: FlagValues) -> None:
    """Measure what --what names."""
    given = flags.from_flags(values, _Flags)
    module = importlib.import_module(f"experiments.benchmarks.{given.what}")
    options = {} if given.what == "plots" else {"small": given.small}
    module.run(*_ARGUMENTS[given.what](given), **options)


if __name__ == "__main__":
    run_module(sys.modules[__name__])
