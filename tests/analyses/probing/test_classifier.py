"""Linear probes on synthetic features: against scikit-learn, leaks, choices, intervals."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import speechsim_jax as ss
from speechsim_jax.analyses.intervals import bootstrap_interval
from speechsim_jax.analyses.probing import classifier, summary
from speechsim_jax.analyses.probing import figure as probe_figure

PHONES = ("AA", "B", "S", "T")
SPEAKERS = tuple(f"s{number}" for number in range(6))
EACH = 80  # frames of a speaker


def planted(signal: float = 1.5, noise_kinds: int = 0, seed: int = 0) -> classifier.LabelledFrames:
    """Phones in the directions of the axes, noise of one size, offsets and scales to take out."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(len(SPEAKERS)), EACH)
    phones = rng.integers(len(PHONES), size=len(speakers))
    rows = signal * np.eye(6)[phones] + rng.standard_normal((len(phones), 6))
    rows = rows * [1, 10, 0.1, 1, 1, 0] + [0, 100, 0, 0, 0, 7]  # the last is constant
    kinds = {"signal": rows.astype(np.float32)}
    for number in range(noise_kinds):
        kinds[f"noise{number}"] = rng.standard_normal((len(phones), 5)).astype(np.float32)
    return classifier.LabelledFrames(kinds, phones, speakers, PHONES, SPEAKERS)


def share(accuracies: classifier.ProbeAccuracies, kind: str) -> float:
    return float(accuracies.correct[kind].sum() / accuracies.frames.sum())


# --- probes ---


def test_a_probe_minimises_what_it_says():
    """The gradient of the formula, written out, is zero."""
    frames, penalty = planted(), 0.03
    z = frames.features["signal"][:, :5].astype(np.float64)
    z = (z - z.mean(0)) / z.std(0)
    model = classifier.fit(z, frames.phones, penalty, LogisticRegression(tol=1e-9, max_iter=5000))
    logits = z @ model.coef_.T + model.intercept_
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    error = shares - np.eye(len(PHONES))[frames.phones]
    gradient = error.T @ z / len(z) + penalty * model.coef_
    assert np.abs(gradient).max() < 1e-7
    assert np.abs(error.mean(0)).max() < 1e-7
    assert np.abs(model.coef_).max() > 0.1


def test_against_scikit_learn_fold_by_fold():
    frames, penalty = planted(), 1e-3
    accuracies = classifier.cross_validate(frames, SPEAKERS, folds=3, penalties=[penalty])
    assert accuracies.speakers == SPEAKERS
    assert sorted(accuracies.fold) == [0, 0, 1, 1, 2, 2]
    assert accuracies.frames.tolist() == [EACH] * len(SPEAKERS)
    rows = frames.features["signal"].astype(np.float64)
    for fold in range(3):
        test = accuracies.fold[frames.speakers] == fold
        strength = 1 / (penalty * (~test).sum())
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-3))
        right = model.fit(rows[~test], frames.phones[~test]).predict(rows[test])
        right = right == frames.phones[test]
        common = np.bincount(frames.phones[~test]).argmax() == frames.phones[test]
        for place in np.flatnonzero(accuracies.fold == fold):
            of_speaker = frames.speakers[test] == place
            assert accuracies.correct["signal"][place] == right[of_speaker].sum()
            assert accuracies.correct[classifier.COMMONEST][place] == common[of_speaker].sum()
    assert 0.55 < share(accuracies, "signal") < 0.95
    assert share(accuracies, classifier.COMMONEST) < 0.35


def test_speakers_left_out_of_the_test_are_trained_on():
    """All frames of the one tested speaker, whose phones the others alone can teach."""
    frames = planted(signal=6.0)
    accuracies = classifier.cross_validate(frames, ["s2"], folds=5, penalties=[1e-3])
    assert (accuracies.speakers, accuracies.fold.tolist()) == (("s2",), [0])
    assert accuracies.frames.tolist() == [EACH]
    assert accuracies.correct["signal"][0] > 0.95 * EACH


def test_the_same_seed_reads_the_same():
    frames = planted(noise_kinds=1)
    first, second, other = (
        classifier.cross_validate(frames, SPEAKERS, folds=2, penalties=[1e-2], seed=seed)
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(first.correct[kind], second.correct[kind]) for kind in first.correct)
    assert first.fold.tolist() == second.fold.tolist()
    assert any(not np.array_equal(first.correct[k], other.correct[k]) for k in frames.features)


