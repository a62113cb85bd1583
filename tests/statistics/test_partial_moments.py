"""Partial moments and what given representations explain, against least squares."""

import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.moments_finished import FinishedMoments
from speechsim_jax.statistics.partial_moments import ExplainedMoments, PartialMoments
from tests.support.rows import moments_of

N = 400
RNG = np.random.default_rng(0)
label = RNG.integers(0, 4, N)
SPEAKER = (label[:, None] == np.arange(4)).astype(float)  # columns add up to 1: of rank 3
PITCH = RNG.standard_normal((N, 2))
MIXING = [RNG.standard_normal((6, width)) for width in (5, 3)]
X, Y = (
    np.hstack([SPEAKER, PITCH]) @ mixing + RNG.standard_normal((N, mixing.shape[1])) + 7
    for mixing in MIXING
)
ALL = [X, SPEAKER, Y, PITCH]


def fits(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Least squares on z, about means."""
    z, x = z - z.mean(0), x - x.mean(0)
    return z @ np.linalg.lstsq(z, x, rcond=None)[0]


@pytest.fixture(scope="module")
def whole() -> FinishedMoments:
    return moments_of(ALL)


@pytest.mark.parametrize("given", [[1], [3], [1, 3]])
def test_both_parts_are_those_of_least_squares(whole, given):
    explained, partial = ExplainedMoments(whole, given), PartialMoments(whole, given)
    z = np.hstack([ALL[k] for k in given])
    left = [k for k in range(4) if k not in given]
    fitted = [fits(ALL[k], z) for k in left]
    residuals = [ALL[k] - ALL[k].mean(0) - fit for k, fit in zip(left, fitted)]
    for parts, rows in ((explained, fitted), (partial, residuals)):
        for x, of_x in zip(parts.representations, rows):
            np.testing.assert_allclose(x.std[x.live], of_x.std(0)[x.live], rtol=1e-9)
            for y, of_y in zip(parts.representations, rows):
                np.testing.assert_allclose(parts.scatter(x, y), of_x.T @ of_y, atol=1e-9 * N)
    for got, expected in zip(explained.explained(ALL), fitted):
        np.testing.assert_allclose(got, expected, atol=1e-9)
    for k, got, residual in zip(left, partial.residuals(ALL), residuals):
        np.testing.assert_allclose(got, residual + ALL[k].mean(0), atol=1e-9)
    rank = np.linalg.matrix_rank(z - z.mean(0))
    assert (explained.degrees, partial.degrees) == (rank, N - 1 - rank)
    for x in explained.representations:
        assert x.whitening.rank <= rank


def test_between_classes_is_what_class_means_vary(whole):
    explained = ExplainedMoments(whole, [1])
    means = np.stack([X[label == k].mean(0) for k in range(4)])[label] - X.mean(0)
    x = explained.representations[0]
    np.testing.assert_allclose(explained.scatter(x, x), means.T @ means, atol=1e-9 * N)


def test_what_z_does_not_explain_is_dead():
    """A neuron of the same mean in every class has no part between classes."""
    alone = RNG.standard_normal(N)
    for k in range(4):
        alone[label == k] -= alone[label == k].mean()
    finished = moments_of([np.column_stack([X[:, 0], alone]), SPEAKER], 1e-9)
    assert ExplainedMoments(finished, [1]).representations[0].live.tolist() == [True, False]
    assert PartialMoments(finished, [1]).representations[0].live.tolist() == [True, True]


def test_what_cannot_be_given(whole):
    for kind in (ExplainedMoments, PartialMoments):
        for given in ([], [0, 1, 2, 3]):
            with pytest.raises(UserError, match="given"):
                kind(whole, given)
        with pytest.raises(UserError, match="lincka_debiased"):
            kind(whole, [1]).energies(*kind(whole, [1]).representations[:2])
    with pytest.raises(UserError, match="constant"):
        ExplainedMoments(moments_of([X, np.ones((N, 2))]), [1])
