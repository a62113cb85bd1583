"""How well a linear classifier predicts the phone of a frame from different kinds of features.

A probe is multinomial logistic regression on features that are z-scored by its training frames:

    W, b = argmin_{W, b} -1/n sum_i log softmax(W z_i + b)[phone_i] + penalty/2 |W|^2.

It is never trained on the speakers that it is tested on. The tested speakers are dealt into folds;
the probes of a fold are trained on all other speakers. Hyperparameters are chosen without looking
at the fold: a fifth of its training speakers (at least one) are set aside for validation, probes
are trained on the rest with every penalty, and the penalty with the best validation accuracy is
used for the probe that is then trained on all training speakers. The best layer of an encoder is,
fold by fold, the one whose chosen probe had the best validation accuracy.

Accuracies are shares of frames. Their intervals, and those of differences, are over speakers:
speakers are drawn with replacement, the same for both sides of a difference. An utterance of
unknown speaker counts as a speaker.
"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.linalg import map_in_threads

# From strong to weak: each fit starts from the one before, and so near its own optimum.
PENALTIES = (1e-1, 1e-2, 1e-3)
COMMONEST = "commonest phone"
_TOLERANCE, _MAX_STEPS = 1e-3, 300

_log = logging.getLogger(__name__)

Features = Float32[np.ndarray, "frame _neuron"]
Counts = Int64[np.ndarray, " speaker"]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Features of frames, with the phone and the speaker of each.

    Attributes:
        features: [frame, neuron] by kind of features.
        phones: Index into `phone_names` for each frame.
        speakers: Index into `speaker_names` for each frame.
        phone_names: Phones by index.
        speaker_names: Speakers by index.
    """

    features: Mapping[str, Features]
    phones: Int64[np.ndarray, " frame"]
    speakers: Int64[np.ndarray, " frame"]
    phone_names: tuple[str, ...]
    speaker_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeAccuracies:
    """Cross-validated results of the probes on the tested speakers.

    Attributes:
        speakers: Names of the tested speakers.
        frames: Number of frames of each speaker.
        fold: The fold in which each speaker was tested.
        correct: Number of correctly classified frames of each speaker, by kind of features;
            `COMMONEST` always predicts the commonest phone of the fold's training frames.
        validation: Validation accuracy of each fold, by kind.
        penalties: Penalty chosen in each fold, by kind.
        unfinished: Number of fits, of all, that stopped before they converged.
    """

    speakers: tuple[str, ...]
    frames: Counts
    fold: Int64[np.ndarray, " speaker"]
    correct: Mapping[str, Counts]
    validation: Mapping[str, Float64[np.ndarray, " fold"]]
    penalties: Mapping[str, tuple[float, ...]]
    unfinished: int = 0

    def best(self, kinds: Sequence[str]) -> tuple[tuple[int, ...], Counts]:
        """Choose one of several kinds of features in each fold, by validation accuracy.

        Args:
            kinds: Kinds of features to choose from, e.g. the layers of an encoder.

        Returns:
            The index of the chosen kind in each fold, and the number of correctly classified frames
            of each speaker with the kind chosen in the speaker's fold.
        """
        chosen = np.argmax([self.validation[kind] for kind in kinds], axis=0)
        correct = np.stack([self.correct[kind] for kind in kinds])
        return tuple(chosen.tolist()), correct[chosen[self.fold], np.arange(len(self.fold))]


class _ProbeResult(NamedTuple):
    """One kind of features in one fold."""

    correct: Bool[np.ndarray, " tested"]
    validation: float
    penalty: float
    unfinished: int


