"""The estimator of standard errors from sampled rows."""

import numpy as np
import pytest

from speechsim_jax.inference.standard_errors import (
    ClusterInfluence,
    SampledClusters,
    effective_degrees,
    p_value,
    quantile,
    standard_error,
)

LENGTHS = np.array([30, 45, 60, 52, 38, 41, 80, 25, 33, 47, 58, 64])


def influence(seed: int = 0, effect: float = 0.5) -> list[np.ndarray]:
    """Of all rows of each cluster, with an effect of the cluster and noise, mean 0 over all."""
    rng = np.random.default_rng(seed)
    parts = [effect * rng.standard_normal() + rng.standard_normal(n) for n in LENGTHS]
    mean = np.concatenate(parts).mean()
    return [part - mean for part in parts]


def clusters(kept: np.ndarray, sampled: np.ndarray) -> SampledClusters:
    return SampledClusters(
        tuple(map(str, sampled)), LENGTHS[sampled], kept, int(LENGTHS.sum()), len(LENGTHS)
    )


def jackknife(parts: list[np.ndarray]) -> float:
    """SE^2 = C / (C - 1) sum (sum I / n)^2, written out."""
    n = sum(map(len, parts))
    return (len(parts) / (len(parts) - 1) * sum((part.sum() / n) ** 2 for part in parts)) ** 0.5


def test_of_all_rows_it_is_the_infinitesimal_jackknife():
    parts = influence()
    of_all = clusters(LENGTHS, np.arange(len(LENGTHS)))
    error, relative = standard_error(of_all.summarise(np.concatenate(parts)), of_all)
    assert error == pytest.approx(jackknife(parts), rel=1e-12)
    assert relative == 0


@pytest.mark.parametrize("effect", [0.0, 0.5])
@pytest.mark.parametrize("chosen", [12, 7])
def test_of_sampled_rows_its_square_is_unbiased(effect, chosen):
    """Mean over draws of rows and clusters; and the stated relative error is the real one."""
    parts = influence(effect=effect)
    truth = jackknife(parts) ** 2
    rng = np.random.default_rng(1)
    squares, stated = [], []
    for _ in range(1000):
        sampled = np.sort(rng.choice(len(parts), chosen, replace=False))
        kept = np.maximum(LENGTHS[sampled] // 3, 8)
        rows = [rng.choice(parts[k], m, replace=False) for k, m in zip(sampled, kept)]
        of_draw = clusters(kept, sampled)
        summary = of_draw.summarise(np.concatenate(rows))
        terms = np.square(LENGTHS[sampled] / LENGTHS.sum()) * (
            np.square(summary.means) - (1 - kept / LENGTHS[sampled]) * summary.variances / kept
        )
        squares.append(12 / 11 * 12 / chosen * terms.sum())
        error, relative = standard_error(summary, of_draw)
        if squares[-1] > 0:
            stated.append(float((2 * relative * squares[-1]) ** 2))
        else:
            assert relative == np.inf
        if relative <= 0.5:
            assert error == pytest.approx(squares[-1] ** 0.5)
        else:
            assert np.isnan(error)
    spread = np.std(squares)
    assert abs(np.mean(squares) - truth) <= 4 * spread / len(squares) ** 0.5
    if effect:
        assert np.mean(stated) ** 0.5 == pytest.approx(spread, rel=0.2)


def test_without_the_correction_it_would_be_biased():
    parts = influence(effect=0.0)
    rng = np.random.default_rng(1)
    everyone = np.arange(len(LENGTHS))
    kept = LENGTHS // 5
    plain = []
    for _ in range(300):
        rows = [rng.choice(part, m, replace=False) for part, m in zip(parts, kept)]
        sums = clusters(kept, everyone).summarise(np.concatenate(rows)).means * LENGTHS
        plain.append(12 / 11 * np.square(sums / LENGTHS.sum()).sum())
    assert np.mean(plain) > 2 * jackknife(parts) ** 2


def test_cells_are_independent_of_each_other():
    of_all = clusters(LENGTHS, np.arange(len(LENGTHS)))
    cells = np.stack([np.concatenate(influence(seed)) for seed in range(6)], axis=1)
    errors, _ = standard_error(of_all.summarise(cells.reshape(-1, 2, 3)), of_all)
    expected = [jackknife(influence(seed)) for seed in range(6)]
    np.testing.assert_allclose(errors.ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize("most", [1, 50, 10**6])
def test_clusters_part_by_part(most):
    """The same summary, and every row in one part."""
    of_all = clusters(LENGTHS, np.arange(len(LENGTHS)))
    rows = np.stack([np.concatenate(influence(seed)) for seed in range(3)], axis=1)
    parts = list(of_all.parts(most))
    assert [place for of, _ in parts for place in range(of.start, of.stop)] == [*range(len(rows))]
    assert all(len(some.names) == 1 or some.kept.sum() <= most for _, some in parts)
    summary = ClusterInfluence.of_parts([some.summarise(rows[of]) for of, some in parts])
    whole = of_all.summarise(rows)
    np.testing.assert_allclose(summary.means, whole.means, rtol=1e-12)
    np.testing.assert_allclose(summary.variances, whole.variances, rtol=1e-12)


def test_a_score_that_no_row_moves_is_sure():
    of_all = clusters(LENGTHS, np.arange(len(LENGTHS)))
    error, relative = standard_error(of_all.summarise(np.zeros(LENGTHS.sum())), of_all)
    assert error == 0 and relative == 0


def test_no_interval_with_fewer_than_ten_clusters():
    few = effective_degrees(8, 0.0)
    assert np.isnan(quantile(few, 0.95)) and np.isnan(p_value(1.0, 0.1, float(few)))
    assert quantile(9, 0.95) == pytest.approx(2.2621571628)  # tables of Student's t
    assert p_value(2.2621571628, 1.0, 9) == pytest.approx(0.05)


def test_degrees_of_freedom_fall_where_the_error_is_hardly_known():
    """Over draws of rows, the squares of the estimates vary as a chi-squared of so many."""
    assert effective_degrees(39, 0.0) == pytest.approx(39)
    assert effective_degrees(10**9, 0.2) == pytest.approx(1 / (2 * 0.2**2), rel=1e-6)
    draws = np.random.default_rng(0).chisquare(25, 200_000) / 25
    relative = np.sqrt(draws).std()
    assert effective_degrees(10**9, relative) == pytest.approx(25, rel=0.03)
    assert np.isnan(effective_degrees(8, 0.0))


def test_one_sampled_cluster_tells_nothing():
    single = SampledClusters(("a",), np.array([50]), np.array([10]), 50, 1)
    influence = np.random.default_rng(0).standard_normal(10)
    error, _ = standard_error(single.summarise(influence), single)
    assert np.isnan(error)
