"""Data at the edges: every case has one defined outcome, for every measure on moments."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES
from tests.support import reference

NAMES = [name for name, measure in MEASURES.items() if measure.statistic == "moments"]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def compare(dtype: str = "float64", **representations: np.ndarray) -> ss.SimilarityResult:
    return ss.compare_activations(representations, NAMES, stats_dtype=dtype)


def correlated(rows: int, *widths: int) -> list[np.ndarray]:
    """Representations that share three directions."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows, 3))
    return [shared @ rng.standard_normal((3, w)) + rng.standard_normal((rows, w)) for w in widths]


def assert_in_range(result: ss.SimilarityResult, without: tuple[str, ...] = ()) -> None:
    """Every score is a number within the measure's limits."""
    for name in NAMES:
        if name not in without:
            low, high = MEASURES[name].limits
            values = result.matrix(name).values
            assert np.all((values >= low - 1e-6) & (values <= high + 1e-6)), name


@DTYPES
def test_dead_neurons_are_left_out_or_count_as_0(dtype):
    x, y = correlated(200, 6, 5)
    dead = x.copy()
    dead[:, 3] = 7.25
    result = compare(dtype, x=dead, y=y)
    without = compare(dtype, x=np.delete(x, 3, 1), y=y)
    assert result.dataset["dead_neurons"].values.tolist() == [1, 0]
    assert result.dataset["best_corr"].values[0, 1, 3] == 0
    assert result.dataset["best_match"].values[0, 1, 3] == -1
    bar = 1e-10 if dtype == "float64" else 1e-6
    for name in NAMES:
        # maxcorr and its baseline average over all neurons of x, and the dead one scores 0
        share = 5 / 6 if name in ("maxcorr", "rotcorr") else 1
        expected = without.matrix(name).values * np.array([[share**2, share], [1, 1]])
        actual = result.matrix(name).values
        assert np.abs(actual - expected)[0, 1] <= bar, name
        assert np.abs(actual - expected)[1, 0] <= bar or name == "rotcorr", name
        self_score = {"maxcorr": 5 / 6, "matchcorr": 5 / 6}.get(name, actual[1, 1])
        assert abs(actual[0, 0] - self_score) <= bar or name == "rotcorr", name


@DTYPES
def test_a_representation_without_variance(dtype):
    """NaN in every measure, whichever of the two it is."""
    (y,) = correlated(50, 3)
    result = compare(dtype, x=np.full((50, 4), 3.0), y=y)
    for name in NAMES:
        (itself, forward), (backward, other) = result.matrix(name).values
        assert np.isnan([itself, forward, backward]).all() and np.isfinite(other), name
    assert result.dataset["rank"].values.tolist() == [0, 3]
    assert result.dataset["dead_neurons"].values.tolist() == [4, 0]


@DTYPES
def test_one_dominating_component_keeps_one_direction(dtype):
    rng = np.random.default_rng(0)
    common = rng.standard_normal((300, 1))
    x = common + 0.01 * rng.standard_normal((300, 8))
    y = common + 0.01 * rng.standard_normal((300, 6))
    result = compare(dtype, x=x, y=y)
    assert result.dataset["svcca_directions"].values.tolist() == [1, 1]
    expected = reference.svcca(x, y)
    assert expected > 0.99
    bar = 1e-10 if dtype == "float64" else 1e-6
    for name in ("svcca", "svcca_ge", "pwcca", "pwcca_zscored"):
        assert result.matrix(name).values[0, 1] == pytest.approx(expected, abs=bar), name
    assert_in_range(result)


