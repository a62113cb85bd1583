"""How often 95 % intervals of standard errors cover.

Simulated corpora: two representations of six and five neurons, rows an AR(0.9) process in every
cluster, with a signal that both share. Clusters are utterances; or speakers of three utterances
each, who differ in how strongly the signal shows and in their means. Or the second is the first and
10 % noise. The truth that an interval should cover is the mean score over the simulations: scores
of this many rows, not of infinitely many.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.signal

import speechsim_jax as ss
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES

_WHAT = "coverage"
_NEURONS = (6, 5)
_MEMORY = 0.9
_PER_SPEAKER = 3
# Rows of the sample that kernels, ranks and neighbours are of.
_SAMPLE_FRAMES = 600

# Clusters, mean rows of each, equal lengths, effects of speakers, alike; and of --repeats corpora
# so many where they are long.
_SETTINGS = (
    (40, 300, True, False, False, None),
    (40, 300, True, False, True, None),
    (12, 900, True, True, False, None),
    (40, 300, True, True, False, None),
    (40, 300, False, False, False, None),
    (40, 300, False, True, False, None),
    (40, 300, False, True, True, None),
    (200, 300, True, False, False, None),
    (200, 300, False, True, False, None),
    (40, 6000, True, False, False, None),
    (40, 6000, False, True, False, None),
    (200, 6000, False, False, False, None),
    (200, 6000, True, True, False, None),
    (40, 30_000, True, False, False, None),
    (40, 30_000, False, True, False, None),
    (200, 30_000, False, True, False, 100),
)
# Rows of the sample: the default, or where that takes all rows, 32 of each cluster.
_SAMPLE, _ROWS_OF_SHORT = 20_000, 32
# Clusters of a corpus whose scores stand for those of endless audio, and of one chunk of it.
_MANY, _CHUNK = 60_000, 600


def run(simulations: int, rows: int | None = None, small: bool = False) -> None:
    """Simulate each setting.

    Args:
      simulations: corpora of each setting.
      rows: only settings of so many rows a cluster; None for all.
      small: few and short ones.
    """
    settings = [setting for setting in _SETTINGS if rows in (None, setting[1])]
    if not settings:
        lengths = ", ".join(map(str, sorted({setting[1] for setting in _SETTINGS})))
        raise UserError(f"--rows={rows}: corpora have {lengths} rows a cluster")
    report_machine(_WHAT)
    measures = [name for name, measure in MEASURES.items() if measure.influence is not None]
    endless = {
        (effects, alike): _endless(measures, effects, alike, _CHUNK if small else _MANY)
        for effects in (False, True)
        for alike in (False, True)
    }
    for clusters, mean_rows, equal, effects, alike, most in settings[:1] if small else settings:
        length = 40 if small else mean_rows
        labels = {
            "clusters": clusters, "rows": length, "lengths": "equal" if equal else "unequal",
            "speakers": "effects" if effects else "none",
            "representations": "alike" if alike else "of one signal",
        }  # fmt: skip
        total = clusters * length
        samples = {"sample": _SAMPLE if total > _SAMPLE else clusters * _ROWS_OF_SHORT}
        if total <= 100_000:
            samples = {"all rows": 4 * total} | samples
        overs = ("speaker",) if effects else ("utterance",)
        if effects and mean_rows == 300:
            overs = ("speaker", "utterance")  # the latter to show that they are too small
        for over in overs:
            for kind, errors_rows in samples.items():
                count = min(simulations, most or simulations)
                drawn = draws(count, clusters, length, equal, effects, alike)
                about = labels | {"over": over, "from": kind, "corpora": count}
                _report(drawn, measures, over, errors_rows, about, endless[effects, alike])


def _report(
    drawn: Iterator[tuple[np.ndarray, ...]],
    measures: list[str],
    over: str,
    errors_rows: int,
    about: dict[str, Any],
    endless: np.ndarray,
) -> None:
    """Compare every corpus, and report the coverage of each measure."""
    scores, errors, half = [], [], []
    for x, y, utterance, speaker in drawn:
        result = ss.compare_activations(
            {"x": x, "y": y}, measures, errors=True, errors_rows=errors_rows,
            errors_source="sample",
            groups=speaker if over == "speaker" else utterance, keep_influence="none",
            utterances=utterance.astype(str), sample_frames=_SAMPLE_FRAMES,
        )  # fmt: skip
        scores.append([float(result.matrix(name)[0, 1]) for name in measures])
        errors.append([float(result.standard_error(name)[0, 1]) for name in measures])
        half.append([float(result.half_interval(name)[0, 1]) for name in measures])
    scores, errors, half = np.array(scores), np.array(errors), np.array(half)
    covered = np.abs(scores - scores.mean(axis=0)) <= half
    for k, name in enumerate(measures):
        known = np.isfinite(errors[:, k])
        typical = float(np.sqrt(np.mean(errors[known, k] ** 2)))
        shown = {
            "covered, %": 100 * float(covered[known, k].mean()),
            "error / spread": typical / float(scores[:, k].std(ddof=1)),
            "bias / error": float(scores[:, k].mean() - endless[k]) / typical,
            "unknown, %": 100 * float(1 - known.mean()),
        }
        for what, value in shown.items():
            report(_WHAT, name, value, "", **about, shown=what)


def _endless(measures: list[str], effects: bool, alike: bool, clusters: int) -> np.ndarray:
    """Scores of so much audio that they no longer move; of measures on the sample, which is no
    larger, NaN.
    """
    of_moments = [name for name in measures if MEASURES[name].statistic == "moments"]

    def chunks(representation: int) -> Iterator[np.ndarray]:
        for corpus in draws(clusters // _CHUNK, _CHUNK, 300, True, effects, alike):
            yield corpus[representation]

    result = ss.compare_activations({"x": chunks(0), "y": chunks(1)}, of_moments, errors=False)
    scores = {name: float(result.matrix(name)[0, 1]) for name in of_moments}
    return np.array([scores.get(name, np.nan) for name in measures])


def draws(
    simulations: int, clusters: int, rows: int, equal: bool, effects: bool, alike: bool = False
) -> Iterator[tuple[np.ndarray, ...]]:
    """Corpora: x, y, and the utterance and speaker of each row."""
    mixing = np.random.default_rng(1).standard_normal((3, sum(_NEURONS)))
    for simulation in range(simulations):
        rng = np.random.default_rng([simulation, clusters, rows])
        utterances = clusters * _PER_SPEAKER if effects else clusters
        lengths = np.full(utterances, clusters * rows // utterances)
        if not equal:
            # The same total in every corpus: programs are compiled once.
            ends = np.cumsum(rng.uniform(0.2, 1.8, utterances))
            ends = np.round(ends / ends[-1] * clusters * rows).astype(int)
            lengths = np.diff(ends, prepend=0)
        utterance = np.repeat(np.arange(utterances), lengths)
        speaker = utterance // _PER_SPEAKER
        starts = np.cumsum(lengths)[:-1]
        parts = []
        for noise in np.split(rng.standard_normal((len(utterance), 3 + sum(_NEURONS))), starts):
            noise[1:] *= (1 - _MEMORY**2) ** 0.5
            parts.append(scipy.signal.lfilter([1.0], [1.0, -_MEMORY], noise, axis=0))
        series = np.concatenate(parts)
        shared, own = series[:, :3], series[:, 3:]
        if effects:
            strength = np.exp(0.5 * rng.standard_normal((speaker.max() + 1, 3)))
            shared = shared * strength[speaker]
            own = own + 0.5 * rng.standard_normal((speaker.max() + 1, own.shape[1]))[speaker]
        data = shared @ mixing + 1.5 * own
        x, y = data[:, : _NEURONS[0]], data[:, _NEURONS[0] :]
        yield x, x[:, : _NEURONS[1]] + 0.1 * y if alike else y, utterance, speaker
