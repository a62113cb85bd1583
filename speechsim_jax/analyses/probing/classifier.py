"""How well a linear classifier reads the phone of a frame from features of one kind or another.

A probe is multinomial logistic regression on features that are z-scored by its training frames:

    W, b = argmin_{W, b} -1/n sum_i log softmax(W z_i + b)[phone_i] + penalty/2 |W|^2.

It never hears the speakers it is tested on. The speakers to be tested are dealt into folds; the
probes of a fold are trained on all other speakers. What has to be chosen is chosen without a look
at the fold: a fifth of its training speakers (at least one) are set apart, probes are trained on
the rest with every penalty, and the penalty that is best on those set apart is kept for the probe
that is then trained on all training speakers. The layer of an encoder that is called best is, fold
by fold, the one whose kept probe was best on the speakers set apart.

Accuracies are shares of frames. Their intervals, and those of differences, are over speakers: whole
speakers are drawn again and again, the same for both sides of a difference (`interval`).
"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.linalg import map_in_threads

LEVEL = 0.95
# From strong to weak, so that each start is near its end.
PENALTIES = (1e-1, 1e-2, 1e-3)
COMMONEST = "commonest phone"
_TOLERANCE, _MOST_STEPS = 1e-3, 300

_log = logging.getLogger(__name__)

Rows = Float32[np.ndarray, "frame _number"]
Counts = Int64[np.ndarray, " speaker"]


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames whose phone is known.

    `rows`: features by their kind, a row a frame; `phones` and `speakers` are places in
    `phone_names` and `speaker_names`.
    """

    rows: Mapping[str, Rows]
    phones: Int64[np.ndarray, " frame"]
    speakers: Int64[np.ndarray, " frame"]
    phone_names: tuple[str, ...]
    speaker_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeAccuracies:
    """What probes read of the speakers that were tested.

    Of each speaker: `frames`, in which `fold`, and how many frames were read right (`correct`, by
    kind of features; `COMMONEST` is the phone that is commonest among the fold's training frames).
    Of each fold, by kind: accuracy on the training speakers set apart (`validation`), the penalty
    it chose. `unfinished`: how many probes of all had not converged.
    """

    speakers: tuple[str, ...]
    frames: Counts
    fold: Int64[np.ndarray, " speaker"]
    correct: Mapping[str, Counts]
    validation: Mapping[str, Float64[np.ndarray, " fold"]]
    penalties: Mapping[str, tuple[float, ...]]
    unfinished: int = 0

    def best(self, kinds: Sequence[str]) -> tuple[tuple[int, ...], Counts]:
        """The place of the kind that each fold chose, and what it read of the fold's speakers."""
        chosen = np.argmax([self.validation[kind] for kind in kinds], axis=0)
        table = np.stack([self.correct[kind] for kind in kinds])
        return tuple(chosen.tolist()), table[chosen[self.fold], np.arange(len(self.fold))]


class Interval(NamedTuple):
    """A value and its 95 % interval over speakers (NaN where there is one speaker)."""

    value: float
    low: float
    high: float


class _Read(NamedTuple):
    """A kind of features in one fold."""

    right: Bool[np.ndarray, " tested"]
    validation: float
    penalty: float
    unfinished: int


def read(
    frames: Frames,
    tested: Collection[str],
    *,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    on_probe: Callable[[], object] = lambda: None,
) -> ProbeAccuracies:
    """Train and test probes on every kind of features; `on_probe` is called behind each kind.

    `seed` deals the speakers. Raises UserError if a speaker to be tested has no frame, and where
    too few speakers or phones are left to train on.
    """
    if not tested:
        raise UserError("no speaker to test; expected at least one")
    heard = {frames.speaker_names[place] for place in np.unique(frames.speakers)}
    if missing := sorted(set(tested) - heard):
        raise UserError(
            f"{missing[0]} cannot be tested: no frame of that speaker has a phone; there are "
            f"{', '.join(sorted(heard))}"
        )
    rng = np.random.default_rng(seed)
    names = tuple(sorted(set(tested)))
    count = min(folds, len(names))
    fold = np.empty(len(names), np.int64)
    fold[rng.permutation(len(names))] = np.arange(len(names)) % count
    places = np.array([frames.speaker_names.index(name) for name in names])
    correct = {kind: np.zeros(len(names), np.int64) for kind in (*frames.rows, COMMONEST)}
    found: dict[str, list[_Read]] = {kind: [] for kind in frames.rows}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they are counted
        for number in range(count):
            parts = _parts(frames, places[fold == number], rng)
            test = frames.speakers[parts.test]

            def of(kind: str, parts: "_Parts" = parts) -> _Read:
                return _probe(frames.rows[kind], frames.phones, parts, penalties)

            right = {COMMONEST: frames.phones[parts.test] == parts.commonest(frames.phones)}
            for kind, one in zip(frames.rows, map_in_threads(of, frames.rows)):
                found[kind].append(one)
                right[kind] = one.right
                on_probe()
            for kind, hits in right.items():
                correct[kind] += [int(hits[test == place].sum()) for place in places]
    unfinished = sum(one.unfinished for each in found.values() for one in each)
    if unfinished:
        _log.warning("%d probes had not converged after %d steps", unfinished, _MOST_STEPS)
    return ProbeAccuracies(
        speakers=names,
        frames=np.array([int((frames.speakers == place).sum()) for place in places]),
        fold=fold,
        correct=correct,
        validation={kind: np.array([one.validation for one in found[kind]]) for kind in found},
        penalties={kind: tuple(one.penalty for one in found[kind]) for kind in found},
        unfinished=unfinished,
    )


