"""Which cells of a map differ from a reference."""

import itertools

import numpy as np
import pytest
import scipy.stats

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference.differences import half_intervals
from speechsim_jax.results.result import SimilarityResult
from tests.support.clustered import clustered_result

LABELS = [f"{model}/{layer}" for model in "ab" for layer in range(4)]


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return clustered_result()


def closest(result: SimilarityResult, measure: str, x: str, y: str) -> str:
    """The label of y's model with the largest score with x, but x."""
    scores = result.matrix(measure).loc[x]
    own = [label for label in LABELS if label[0] == y[0] and label != x]
    return max(own, key=lambda label: float(scores.loc[label]))


@pytest.mark.parametrize("measure", ["maxcorr", "lincka"])
def test_each_difference_is_the_contrast(result: SimilarityResult, measure: str) -> None:
    found = result.differences(measure)
    for x, y in itertools.product(LABELS, LABELS):
        cell = found.sel(x=x, y=y)
        best = closest(result, measure, x, y)
        assert bool(cell.reference) == (y == best)
        if x == y or y == best:
            assert np.isnan(cell.p) and np.isnan(cell.q) and not cell.differs
            continue
        contrast = result.contrast(measure, (x, y), (x, best))
        assert float(cell.difference) == pytest.approx(contrast.difference)
        assert float(cell.standard_error) == pytest.approx(contrast.standard_error, nan_ok=True)
        assert float(cell.p) == pytest.approx(contrast.p, nan_ok=True)
    assert bool(found.differs.any())


def test_q_values_are_of_the_whole_map(result: SimilarityResult) -> None:
    """Benjamini & Hochberg, written out: the least of n p / rank over all that are larger."""
    found = result.differences("maxcorr", ("a/1", "b/2"))
    known = np.isfinite(found.p.values)
    p = np.sort(found.p.values[known])
    raised = p * len(p) / np.arange(1, len(p) + 1)
    expected = np.minimum.accumulate(raised[::-1])[::-1]
    np.testing.assert_allclose(np.sort(found.q.values[known]), np.minimum(expected, 1))
    np.testing.assert_array_equal(found.differs, found.q <= 0.05)
    strict = result.differences("maxcorr", ("a/1", "b/2"), rate=1e-6)
    assert int(strict.differs.sum()) < int(found.differs.sum())


def test_other_references(result: SimilarityResult) -> None:
    scores = result.matrix("lincka")
    of_row = result.differences("lincka", "closest_of_row")
    assert [int(of_row.reference.sel(x=x).sum()) for x in LABELS] == [1] * 8
    untrained = result.differences("lincka", "b")
    expected = result.contrast("lincka", ("a/3", "a/1"), ("a/3", "b/1"))
    assert float(untrained.p.sel(x="a/3", y="a/1")) == pytest.approx(expected.p)
    assert not np.isfinite(untrained.p.sel(y=["b/0", "b/1", "b/2", "b/3"]).values).any()
    value = result.differences("lincka", 0.5).sel(x="a/0", y="b/1")
    score, error = (float(of.loc["a/0", "b/1"]) for of in (scores, result.standard_error("lincka")))
    assert float(value.difference) == pytest.approx(score - 0.5)
    assert float(value.standard_error) == pytest.approx(error)
    given = result.differences("lincka", 0 * scores + 0.5).sel(x="a/0", y="b/1")
    assert float(given.q) == float(value.q)
    floor = result.differences("lincka", "floor").sel(x="a/0", y="b/1")
    least = float(result.dataset["lincka_floor"].loc["a/0", "b/1"])
    assert float(floor.difference) == pytest.approx(score - least)


@pytest.mark.slow
def test_layers_of_one_score_are_not_told_apart() -> None:
    """In few maps any of three layers differs that only noise makes different."""
    rng = np.random.default_rng(1)
    speaker, wrong = np.repeat(np.arange(20), 20), 0
    for _ in range(40):
        x = rng.standard_normal((20, 3))[speaker] + rng.standard_normal((400, 3))
        # One layer and, of the same distribution, several others.
        arrays = {"a/0": x} | {f"b/{k}": x + rng.standard_normal(x.shape) for k in range(4)}
        result = ss.compare_activations(arrays, ["lincka"], errors=True, groups=speaker)
        found = result.differences("lincka", ("a/0", "b/0"))
        wrong += bool(found.differs.sel(x="a/0").any())
    assert wrong <= scipy.stats.binom.isf(0.001, 40, 0.1)


def test_a_selection_keeps_its_differences(result: SimilarityResult) -> None:
    whole, part = result.differences("maxcorr"), result.select("b").differences("maxcorr")
    np.testing.assert_allclose(part.p, whole.p.sel(x=part.x, y=part.y))


def test_what_cannot_be_compared_is_said(result: SimilarityResult) -> None:
    for reference in ("closets", ("a/0", "c/1"), ("a/0",), True):
        with pytest.raises(UserError):
            result.differences("lincka", reference)
    for rate in (0, 1, True):
        with pytest.raises(UserError):
            result.differences("lincka", rate=rate)
    with pytest.raises(UserError):
        result.differences("maxcorr", "floor")
    unlabelled = result.matrix("lincka").drop_vars(["x", "y"])
    with pytest.raises(UserError):
        result.differences("lincka", unlabelled)


def test_half_intervals_of_every_two_cells_are_those_of_contrasts(
    result: SimilarityResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = result.influence
    assert table is not None and (table.clusters.kept < table.clusters.rows).all()
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 8, (2, 20))
    whole = half_intervals(table, "maxcorr", x, y)
    monkeypatch.setattr("speechsim_jax.inference.differences._BLOCK", 30 * 20 * 3)
    np.testing.assert_allclose(half_intervals(table, "maxcorr", x, y), whole)  # in blocks
    np.testing.assert_array_equal(whole, whole.T)
    for a, b in itertools.combinations(range(20), 2):
        cells = [(LABELS[x[k]], LABELS[y[k]]) for k in (a, b)]
        low, high = result.contrast("maxcorr", *cells).interval()
        assert whole[a, b] == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-12, nan_ok=True)
