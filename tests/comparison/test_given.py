"""Partial scores: representations less what given ones explain of them."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES
from tests.support.paths import DATA

pytestmark = pytest.mark.slow

GOLDEN = np.load(DATA / "inference.npz")
INPUTS = {name: GOLDEN[f"x_{name}"] for name in "abc"}
IN_GOLDEN = ("lincka", "maxcorr", "linreg", "linreg_r2", "mean_cca", "svcca", "procrustes")
MOMENT_MEASURES = [
    m.name for m in MEASURES.values() if m.statistic == "moments" and m.name != "lincka_debiased"
]
GIVEN = GOLDEN["given"]


def residual(x: np.ndarray, z: np.ndarray = GIVEN) -> np.ndarray:
    design = np.column_stack([np.ones(len(z)), z])
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]


def partial(measures, z=GIVEN, **arguments) -> ss.SimilarityResult:
    return ss.compare_activations(INPUTS | {"z": z}, measures, given=["z"], **arguments)


@pytest.fixture(scope="module")
def result() -> ss.SimilarityResult:
    return partial(MOMENT_MEASURES, heldout=True, folds=GOLDEN["fold"])


@pytest.mark.parametrize("name", IN_GOLDEN)
def test_golden(name, result):
    error = np.abs(result.matrix(name).values - GOLDEN[f"given_{name}"])
    assert np.nanmax(error) <= 1e-9
    assert result.models == ("a", "b", "c") and result.attributes["given"] == ["z"]


def test_every_measure_is_that_of_the_residuals(result):
    expected = ss.compare_activations({k: residual(x) for k, x in INPUTS.items()}, MOMENT_MEASURES)
    for name in MOMENT_MEASURES:
        if name == "rotcorr":
            continue  # its draws depend on the representation's number
        np.testing.assert_allclose(
            result.matrix(name).values, expected.matrix(name).values, atol=1e-9, err_msg=name
        )


def test_held_out_each_fold_is_residualised_by_its_own_moments(result):
    fold = GOLDEN["fold"]
    parts = {}
    for name, x in INPUTS.items():
        parts[name] = np.empty_like(x)
        for k in (0, 1):
            parts[name][fold == k] = residual(x[fold == k], GIVEN[fold == k])
            parts[name][fold == k] += x[fold == k].mean(axis=0)
    expected = ss.compare_activations(parts, ["linreg", "maxcorr"], heldout=True, folds=fold)
    for name in ("linreg_heldout", "maxcorr_heldout"):
        np.testing.assert_allclose(
            result.matrix(name).values, expected.matrix(name).values, atol=1e-9
        )


def test_errors_are_those_of_the_residuals():
    arguments = {"errors": True, "groups": GOLDEN["group"]}
    names = ["lincka", "maxcorr", "linreg", "svcca"]
    actual = partial(names, **arguments)
    expected = ss.compare_activations(
        {k: residual(x) for k, x in INPUTS.items()}, names, **arguments
    )
    for name in names:
        np.testing.assert_allclose(
            actual.standard_error(name).values, expected.standard_error(name).values, rtol=1e-6
        )


def test_given_columns_that_depend_on_each_other_count_once():
    doubled = np.column_stack([GIVEN, GIVEN[:, 0] + GIVEN[:, 1], np.ones(len(GIVEN))])
    error = partial(["linreg"], doubled).matrix("linreg").values - GOLDEN["given_linreg"]
    assert np.nanmax(np.abs(error)) <= 1e-9


def test_what_is_given_whole_is_dead():
    z = np.column_stack([INPUTS["a"][:, :3], GIVEN])
    result = partial(["maxcorr", "linreg"], z)
    assert result.dataset["dead_neurons"].loc["a/0"] == 3


def test_float32():
    single = partial(list(IN_GOLDEN), stats_dtype="float32")
    for name in IN_GOLDEN:
        error = np.abs(single.matrix(name).values - GOLDEN[f"given_{name}"])
        assert np.nanmax(error) <= 2e-6, name


@pytest.mark.parametrize(
    "measures, given, says",
    [
        (["lincka"], ["y"], "no representation y/0"),
        (["lincka"], "z", "a list"),
        (["rsa"], ["z"], "rsa has no partial score"),
        (["lincka_debiased"], ["z"], "lincka_debiased has no partial score"),
        (["lincka"], ["a", "b", "c", "z"], "not all"),
    ],
)
def test_refused_in_one_line(measures, given, says):
    with pytest.raises(UserError, match=says):
        ss.compare_activations(INPUTS | {"z": GIVEN}, measures, given=given)


def test_the_part_between_classes_is_that_of_their_means():
    """Each row replaced by the mean of its class."""
    label = GOLDEN["label"]
    means = {
        name: np.array([x[label == k].mean(axis=0) for k in label]) for name, x in INPUTS.items()
    }
    measures = ["lincka", "maxcorr", "linreg"]
    found = ss.compare_activations(
        INPUTS, measures, labels={"class": label}, given=["class"], given_part="explained"
    )
    expected = ss.compare_activations(means, measures, rank_tolerance=1e-9)
    for name in measures:
        np.testing.assert_allclose(
            found.matrix(name).values, expected.matrix(name).values, atol=1e-9, err_msg=name
        )
    within = ss.compare_activations(INPUTS, ["lincka"], labels={"class": label}, given=["class"])
    assert not np.allclose(within.matrix("lincka"), found.matrix("lincka"), atol=0.05)


def test_explained_parts_have_no_errors_and_need_what_explains():
    groups = GOLDEN["group"]
    found = ss.compare_activations(
        INPUTS | {"z": GIVEN}, ["lincka"], given=["z"], given_part="explained", errors=True,
        groups=groups,
    )  # fmt: skip
    assert "lincka_se" not in found.dataset
    with pytest.raises(UserError, match="needs given"):
        ss.compare_activations(INPUTS, ["lincka"], given_part="explained")
    with pytest.raises(UserError, match="has no standard errors"):
        ss.compare_activations(
            INPUTS | {"z": GIVEN}, ["lincka"], given=["z"], given_part="explained", errors=True,
            groups=groups, errors_source="reading",
        )  # fmt: skip


def test_what_is_given_may_be_constant_in_a_fold():
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1], 200)
    z = np.where(fold[:, None] == 0, rng.standard_normal((400, 1)), 3.0)
    arrays = {name: rng.standard_normal((400, 4)) + z for name in "ab"} | {"z": z}
    for part in ("rest", "explained"):
        found = ss.compare_activations(
            arrays, ["linreg"], given=["z"], given_part=part, heldout=True, folds=fold
        )
        assert np.isfinite(found.matrix("linreg").values).all()
        heldout = found.dataset.get("linreg_heldout")
        assert (heldout is not None and bool(np.isfinite(heldout).all())) == (part == "rest")