class _Parts(NamedTuple):
    """The frames of a fold: `fitted` and `apart` are those to train on, cut by speakers."""

    fitted: Int64[np.ndarray, " fitted"]
    apart: Int64[np.ndarray, " apart"]
    test: Int64[np.ndarray, " tested"]

    def training(self) -> Int64[np.ndarray, " training"]:
        return np.concatenate([self.fitted, self.apart])

    def commonest(self, phones: Int64[np.ndarray, " frame"]) -> int:
        return int(np.bincount(phones[self.training()]).argmax())


def _parts(frames: Frames, tested: Int64[np.ndarray, " place"], rng: np.random.Generator) -> _Parts:
    others = np.setdiff1d(frames.speakers, tested)
    if len(others) < 2:
        raise UserError(
            f"{len(others)} speakers are left to train a probe on; at least 2 are needed, as the "
            "layer and the penalty are chosen on speakers that it was not trained on"
        )
    apart = rng.permutation(others)[: max(1, round(len(others) / 5))]
    is_apart, is_test = np.isin(frames.speakers, apart), np.isin(frames.speakers, tested)
    parts = _Parts(*map(np.flatnonzero, (~is_apart & ~is_test, is_apart, is_test)))
    if len(np.unique(frames.phones[parts.fitted])) < 2:
        raise UserError("the speakers to train a probe on have one phone; expected several")
    return parts


def _probe(
    rows: Rows, phones: Int64[np.ndarray, " frame"], parts: _Parts, penalties: Sequence[float]
) -> _Read:
    """Choose the penalty on the speakers set apart, train on all, test."""
    scale = _scale(rows[parts.fitted])
    fitted, apart = scale(rows[parts.fitted]), scale(rows[parts.apart])
    scores, steps = [], []
    model = _model()
    for penalty in penalties:
        fit(fitted, phones[parts.fitted], penalty, model)
        steps.append(model.n_iter_[0])
        scores.append(float(np.mean(model.predict(apart) == phones[parts.apart])))
    best = int(np.argmax(scores))
    training = parts.training()
    scale = _scale(rows[training])
    last = fit(scale(rows[training]), phones[training], penalties[best], _model())
    steps.append(last.n_iter_[0])
    right = np.asarray(last.predict(scale(rows[parts.test]))) == phones[parts.test]
    unfinished = int(np.sum(np.array(steps) >= _MOST_STEPS))
    return _Read(right, scores[best], penalties[best], unfinished)


def _model() -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_MOST_STEPS, warm_start=True)


def fit(
    rows: Float64[np.ndarray, "frame number"],
    phones: Int64[np.ndarray, " frame"],
    penalty: float,
    model: LogisticRegression,
) -> LogisticRegression:
    """Train a probe from where `model` stands, by L-BFGS; see the head of this file for what on."""
    # scikit-learn minimises C sum_i -log p_i + |W|^2 / 2.
    return model.set_params(C=1 / (penalty * len(rows))).fit(rows, phones)


def _scale(rows: Rows) -> Callable[[Rows], Float64[np.ndarray, "_frame _number"]]:
    """To mean 0 and variance 1 of these rows; what is constant stays at 0."""
    mean, std = rows.mean(0, np.float64), rows.std(0, np.float64)
    return lambda other: (other - mean) / np.where(std > 0, std, 1.0)


# --- intervals ---


def interval(
    correct: Counts | Float64[np.ndarray, " speaker"],
    frames: Counts | Float64[np.ndarray, " speaker"],
    seed: int = 0,
    draws: int = 10_000,
) -> Interval:
    """sum(correct) / sum(frames) and its 95 % interval, by drawing speakers with replacement.

    For the difference of two accuracies on the same frames, `correct` is the difference of two
    counts. The ends are quantiles of the drawn values, at Phi(-+ t sqrt(n / (n - 1))) with
    Student's quantile t of n - 1 degrees of freedom: for few speakers the plain 2.5 and 97.5 % are
    too narrow (the expanded percentile interval: Hesterberg 2015, arXiv 1411.5279).
    """
    hits, total = np.asarray(correct, np.float64), np.asarray(frames, np.float64)
    value, size = float(hits.sum() / total.sum()), len(hits)
    if size < 2:
        return Interval(value, float("nan"), float("nan"))
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), draws)
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, size - 1) * (size / (size - 1)) ** 0.5
    tail = float(scipy.stats.norm.sf(reach))
    low, high = np.quantile((times @ hits) / (times @ total), [tail, 1 - tail])
    return Interval(value, float(low), float(high))