def test_a_leak_between_speakers_would_be_seen():
    """Each speaker codes the phones differently: what holds for one is wrong for another.

    The same frames with shuffled speakers are classified nearly without error.
    """
    rng = np.random.default_rng(3)
    speakers = np.repeat(np.arange(len(SPEAKERS)), EACH)
    phones = rng.integers(len(PHONES), size=len(speakers))
    codes = rng.standard_normal((len(SPEAKERS), len(PHONES), 40))
    rows = codes[speakers, phones] + 0.1 * rng.standard_normal((len(phones), 40))
    frames = classifier.LabelledFrames(
        {"code": rows.astype(np.float32)}, phones, speakers, PHONES, SPEAKERS
    )
    apart = classifier.cross_validate(frames, SPEAKERS, folds=3)
    mixed = dataclasses.replace(frames, speakers=rng.permutation(speakers))
    assert share(apart, "code") < 0.45
    assert share(classifier.cross_validate(mixed, SPEAKERS, folds=3), "code") > 0.95


def test_the_penalty_is_chosen_on_speakers_set_apart():
    """Few frames of many neurons, where penalties matter: each fold uses the better one."""
    rng = np.random.default_rng(5)
    speakers = np.repeat(np.arange(len(SPEAKERS)), 30)
    phones = rng.integers(2, size=len(speakers))
    rows = rng.standard_normal((len(phones), 200))
    rows[:, :20] += 0.5 * (2 * phones[:, None] - 1)
    frames = classifier.LabelledFrames(
        {"x": rows.astype(np.float32)}, phones, speakers, PHONES[:2], SPEAKERS
    )
    one = {
        p: classifier.cross_validate(frames, SPEAKERS, folds=2, penalties=[p]) for p in (1.0, 1e-6)
    }
    both = classifier.cross_validate(frames, SPEAKERS, folds=2, penalties=[1.0, 1e-6])
    best = np.argmax([one[p].validation["x"] for p in (1.0, 1e-6)], axis=0)
    assert both.penalties["x"] == tuple((1.0, 1e-6)[place] for place in best)
    assert both.validation["x"].tolist() == [
        one[p].validation["x"][fold] for fold, p in enumerate(both.penalties["x"])
    ]
    assert (one[1.0].validation["x"] != one[1e-6].validation["x"]).all()


@pytest.fixture
def accuracies() -> classifier.ProbeAccuracies:
    """Two layers, two folds; what is best on speakers set apart is worst on those tested."""
    return classifier.ProbeAccuracies(
        speakers=("a", "b", "c", "d"),
        frames=np.array([100, 100, 200, 200]),
        fold=np.array([0, 1, 0, 1]),
        correct={
            "m/0": np.array([50, 90, 100, 180]),
            "m/1": np.array([90, 40, 180, 80]),
            "r/0": np.array([30, 30, 60, 60]),
            "mfcc": np.array([40, 40, 80, 80]),
            classifier.COMMONEST: np.array([10, 10, 20, 20]),
        },
        validation={
            "m/0": np.array([0.8, 0.5]),
            "m/1": np.array([0.7, 0.6]),
            "r/0": np.array([0.3, 0.3]),
            "mfcc": np.array([0.4, 0.4]),
        },
        penalties={kind: (1e-2, 1e-3) for kind in ("m/0", "m/1", "r/0", "mfcc")},
    )


def test_the_best_layer_is_not_chosen_on_the_test(accuracies):
    chosen, correct = accuracies.best(["m/0", "m/1"])
    assert chosen == (0, 1)
    assert correct.tolist() == [50, 40, 100, 80]


@pytest.mark.parametrize(
    "change, tested, words",
    [
        ({}, [], "no speaker to test"),
        ({}, ["s0", "nobody"], "nobody cannot be tested: no frame of that speaker has a phone"),
        ({"speakers": np.repeat([0, 1], 3 * EACH)}, ["s0"], "1 speakers are left to train"),
        ({"phones": np.zeros(6 * EACH, np.int64)}, ["s0"], "have one phone; expected several"),
    ],
)
def test_what_cannot_be_probed(change, tested, words):
    with pytest.raises(ss.UserError, match=words):
        classifier.cross_validate(dataclasses.replace(planted(), **change), tested)


# --- intervals ---


def test_an_interval_of_two_speakers_is_all_they_are():
    """With two speakers the quantile lies beyond what can be drawn: one of them twice."""
    interval = bootstrap_interval(np.array([10, 60]), np.array([100, 100]))
    assert interval == (0.35, 0.1, 0.6)
    alone = bootstrap_interval(np.array([10]), np.array([100]))
    assert alone.value == 0.1 and np.isnan([alone.low, alone.high]).all()


