"""Standard errors of agreement: a jackknife over groups of clusters."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.measures import agreement
from speechsim_jax.measures.agreement import GroupRows, left_out
from speechsim_jax.report import report_page

NAMES = ("concept_agreement", "concept_agreement_chance", "concept_agreement_kappa")


def concepts_in_noise(clusters: int, rows: int, neurons: int, seed: int = 0):
    """Two representations whose neurons encode classes, other ones in each cluster, and labels."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(clusters), rows)
    label = rng.integers(0, 4, len(group))
    indicator = np.eye(4)[label]
    own = rng.standard_normal((clusters, 4, neurons))
    shared = np.random.default_rng(1).standard_normal((4, neurons))
    sides = []
    for _ in "xy":
        means = shared + 0.6 * rng.standard_normal((4, neurons)) + 0.8 * own
        signal = np.einsum("rk,rkn->rn", indicator, means[group])
        sides.append(signal + rng.standard_normal((len(group), neurons)))
    return sides[0], sides[1], label, group


def scored(x: np.ndarray, y: np.ndarray, label: np.ndarray, group=None, **settings):
    return ss.compare_activations(
        {"x": x, "y": y}, ["maxcorr"], labels={"class": label}, errors=group is not None,
        groups=group, **settings,
    )  # fmt: skip


@pytest.mark.slow
def test_it_is_the_jackknife_of_all_rows():
    x, y, label, group = concepts_in_noise(12, 60, 24)
    result = scored(x, y, label, group)
    without = []
    for name in range(12):
        keep = group != name
        again = scored(x[keep], y[keep], label[keep])
        without.append([again.matrix(of).values[:2, :2, 0] for of in NAMES])
    spread = np.array(without) - np.mean(without, axis=0)
    expected = np.sqrt(11 / 12 * np.square(spread).sum(axis=0))
    for name, of_name in zip(NAMES, expected, strict=True):
        found = result.matrix(f"{name}_se").values[:2, :2, 0]
        np.testing.assert_allclose(found[[0, 1], [1, 0]], of_name[[0, 1], [1, 0]], rtol=1e-6)
        assert (result.matrix(f"{name}_se_error").values[[0, 1], [1, 0], 0] == 0).all()


def over_corpora(errors_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and its estimated variance, both ways, in 40 corpora of 40 speakers."""
    scores, variances = [], []
    for seed in range(40):
        x, y, label, group = concepts_in_noise(40, 200, 64, seed)
        result = scored(x, y, label, group, errors_rows=errors_rows, errors_source="sample")
        found = [result.matrix(f"concept_agreement{end}").values for end in ("", "_se")]
        score, error = (of[[0, 1], [1, 0], 0] for of in found)
        scores.append(score)
        variances.append(np.square(error))
    return np.array(scores), np.array(variances)


@pytest.mark.slow
def test_it_is_no_less_than_the_spread_over_corpora(monkeypatch):
    """And with few of the neurons the same as with all."""
    monkeypatch.setattr(agreement, "MOST_RELATIVE", np.inf)  # none is left out of the means
    scores, of_all = over_corpora(8000)
    sampled = over_corpora(3200)[1]
    monkeypatch.setattr(agreement, "_MOST_FLOPS", 1.0)
    few = over_corpora(8000)[1]
    spread = scores.std(axis=0, ddof=1).mean()
    for variances in (of_all, sampled):
        assert 1 < np.sqrt(variances.mean()) / spread < 2
    assert 0.85 < np.sqrt(few.mean() / of_all.mean()) < 1.15


def test_rows_are_taken_out_of_correlations():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    x[:, 0] += y[:, 1]
    zx, zy = ((of - of.mean(0)) / of.std(0) for of in (x, y))
    taken = [np.arange(10), np.arange(10, 20), np.array([3])]
    weights = [np.ones(len(of_group)) for of_group in taken]
    sides = (GroupRows.of(of, taken, weights, 50) for of in (zx, zy))
    found = left_out(zx.T @ zy / 50, *sides, 50)
    for of_group, out in zip(found, (range(10), range(10, 20), [3]), strict=True):
        left = np.delete(np.arange(50), out)
        expected = np.corrcoef(x[left].T, y[left].T)[:3, 3:]
        np.testing.assert_allclose(of_group, expected, atol=1e-12)


def test_labels_that_are_the_groups_are_not_noise():
    """Without a speaker nothing correlates with the speaker, whatever the sampled rows say."""
    x, y, _, group = concepts_in_noise(12, 300, 24)
    rng = np.random.default_rng(3)
    own = rng.standard_normal((12, 24))
    x, y = x + own[group], y + own[group] + 0.5 * rng.standard_normal((12, 24))[group]
    whole = scored(x, y, group, group, errors_rows=20_000)
    sampled = scored(x, y, group, group, errors_rows=1200)
    for name in NAMES:
        of_all = whole.matrix(f"{name}_se").values[[0, 1], [1, 0], 0]
        found = sampled.matrix(f"{name}_se").values[[0, 1], [1, 0], 0]
        known = np.isfinite(found)
        assert (of_all > 0).all()
        np.testing.assert_allclose(np.log(found[known] / of_all[known]), 0, atol=np.log(2.5))


def test_correlations_without_a_group_are_correlations():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 50)
    indicator = (group == 0).astype(np.float32)
    x = (rng.standard_normal((200, 3)) + indicator[:, None]).astype(np.float32)
    zx, zy = ((of - of.mean(0)) / of.std(0) for of in (x, indicator[:, None]))
    half = [np.flatnonzero(group == g)[::2] for g in range(4)]
    weights = [np.full(25, 2.0)] * 4
    sides = [GroupRows.of(of, half, weights, 200, 0.05) for of in (zx, zy)]
    found = np.stack(list(left_out(zx.T @ zy / 200, *sides, 200)))
    assert np.abs(found).max() <= 1 and (found[0] == 0).all() and (found[1:] != 0).all()


@pytest.mark.parametrize("errors", [True, False])
def test_a_label_of_one_class_and_a_constant_layer_are_known_nothing_of(errors):
    x, y, label, group = concepts_in_noise(12, 40, 6)
    for of_label, of_y in ((np.zeros(len(label)), y), (label, np.ones_like(y))):
        result = scored(x, of_y, of_label, group if errors else None)
        assert np.isnan(result.matrix("concept_agreement").values).all()
        assert report_page(result)


def test_errors_are_of_two_models_unless_there_is_one():
    x, y, label, group = concepts_in_noise(12, 60, 12)
    z = x + 0.3 * np.random.default_rng(4).standard_normal(x.shape)

    def known(layers: dict[str, np.ndarray], **settings) -> np.ndarray:
        result = ss.compare_activations(
            layers, ["maxcorr"], labels={"class": label}, errors=True, groups=group, **settings
        )
        scores = result.matrix("concept_agreement").values[:3, :3, 0]
        assert np.isfinite(scores).sum() == (2 if settings else 6)
        return np.isfinite(result.matrix("concept_agreement_se").values[:3, :3, 0])

    between = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(known({"a/0": x, "a/1": y, "b/0": z}), between)
    np.testing.assert_array_equal(known({"a/0": x, "a/1": y, "a/2": z}), ~np.eye(3, dtype=bool))
    within = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    found = known({"a/0": x, "a/1": y, "b/0": z}, pairs="within")
    np.testing.assert_array_equal(found, within)
