"""Whether p-values of a null are uniform for signals that are unrelated, and what a null costs.

Simulated corpora: a representation and another of three layers, neurons of all of them independent
AR processes in every utterance. With 19 draws p is a multiple of 1/20; a share s of the
p-values is to be at most s.
"""

from typing import Literal

import numpy as np
import scipy.signal

import speechsim_jax as ss
from experiments.benchmarks import processes
from experiments.benchmarks.machine import report, report_machine

_WHAT = "null"
_UTTERANCES, _NEURONS, _LAYERS = 40, 6, 3
# (rows of an utterance, memory); the last are short for so slow signals.
_SETTINGS = ((300, 0.9), (100, 0.95))
_DRAWS = 19
_MEASURES = ("maxcorr", "linreg", "lincka", "svcca")
_FLAGS = {
    "plain": [],
    "shift": ["--null=shift"],
    "swap": ["--null=swap"],
}


def run(
    simulations: int, speech: str | None, minutes: float, repeats: int, small: bool = False
) -> None:
    """Simulate, then time whole runs with and without a null in turns.

    Args:
      simulations: corpora.
      speech: folder or manifest; None to simulate only.
      minutes: of speech.
      repeats: turns, of which ratios are the median.
      small: tiny encoders.
    """
    report_machine(_WHAT)
    for rows, memory in _SETTINGS:
        _report_p_values("shift", simulations, rows, memory)
        _report_p_values("swap", simulations, rows, memory)
    if speech is not None:
        settings = {name: ["--errors=none", *of] for name, of in _FLAGS.items()}
        processes.report_settings(_WHAT, speech, settings, minutes, repeats, small)


def _report_p_values(
    null: Literal["shift", "swap"], simulations: int, rows: int, memory: float
) -> None:
    """Shares of the p-values of single cells and of the best layer."""
    cells: dict[str, list[float]] = {name: [] for name in _MEASURES}
    best: dict[str, list[float]] = {name: [] for name in _MEASURES}
    utterances = np.repeat(np.arange(_UTTERANCES), rows)
    for simulation in range(simulations):
        rng = np.random.default_rng(simulation)
        noise = rng.standard_normal((_UTTERANCES, rows, (1 + _LAYERS) * _NEURONS))
        noise[:, 1:] *= (1 - memory**2) ** 0.5
        series = np.asarray(scipy.signal.lfilter([1.0], [1.0, -memory], noise, axis=1))
        parts = np.split(series.reshape(len(utterances), -1), 1 + _LAYERS, axis=1)
        result = ss.compare_activations(
            {"x/0": parts[0]} | {f"y/{k}": part for k, part in enumerate(parts[1:])},
            _MEASURES, null=null, null_draws=_DRAWS, utterances=utterances, seed=simulation,
        )  # fmt: skip
        for name in _MEASURES:
            cells[name].append(float(result.matrix(f"{name}_p").loc["x/0", "y/0"]))
            best[name].append(float(result.dataset[f"{name}_p_best"].loc["x/0", "y"]))
    for over, values in (("one cell", cells), ("best of three layers", best)):
        for name, drawn in values.items():
            for bound in (0.05, 0.25, 0.5):
                share = 100 * float(np.mean(np.array(drawn) <= bound + 1e-9))
                labels = {
                    "null": null,
                    "rows": rows,
                    "memory": memory,
                    "measure": name,
                    "of": over,
                    "p at most": bound,
                }
                report(_WHAT, "share of p-values", share, "%", **labels)
