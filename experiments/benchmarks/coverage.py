"""How often 95 % intervals of standard errors cover.

Simulated corpora: two representations of six and five neurons, rows an AR(0.9) process in every
cluster, with a signal that both share, and effects of speakers of three clusters each or none. The
truth that an interval should cover is the mean score over the simulations: scores of this many
rows, not of infinitely many.
"""

from collections.abc import Iterator

import numpy as np
import scipy.signal

import speechsim_jax as ss
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.inference.standard_errors import quantile
from speechsim_jax.measures import MEASURES

_WHAT = "coverage"
_NEURONS = (6, 5)
_MEMORY = 0.9
_PER_SPEAKER = 3

# (clusters, mean rows of each, equal lengths, effects of speakers)
_SETTINGS = (
    (40, 300, True, False),
    (40, 300, False, True),
    (200, 300, True, True),
    (40, 6000, True, False),
    (40, 6000, False, True),
)


def run(simulations: int, small: bool = False) -> None:
    """Simulate each setting.

    Args:
      simulations: corpora of each setting.
      small: few and short ones.
    """
    report_machine(_WHAT)
    measures = [name for name, measure in MEASURES.items() if measure.influence is not None]
    for clusters, rows, equal, effects in _SETTINGS[:1] if small else _SETTINGS:
        length = 40 if small else rows
        labels = {
            "clusters": clusters, "rows": length, "lengths": "equal" if equal else "unequal",
            "speakers": "effects" if effects else "none",
        }  # fmt: skip
        groups = ("speaker", "utterance") if effects else ("utterance",)
        samples = {"all": clusters * length * 4, "sample": 32 * clusters}
        for over in groups:
            for kind, most in samples.items():
                if kind == "all" and clusters * length > 100_000:
                    continue
                drawn = _draws(simulations, clusters, length, equal, effects)
                _report(drawn, measures, over, most, kind, labels)


def _report(
    drawn: Iterator[tuple[np.ndarray, ...]],
    measures: list[str],
    over: str,
    most_rows: int,
    kind: str,
    labels: dict[str, int | str],
) -> None:
    """Compare every corpus, and report the coverage of each measure."""
    scores, errors, degrees = [], [], 0
    for x, y, utterance, speaker in drawn:
        result = ss.compare_activations(
            {"x": x, "y": y}, measures, errors=True, errors_rows=most_rows, errors_source="sample",
            groups=speaker if over == "speaker" else utterance, keep_influence="none",
        )  # fmt: skip
        degrees = result.attributes["errors"]["sampled"] - 1
        scores.append([float(result.matrix(name)[0, 1]) for name in measures])
        errors.append([float(result.matrix(f"{name}_se")[0, 1]) for name in measures])
    scores, errors = np.array(scores), np.array(errors)
    half = quantile(degrees, 0.95) * errors
    covered = np.abs(scores - scores.mean(axis=0)) <= half
    defined = np.isfinite(errors)
    for k, name in enumerate(measures):
        known = defined[:, k]
        about = labels | {"over": over, "from": kind, "measure": name}
        report(_WHAT, "coverage", 100 * float(covered[known, k].mean()), "%", **about)
        ratio = float(np.sqrt(np.mean(errors[known, k] ** 2)) / scores[:, k].std(ddof=1))
        report(_WHAT, "standard error / spread of scores", ratio, "", **about)
        report(_WHAT, "without an estimate", 100 * float(1 - known.mean()), "%", **about)


def _draws(
    simulations: int, clusters: int, rows: int, equal: bool, effects: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Corpora: x, y, and the utterance and speaker of each row."""
    mixing = np.random.default_rng(1).standard_normal((3, sum(_NEURONS)))
    for simulation in range(simulations):
        rng = np.random.default_rng([simulation, clusters, rows])
        lengths = np.full(clusters, rows)
        if not equal:
            # The same total in every corpus: programs are compiled once.
            ends = np.cumsum(rng.uniform(0.2, 1.8, clusters))
            ends = np.round(ends / ends[-1] * clusters * rows).astype(int)
            lengths = np.diff(ends, prepend=0)
        utterance = np.repeat(np.arange(clusters), lengths)
        speaker = utterance // _PER_SPEAKER
        starts = np.cumsum(lengths)[:-1]
        parts = []
        for noise in np.split(rng.standard_normal((len(utterance), 3 + sum(_NEURONS))), starts):
            noise[1:] *= (1 - _MEMORY**2) ** 0.5
            parts.append(scipy.signal.lfilter([1.0], [1.0, -_MEMORY], noise, axis=0))
        series = np.concatenate(parts)
        shared, own = series[:, :3], series[:, 3:]
        if effects:
            # Speakers differ in how strongly the shared signal shows, and in their means.
            strength = np.exp(0.5 * rng.standard_normal((speaker.max() + 1, 3)))
            shared = shared * strength[speaker]
            own = own + 0.5 * rng.standard_normal((speaker.max() + 1, own.shape[1]))[speaker]
        data = shared @ mixing + 1.5 * own
        yield data[:, : _NEURONS[0]], data[:, _NEURONS[0] :], utterance, speaker