@DTYPES
def test_rows_of_one_value_are_one_direction(dtype):
    """Every neuron of x says the same: 12 neurons, rank 1."""
    (y,) = correlated(80, 5)
    x = np.repeat(y[:, :1], 12, axis=1) * np.arange(1, 13)
    result = compare(dtype, x=x, y=y)
    assert result.dataset["rank"].values.tolist() == [1, 5]
    assert_in_range(result)
    assert result.matrix("maxcorr").values[0, 1] == pytest.approx(1, abs=1e-6)
    assert result.matrix("mean_cca").values[0, 1] == pytest.approx(1, abs=1e-6)
    assert result.matrix("linreg").values[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@DTYPES
def test_duplicate_neurons_add_no_direction(dtype):
    x, y = correlated(150, 7, 6)
    doubled = np.hstack([x, x[:, :4], -2 * x[:, 1:2]])
    result, single = compare(dtype, x=doubled, y=y), compare(dtype, x=x, y=y)
    assert result.dataset["rank"].values.tolist() == [7, 6]
    assert_in_range(result)
    bar = 1e-9 if dtype == "float64" else 1e-5
    for name in ("mean_cca", "mean_cca2"):
        assert abs(result.matrix(name) - single.matrix(name)).max() <= bar, name
    for name in ("linreg", "linreg_r2", "linreg_r2_global", "maxcorr"):
        both = (r.matrix(name).values[1, 0] for r in (result, single))
        assert next(both) == pytest.approx(next(both), abs=bar), name


@pytest.mark.slow
@DTYPES
def test_fewer_rows_than_neurons(dtype):
    """At most n - 1 directions: everything can be explained, and the ranks and floors say so."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 64)), rng.standard_normal((20, 48))
    result = compare(dtype, x=x, y=y)
    assert result.dataset["rank"].values.tolist() == [19, 19]
    assert result.dataset["linreg_r2_floor"].values[0, 1] == 1
    assert_in_range(result)
    for name in ("linreg", "linreg_r2", "linreg_r2_global", "mean_cca"):
        np.testing.assert_allclose(result.matrix(name), 1, atol=1e-6, err_msg=name)


@DTYPES
@pytest.mark.parametrize("rows", [2, 3, 4])
def test_a_handful_of_rows(rows, dtype):
    """The unbiased estimator needs four rows; the rest is defined from two on."""
    x, y = correlated(rows, 5, 4)
    result = compare(dtype, x=x, y=y)
    undefined = ("lincka_debiased",) if rows < 4 else ()
    assert_in_range(result, without=undefined)
    for name in undefined:
        assert np.isnan(result.matrix(name).values).all()
    assert result.dataset["rank"].values.tolist() == [rows - 1] * 2


@pytest.mark.slow
@DTYPES
def test_representations_of_very_different_width(dtype):
    x, y = correlated(300, 1, 40)
    result = compare(dtype, x=x, y=y)
    assert_in_range(result)
    r = np.abs(reference.correlations(x, y))
    assert result.matrix("maxcorr").values[0, 1] == pytest.approx(r.max(), abs=1e-6)
    assert result.matrix("maxcorr").values[1, 0] == pytest.approx(r.mean(), abs=1e-6)
    assert result.matrix("mean_cca").values[0, 1] == pytest.approx(reference.linreg(x, y), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value):
    x, y = correlated(100, 5, 4)
    y[83, 2] = value
    with pytest.raises(UserError, match="y/0: NaN or inf in row 83"):
        compare(x=x, y=y)
    with pytest.raises(UserError, match="y/0: NaN or inf in row 83"):
        ss.compare_activations({"x": x, "y": iter(np.split(y, [40, 60]))}, rows_per_update=32)


def test_float16_rows_are_added_in_full_precision():
    """Squares of these leave float16 at once: 30,000 ** 2."""
    x, y = (a.astype(np.float16) for a in correlated(120, 6, 5))
    x = (x * 6000).astype(np.float16)
    assert np.abs(x).max() > 20_000 and np.isfinite(x).all()
    half = compare(x=x, y=y)
    whole = compare(x=x.astype(np.float64), y=y.astype(np.float64))
    for name in NAMES:
        np.testing.assert_array_equal(half.matrix(name), whole.matrix(name), err_msg=name)