def test_intervals_of_differences_are_paired():
    """Speakers differ by much, the two sides by the same share of frames: no doubt is left."""
    frames = np.array([100, 300, 50, 200, 150])
    first = np.array([20, 270, 25, 60, 120])
    second = first - frames // 10
    assert bootstrap_interval(first - second, frames) == pytest.approx([0.1, 0.1, 0.1])
    assert np.ptp(bootstrap_interval(first, frames)[1:]) > 0.3


def test_with_many_speakers_it_is_the_normal_interval():
    rng = np.random.default_rng(0)
    values = rng.uniform(size=500)
    interval = bootstrap_interval(values, np.ones(500))
    reach = 1.96 * values.std() / 500**0.5
    assert interval.value == pytest.approx(values.mean())
    ends = [values.mean() - reach, values.mean() + reach]
    assert [interval.low, interval.high] == pytest.approx(ends, abs=0.05 * reach)


def test_of_ten_speakers_it_holds_the_truth_as_often_as_it_says():
    """600 draws of ten speakers: standard error 0.9 %."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(600):
        frames = rng.integers(80, 120, 10)
        interval = bootstrap_interval(0.5 * frames + frames * 0.1 * rng.standard_normal(10), frames,
                                draws=2000)  # fmt: skip
        held.append(interval.low <= 0.5 <= interval.high)
    assert 0.925 <= np.mean(held) <= 0.98


# --- summaries ---


LAYERS = {"m": ["m/0", "m/1"], "r": ["r/0"]}


def test_summary(accuracies):
    result = summary.summarise(accuracies, LAYERS, {"m": "r"})
    assert list(result.baselines) == [classifier.COMMONEST, "mfcc"]
    assert result.baselines["mfcc"].value == 0.4
    trained, untrained = result.encoders
    assert [value.value for value in trained.layers] == [0.7, 0.65]
    assert trained.best.value == 0.45 and trained.chosen == (0, 1)
    assert {name: gain.value for name, gain in trained.gains.items()} == pytest.approx(
        {"mfcc": 0.05, "r": 0.15}
    )
    assert {name: gain.value for name, gain in untrained.gains.items()} == pytest.approx(
        {"mfcc": -0.1}
    )
    table = result.table().splitlines()
    assert table[1].split() == ["commonest", "phone", "10.0", "%", "10.0", "to", "10.0"]
    assert any(line.split() == ["layer", "0", "70.0", "%", "50.0", "to", "90.0"] for line in table)
    assert any("best, chosen on others" in line and "layer 0, 1" in line for line in table)
    assert any(line.startswith("  less mfcc") and "+5.0 %" in line for line in table)
    assert table[-2:] == [
        "4 speakers tested, 600 frames",
        "4 speakers are few: these intervals are too narrow to rely on",
    ]


def test_summary_fits_into_json(accuracies):
    result = summary.summarise(accuracies, LAYERS)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["encoders"]["m"]["best"]["value"] == 0.45
    assert content["encoders"]["m"]["chosen_layers"] == [0, 1]
    assert content["speakers"]["c"] == {
        "fold": 0, "frames": 200,
        "correct": {"m/0": 100, "m/1": 180, "r/0": 60, "mfcc": 80, "commonest phone": 20},
    }  # fmt: skip
    alone = dataclasses.replace(
        accuracies, speakers=("a",), frames=accuracies.frames[:1], fold=accuracies.fold[:1],
        correct={kind: counts[:1] for kind, counts in accuracies.correct.items()},
    )  # fmt: skip
    content = json.loads(json.dumps(summary.summarise(alone, LAYERS).as_dict(), allow_nan=False))
    assert content["baselines"]["mfcc"] == {"value": 0.4, "low": None, "high": None}


def test_figure_shows_layers_with_their_intervals(accuracies, tmp_path):
    result = summary.summarise(accuracies, LAYERS, {"m": "r"})
    figure = probe_figure.accuracy_by_depth(result, {"r"}, "a note")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    axes = next(a for a in figure.axes if a.get_label() == "depths")
    drawn = {container[0].get_gid(): container for container in axes.containers}
    line, _, (bars,) = drawn["m"]
    np.testing.assert_allclose(line.get_xydata(), [[0, 70], [1, 65]])
    ends = [[100 * value.low, 100 * value.high] for value in result.encoders[0].layers]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], ends)
    assert (line.get_linestyle(), drawn["r"][0].get_linestyle()) == ("-", "--")
    assert line.get_color() == drawn["r"][0].get_color()
    across = {l.get_gid(): l.get_ydata()[0] for l in axes.lines if l.get_gid() in result.baselines}
    assert across == pytest.approx({"commonest phone": 10, "mfcc": 40})
    paths = probe_figure.save_accuracy_by_depth(result, tmp_path / "figures")
    assert [path.name for path in paths] == ["probe.png", "probe.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
