"""How much audio a target takes, predicted from less of it."""

import math

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference import planning
from tests.support.commands import assert_mistake, call

NAMES = [ss.RepresentationName("a", layer) for layer in (1, 2)]


def result(minutes: float = 10.0, **attributes) -> ss.SimilarityResult:
    """Of lincka with errors 0.02 and 0.04, and of pwcca without."""
    scores = np.array([[1.0, 0.5], [0.5, 1.0]])
    errors = np.array([[0.0, 0.02], [0.04, 0.0]])
    known = {"errors": {"over": "speaker", "reason": "", "clusters": 20, "sampled": 20, "rows": 9}}
    return ss.SimilarityResult.build(
        NAMES,
        {"lincka": scores, "pwcca": scores},
        {"lincka_se": (("x", "y"), errors), "lincka_se_error": (("x", "y"), 0 * errors)},
        attributes={"seconds": 60 * minutes, "encoding_seconds": 1800.0} | known | attributes,
    )


def clustered(clusters: int, rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two representations with effects of the clusters, and the cluster of each row."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(clusters), rows)
    x = rng.standard_normal((clusters, 8))[group] + rng.standard_normal((len(group), 8))
    own = rng.standard_normal((clusters, 8))[group] + rng.standard_normal((len(group), 8))
    return {"x/1": x, "y/1": x @ rng.standard_normal((8, 8)) / 4 + own}, group


def test_a_quarter_of_the_error_takes_sixteen_times_the_audio():
    assert planning.minutes_needed(3.0, 0.04, 0.01) == pytest.approx(48)
    assert planning.minutes_needed(3.0, 0.005, 0.01) == pytest.approx(0.75)
    assert planning.minutes_needed(3.0, 0.02, 0.01, inflation=0.08) == pytest.approx(24)
    assert planning.minutes_needed(3.0, 0.02, 0.01, inflation=math.nan) == pytest.approx(12)
    assert math.isnan(planning.minutes_needed(3.0, math.nan, 0.01, inflation=0.5))


def test_pairs_of_a_representation_with_itself_are_left_out():
    errors = np.array([[9.0, 0.1, 0.2], [0.3, 9.0, 0.4], [np.nan, 0.5, 9.0]])
    scores = np.ones((3, 3))
    assert planning.over_pairs(errors, scores, "largest") == 0.5
    assert planning.over_pairs(errors, scores, "median") == 0.3
    scores[2, 1] = np.nan  # not defined, so neither is its error
    assert planning.over_pairs(errors, scores, "largest") == 0.4
    errors[:2] = np.nan
    assert math.isnan(planning.over_pairs(errors, np.ones((3, 3)), "median"))
    assert math.isnan(planning.over_pairs(errors[:1, :1], np.ones((1, 1)), "largest"))


@pytest.mark.parametrize(
    ("predicted", "known", "expected"),
    [
        (15.0, True, 16.5),
        (1e3, True, 40),
        (10.1, True, 12.5),
        (11.0, False, 20),
        (math.nan, True, 20),
    ],
)
def test_steps_are_neither_tiny_nor_far_beyond_what_was_read(predicted, known, expected):
    assert 10 * planning.growth_of_step(10.0, predicted, known) == pytest.approx(expected)


def test_the_error_that_was_predicted_is_reached():
    """Of 40 clusters, the number for half the error; there its error is within 30 %."""
    few = _with_errors(*clustered(40, 30, 0))
    target = planning.over_pairs(*_values(few), "largest") / 2
    clusters = planning.minutes_needed(40.0, 2 * target, target)
    assert clusters == pytest.approx(160)
    many = _with_errors(*clustered(round(clusters), 30, 1))
    assert planning.over_pairs(*_values(many), "largest") == pytest.approx(target, rel=0.3)


def _with_errors(arrays: dict[str, np.ndarray], group: np.ndarray) -> ss.SimilarityResult:
    return ss.compare_activations(arrays, ["lincka"], errors=True, groups=group)


def _values(of: ss.SimilarityResult):
    return of.standard_error("lincka").values, of.matrix("lincka").values


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["linreg", "maxcorr", "mean_cca", "lincka"])
def test_inflation_is_what_a_very_long_run_lacks(measure):
    """Of unrelated representations, whose scores of infinitely many rows are 0 (or the floor)."""
    estimates, true = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, 1200, 24))
        y += 0.5 * x
        parts = [slice(0, 400), slice(400, 1200)]
        of_parts = [_score(x[part], y[part], measure) for part in parts]
        whole = _score(x, y, measure)
        estimate = planning.inflation_by_few_rows([400, 800], of_parts, whole)
        estimates.append(estimate[0, 1])
        long = rng.standard_normal((15_000, 24))
        unrelated = rng.standard_normal(long.shape)
        true.append(whole - _score(long, unrelated + 0.5 * long, measure))
    expected = np.mean([matrix[0, 1] for matrix in true])
    assert np.mean(estimates) == pytest.approx(expected, rel=0.35, abs=0.002)
    assert np.std(estimates) < 0.3 * np.std([matrix[0, 1] for matrix in true]) + 0.002


def _score(x: np.ndarray, y: np.ndarray, measure: str) -> np.ndarray:
    return ss.compare_activations({"x/1": x, "y/1": y}, [measure]).matrix(measure).values


def test_audio_needed_by_measure():
    largest, median = result().audio_needed(0.01)
    assert (largest.measure, largest.of, median.of) == ("lincka", "largest", "median")
    assert largest.minutes == pytest.approx(160)
    assert largest.compute_hours == pytest.approx(8)  # half an hour for 10 minutes
    assert median.minutes == pytest.approx(90)
    assert math.isnan(result(encoding_seconds=math.nan).audio_needed(0.01)[0].compute_hours)


@pytest.mark.parametrize("target", [0, -1, math.nan, math.inf, True])
def test_targets_that_are_none(target):
    with pytest.raises(UserError, match="target_se"):
        result().audio_needed(target)


def test_results_that_cannot_tell():
    none = {"over": "none", "reason": "they were not asked for"}
    without = ss.SimilarityResult.build(
        NAMES, {"lincka": np.eye(2)}, attributes={"seconds": 60.0, "errors": none}
    )
    with pytest.raises(UserError, match="not asked for"):
        without.audio_needed(0.01)
    with pytest.raises(UserError, match="minutes of audio"):
        result(seconds=None).audio_needed(0.01)


def test_the_command(tmp_path, capsys):
    result().save(tmp_path / "result.nc")
    for place in (tmp_path / "result.nc", tmp_path):
        ended = call(capsys, "plan", str(place), "--target_se=0.01")
        assert ended.code == 0
        rows = [line.split() for line in ended.out.splitlines() if line.startswith("lincka")]
        assert rows[0][1:5] == ["largest", "0.04", "160.0", "2.67"]
        assert rows[1][1:5] == ["median", "0.03", "90.0", "1.50"]
    assert_mistake(call(capsys, "plan", str(tmp_path / "no.nc"), "--target_se=0.01"), "no.nc")
    assert_mistake(call(capsys, "plan", str(tmp_path)), "--target_se")
    assert_mistake(call(capsys, "plan", str(tmp_path), "--target_se=0"), "expected more than 0")
