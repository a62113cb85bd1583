"""Minutes that `target_se` predicts, against those that plain runs need."""

import dataclasses
import math
import tempfile

import speechsim_jax as ss
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.audio.corpus import Corpus, total_seconds
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.audio.selection import in_turn
from speechsim_jax.inference.planning import Of, over_pairs

_WHAT = "target"
_MODELS = ("zoo:contrastive_s", "zoo:predictive_s")
_MEASURES = ("maxcorr", "linreg", "lincka", "svcca")
_TARGETS: dict[Of, tuple[float, ...]] = {"largest": (0.02, 0.01), "median": (0.0075, 0.005)}


def run(speech: str, small: bool = False) -> None:
    """Runs of two zoo models to several targets, and plain runs over parts of the same order.

    Args:
      speech: a manifest, best of one utterance of each of many speakers.
      small: one target, which is reached at once.
    """
    report_machine(_WHAT)
    corpus = with_durations(ss.open_corpus(speech))
    targets: dict[Of, tuple[float, ...]] = {"median": (0.5,)} if small else _TARGETS
    known: dict[int, dict[Of, float]] = {}
    for of, values in targets.items():
        for target in values:
            with tempfile.TemporaryDirectory() as folder:
                result = ss.compare(
                    _MODELS, corpus, _MEASURES, target_se=target, target_of=of,
                    statistics_dir=folder, progress=False,
                )  # fmt: skip
                reached = result.attributes["target"]
                labels = {"target": target, "of": of}
                report(_WHAT, "read", reached["minutes"], "min", **labels)
                for number, step in enumerate(reached["steps"], start=1):
                    report(
                        _WHAT, "predicted", step["predicted_minutes"], "min", **labels,
                        step=number, read=step["minutes"], error=step["standard_error"],
                        inflation=step["inflation"], measure=step["measure"],
                    )  # fmt: skip
                report(_WHAT, "needed", _needed(corpus, known, target, of), "min", **labels)


def _needed(corpus: Corpus, known: dict[int, dict[Of, float]], target: float, of: Of) -> float:
    """Minutes of the shortest plain run whose standard error is at most the target; inf if none.

    Args:
      corpus: of which the first utterances in turn are read.
      known: standard errors of so many utterances, which is added to.
      target: for the standard error.
      of: which.
    """
    order = in_turn(corpus, ss.Settings().seed)

    def error(count: int) -> float:
        if count not in known:
            part = dataclasses.replace(corpus, sources=tuple(order[:count]))
            result = ss.compare(_MODELS, part, _MEASURES, progress=False)
            known[count] = {
                which: max(
                    over_pairs(result.standard_error(m).values, result.matrix(m).values, which)
                    for m in _MEASURES
                )
                for which in ("largest", "median")
            }
        return known[count][of]

    low, high = 10, len(order)
    if error(high) > target:
        return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= target else (middle, high)
    return total_seconds(order[:high]) / 60