def cross_validate(
    frames: LabelledFrames,
    tested: Collection[str],
    *,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    on_probe: Callable[[], object] = lambda: None,
) -> ProbeAccuracies:
    """Train and test probes on every kind of features, fold by fold.

    Args:
        frames: Features, phones and speakers.
        tested: Speakers to test on; the others are only trained on.
        folds: Number of folds of the tested speakers, at most their number.
        penalties: Penalties to choose from, from strong to weak.
        seed: Deals the speakers into folds and validation sets.
        on_probe: Called after each kind of features in each fold.

    Returns:
        Accuracies by speaker and fold.

    Raises:
        UserError: A tested speaker without a frame, or too few speakers or phones to train on.
    """
    if not tested:
        raise UserError("no speaker to test; expected at least one")
    available = {frames.speaker_names[index] for index in np.unique(frames.speakers)}
    if missing := sorted(set(tested) - available):
        raise UserError(
            f"{missing[0]} cannot be tested: no frame of that speaker has a phone; there are "
            f"{', '.join(sorted(available))}"
        )
    rng = np.random.default_rng(seed)
    names = tuple(sorted(set(tested)))
    count = min(folds, len(names))
    fold = np.empty(len(names), np.int64)
    fold[rng.permutation(len(names))] = np.arange(len(names)) % count
    indices = np.array([frames.speaker_names.index(name) for name in names])
    correct = {kind: np.zeros(len(names), np.int64) for kind in (*frames.features, COMMONEST)}
    results: dict[str, list[_ProbeResult]] = {kind: [] for kind in frames.features}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted as `unfinished`
        for number in range(count):
            split = _split_fold(frames, indices[fold == number], rng)
            test_speakers = frames.speakers[split.test]

            def probe(kind: str, split: "_FoldSplit" = split) -> _ProbeResult:
                return _probe(frames.features[kind], frames.phones, split, penalties)

            hits = {COMMONEST: frames.phones[split.test] == split.commonest(frames.phones)}
            for kind, result in zip(frames.features, map_in_threads(probe, frames.features)):
                results[kind].append(result)
                hits[kind] = result.correct
                on_probe()
            for kind, is_correct in hits.items():
                correct[kind] += [
                    int(is_correct[test_speakers == index].sum()) for index in indices
                ]
    unfinished = sum(result.unfinished for by_fold in results.values() for result in by_fold)
    if unfinished:
        _log.warning("%d probes had not converged after %d steps", unfinished, _MAX_STEPS)
    return ProbeAccuracies(
        speakers=names,
        frames=np.array([int((frames.speakers == index).sum()) for index in indices]),
        fold=fold,
        correct=correct,
        validation={kind: np.array([r.validation for r in results[kind]]) for kind in results},
        penalties={kind: tuple(r.penalty for r in results[kind]) for kind in results},
        unfinished=unfinished,
    )


class _FoldSplit(NamedTuple):
    """Indices of the frames of a fold; `fitted` and `validation` together are the training set."""

    fitted: Int64[np.ndarray, " fitted"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " tested"]

    def training(self) -> Int64[np.ndarray, " training"]:
        return np.concatenate([self.fitted, self.validation])

    def commonest(self, phones: Int64[np.ndarray, " frame"]) -> int:
        return int(np.bincount(phones[self.training()]).argmax())


def _split_fold(
    frames: LabelledFrames, tested: Int64[np.ndarray, " speaker"], rng: np.random.Generator
) -> _FoldSplit:
    others = np.setdiff1d(frames.speakers, tested)
    if len(others) < 2:
        raise UserError(
            f"{len(others)} speakers are left to train a probe on; at least 2 are needed, as the "
            "layer and the penalty are chosen on speakers that it was not trained on"
        )
    validation = rng.permutation(others)[: max(1, round(len(others) / 5))]
    is_validation = np.isin(frames.speakers, validation)
    is_test = np.isin(frames.speakers, tested)
    split = _FoldSplit(*map(np.flatnonzero, (~is_validation & ~is_test, is_validation, is_test)))
    if len(np.unique(frames.phones[split.fitted])) < 2:
        raise UserError("the speakers to train a probe on have one phone; expected several")
    return split


def _probe(
    features: Features,
    phones: Int64[np.ndarray, " frame"],
    split: _FoldSplit,
    penalties: Sequence[float],
) -> _ProbeResult:
    """Choose the penalty on the validation speakers, train on all training speakers, test."""
    standardise = _standardisation(features[split.fitted])
    fitted, validation = (
        standardise(features[split.fitted]),
        standardise(features[split.validation]),
    )
    scores, steps = [], []
    model = _model()
    for penalty in penalties:
        fit(fitted, phones[split.fitted], penalty, model)
        steps.append(model.n_iter_[0])
        scores.append(float(np.mean(model.predict(validation) == phones[split.validation])))
    best = int(np.argmax(scores))
    training = split.training()
    standardise = _standardisation(features[training])
    model = fit(standardise(features[training]), phones[training], penalties[best], _model())
    steps.append(model.n_iter_[0])
    predicted = np.asarray(model.predict(standardise(features[split.test])))
    unfinished = int(np.sum(np.array(steps) >= _MAX_STEPS))
    return _ProbeResult(predicted == phones[split.test], scores[best], penalties[best], unfinished)


def _model() -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_MAX_STEPS, warm_start=True)


def fit(
    standardised: Float64[np.ndarray, "frame neuron"],
    phones: Int64[np.ndarray, " frame"],
    penalty: float,
    model: LogisticRegression,
) -> LogisticRegression:
    """Train a probe by L-BFGS from the current coefficients of `model`, which is updated in place.

    Args:
        standardised: z-scored features z.
        phones: The phone of each frame.
        penalty: Weight of |W|^2 / 2 in the objective at the head of this module.
        model: Logistic regression with `warm_start`.
    """
    # scikit-learn minimises C sum_i -log p_i + |W|^2 / 2.
    return model.set_params(C=1 / (penalty * len(standardised))).fit(standardised, phones)


def _standardisation(
    features: Features,
) -> Callable[[Features], Float64[np.ndarray, "_frame _neuron"]]:
    """The map to mean 0 and variance 1 of these features; constant features become 0."""
    mean, std = features.mean(0, np.float64), features.std(0, np.float64)
    return lambda x: (x - mean) / np.where(std > 0, std, 1.0)
