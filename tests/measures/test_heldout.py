"""Held-out scores: golden values, an oracle on rows, and what they are for."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import folds
from speechsim_jax.measures import MEASURES
from tests.support.paths import DATA

GOLDEN = np.load(DATA / "inference.npz")
INPUTS = {name: GOLDEN[f"x_{name}"] for name in "abc"}
IN_GOLDEN = ("linreg", "linreg_r2", "maxcorr", "mean_cca", "svcca", "procrustes")
NAMES = [name for measure in MEASURES.values() for name in measure.heldout]


def compared(**arguments) -> ss.SimilarityResult:
    measures = [m.name for m in MEASURES.values() if m.heldout] + ["lincka", "lincka_debiased"]
    return ss.compare_activations(INPUTS, measures, **{"rows_per_update": 500} | arguments)


@pytest.fixture(scope="module")
def result() -> ss.SimilarityResult:
    return compared(heldout=True, folds=GOLDEN["fold"])


@pytest.mark.parametrize("name", IN_GOLDEN)
def test_golden(name, result):
    golden = GOLDEN[f"heldout_{name}"]
    error = np.abs(result.matrix(f"{name}_heldout").values - golden)
    assert np.nanmax(error) <= 1e-9
    single = compared(folds=GOLDEN["fold"], stats_dtype="float32")
    assert np.nanmax(np.abs(single.matrix(f"{name}_heldout").values - golden)) <= 2e-6


def on_rows(name: str, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """The scores without golden values, written out on the rows of both folds."""
    scores = []
    for k in (0, 1):
        fit, other = fold == k, fold != k
        (x1, x2), (y1, y2) = (
            ((a[fit] - a[fit].mean(0)) / a[fit].std(0), (a[other] - a[fit].mean(0)) / a[fit].std(0))
            for a in (x, y)
        )
        if name == "matchcorr_heldout":
            width = x.shape[1]
            r1, r2 = (np.corrcoef(a.T, b.T)[:width, width:] for a, b in ((x1, y1), (x2, y2)))
            i, j = linear_sum_assignment(-np.abs(r1))
            scores.append(np.mean(np.sign(r1[i, j]) * r2[i, j]))
        elif name == "pwcca_heldout":
            bases = []
            for a in (x1, y1):
                u, s, v = np.linalg.svd(a, full_matrices=False)
                keep = max(1, int(np.sum(np.cumsum(s**2) / np.sum(s**2) < 0.99)))
                bases.append((u[:, :keep], v[:keep].T / s[:keep]))
            left, _, right = np.linalg.svd(bases[0][0].T @ bases[1][0], full_matrices=False)
            a, b = bases[0][1] @ left, bases[1][1] @ right.T
            rho = [np.corrcoef(x2 @ a[:, k], y2 @ b[:, k])[0, 1] for k in range(a.shape[1])]
            weight = np.abs((x1 @ a).T @ (x[fit] - x[fit].mean(0))).sum(axis=1)
            scores.append(np.dot(weight, rho) / weight.sum())
        else:
            best = None
            values = np.linalg.eigvalsh(y1.T @ y1)
            for penalty in values[-1] * 10.0 ** np.arange(-8, 2.25, 0.25):
                inverse = np.linalg.inv(y1.T @ y1 + penalty * np.eye(y.shape[1]))
                coefficients = inverse @ y1.T @ x1
                freedom = np.trace(y1 @ inverse @ y1.T)
                error = np.sum((x1 - y1 @ coefficients) ** 2) / (1 - freedom / fit.sum()) ** 2
                best = min(best or (np.inf, None), (error, penalty))
            inverse = np.linalg.inv(y1.T @ y1 + best[1] * np.eye(y.shape[1]))
            predicted = y2 @ (inverse @ y1.T @ x1)
            scores.append(
                np.mean([np.corrcoef(x2[:, i], predicted[:, i])[0, 1] for i in range(x.shape[1])])
            )
    return float(np.mean(scores))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {f"{n}_heldout" for n in IN_GOLDEN}))
def test_the_others_against_the_rows(name, result):
    for a, b in (("a", "b"), ("c", "a")):
        expected = on_rows(name, INPUTS[a], INPUTS[b], GOLDEN["fold"])
        score = float(result.matrix(name).loc[f"{a}/0", f"{b}/0"])
        assert score == pytest.approx(expected, abs=1e-9)


def test_other_scores_do_not_change(result):
    plain = compared()
    for name in plain.measures:
        np.testing.assert_allclose(result.matrix(name), plain.matrix(name), atol=1e-12)
    assert not any("heldout" in name for name in plain.dataset)


def test_errors_and_folds_together(result):
    """Neither changes the other."""
    both = compared(folds=GOLDEN["fold"], errors=True, groups=GOLDEN["group"])
    errors = compared(errors=True, groups=GOLDEN["group"])
    for name in NAMES:
        np.testing.assert_allclose(both.matrix(name), result.matrix(name), atol=1e-12)
    np.testing.assert_allclose(both.matrix("svcca_se"), errors.matrix("svcca_se"), atol=1e-12)


def test_groups_stay_together_and_folds_are_balanced():
    """The default folds give what the same folds, handed over, give."""
    groups = GOLDEN["group"]
    names, counts = np.unique(groups.astype(str), return_counts=True)
    of_group = folds(dict(zip(names.tolist(), counts.tolist())), 0)
    fold = np.array([of_group[str(group)] for group in groups])
    assert abs(fold.mean() - 0.5) < 0.01
    by_default, given = compared(heldout=True, groups=groups), compared(folds=fold)
    for name in NAMES:
        np.testing.assert_array_equal(by_default.matrix(name), given.matrix(name))
    other = folds(dict(zip(names.tolist(), counts.tolist())), 1)
    assert other != of_group


@pytest.mark.parametrize("neurons", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_unrelated_representations_are_near_zero_with_few_rows(neurons):
    """n = 2 d, where the score of the same rows is above 0.6."""
    rng = np.random.default_rng(neurons)
    x, y = rng.standard_normal((2, 2 * neurons, neurons))
    fold = np.arange(2 * neurons) % 2
    names = ["linreg", "svcca", "mean_cca", "maxcorr", "procrustes"]
    result = ss.compare_activations({"x": x, "y": y}, names, folds=fold)

    def score(name: str) -> float:
        return float(result.matrix(name).loc["x/0", "y/0"])

    assert score("linreg") > 0.6 and score("mean_cca") > 0.6
    bar = 0.01 if neurons >= 300 else 0.05
    for name in (*names, "linreg_ridge"):
        assert abs(score(f"{name}_heldout")) <= bar, name


def test_predictions_that_are_worse_than_the_mean_are_negative():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200, 100))
    result = ss.compare_activations(
        {"x": x, "y": y}, ["linreg_r2"], folds=np.arange(200) % 2, rank_tolerance=1e-12
    )
    assert float(result.matrix("linreg_r2_heldout").loc["x/0", "y/0"]) < -1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(len(GOLDEN["fold"])), "two values"),
        (np.arange(len(GOLDEN["fold"])) % 3, "two values"),
        (GOLDEN["fold"][:-1], "folds"),
        (np.r_[GOLDEN["fold"], 1], "folds"),
        (None, "groups"),
    ],
)
def test_wrong_folds_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        compared(heldout=True, folds=given)


def test_a_fold_without_rows_gives_no_scores(caplog):
    fold = np.zeros(len(GOLDEN["fold"]), int)
    fold[0] = 1
    result = compared(folds=fold)
    assert np.isnan(result.matrix("linreg_heldout")).all() and "no held-out" in caplog.text
    np.testing.assert_allclose(result.matrix("linreg"), compared().matrix("linreg"), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("constant", [0.0, 3.0, -0.1])
def test_a_neuron_that_is_constant_in_one_fold_is_dead_there(dtype, constant):
    rng = np.random.default_rng(0)
    x, fold = rng.standard_normal((600, 5)), np.repeat([0, 1], 300)
    x[fold == 1, 2] = constant
    y = x + 0.1 * rng.standard_normal((600, 5))
    held = ss.compare_activations(
        {"x": x, "y": y}, ["maxcorr"], heldout=True, folds=fold, stats_dtype=dtype
    ).matrix("maxcorr_heldout")
    # Fitted on fold 0 the neuron counts as 0 on fold 1; fitted on fold 1 it matches nothing.
    assert float(held[0, 1]) == pytest.approx(0.8, abs=0.03)
