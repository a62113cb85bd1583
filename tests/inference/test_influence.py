"""Influences are derivatives of scores; standard errors and contrasts against golden jackknives."""

import numpy as np
import pytest
from scipy.stats import norm

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference.influence_rows import RepresentationRows
from speechsim_jax.measures import MEASURES
from speechsim_jax.measures.base import PairRows, RepresentationPair
from speechsim_jax.results import influence_file, netcdf
from speechsim_jax.statistics.moments_finished import FinishedMoments
from tests.support.paths import DATA
from tests.support.rows import moments_of

GOLDEN = np.load(DATA / "inference.npz")
INPUTS = {name: GOLDEN[f"x_{name}"] for name in "abc"}
JACKKNIFED = ("lincka", "maxcorr", "linreg", "linreg_r2", "mean_cca", "svcca", "procrustes")
# The score, and not only the sums, of the debiased one depends on the number of rows.
WITH_INFLUENCE = [
    name
    for name, measure in MEASURES.items()
    if measure.influence is not None
    and measure.statistic == "moments"
    and name != "lincka_debiased"
]
COPIES = 4000


def representations() -> list[np.ndarray]:
    """Two with four directions in common; the cut at 99 % leaves some out; y has a dead neuron."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((120, 4))
    x, y = (
        shared @ rng.standard_normal((4, width))
        + rng.standard_normal((120, width)) * np.geomspace(1, 0.05, width)
        for width in (9, 8)
    )
    y[:, 3] = 1.5
    return [x * rng.uniform(0.7, 1.5, 9), y * rng.uniform(0.7, 1.5, 8) + 2]


@pytest.fixture(scope="module")
def base() -> FinishedMoments:
    return moments_of(representations(), 1e-12)


@pytest.fixture(scope="module", params=[3, 77])
def moved(request) -> tuple[int, FinishedMoments]:
    """A row, and the moments of many copies of all rows and one more of this."""
    row = request.param
    arrays = [
        np.concatenate([np.tile(x, (COPIES, 1)), x[row : row + 1]]) for x in representations()
    ]
    return row, moments_of(arrays, 1e-12)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["xy", "yx"])
@pytest.mark.parametrize("name", WITH_INFLUENCE)
def test_an_influence_is_the_derivative(name, order, base, moved):
    """(s(copies + the row) - s(copies)) / its share, of first order in the share."""
    measure, (row, more) = MEASURES[name], moved
    reps, arrays = base.representations, representations()
    pair = RepresentationPair(base, *(reps[k] for k in order))
    rows = PairRows(*(RepresentationRows(reps[k], arrays[k]) for k in order))
    influence = measure.influence(pair, rows)
    after = RepresentationPair(more, *(more.representations[k] for k in order))
    share = 1 / (COPIES * 120 + 1)
    difference = (measure.function(after) - measure.function(pair)) / share
    assert influence[row] == pytest.approx(difference, abs=2e-3 * np.abs(influence).max())
    assert abs(influence.mean()) <= 1e-10 * np.abs(influence).max()


def test_the_debiased_cka_has_nearly_the_influence_of_the_biased_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6000, 5)) * np.arange(1, 6)
    y = x @ rng.standard_normal((5, 4)) + 3 * rng.standard_normal((6000, 4))
    moments = moments_of([x, y], 1e-12)
    reps = moments.representations
    pair = RepresentationPair(moments, *reps)
    rows = PairRows(RepresentationRows(reps[0], x), RepresentationRows(reps[1], y))
    one, two = (MEASURES[name].influence(pair, rows) for name in ("lincka", "lincka_debiased"))
    np.testing.assert_allclose(two, one, atol=0.01 * np.abs(one).max())


@pytest.fixture(scope="module")
def result() -> ss.SimilarityResult:
    """All rows of the golden inputs."""
    return ss.compare_activations(
        INPUTS, list(JACKKNIFED), errors=True, groups=GOLDEN["group"], rows_per_update=500
    )


@pytest.mark.parametrize("name", JACKKNIFED)
def test_golden_jackknives(name, result):
    """Delete-one-cluster jackknives, which differ from infinitesimal ones by terms of 1 / C."""
    bar = 0.15 if name == "svcca" else 0.10
    golden = GOLDEN[f"se_{name}"]
    off_diagonal = ~np.eye(3, dtype=bool)
    errors = result.standard_error(name).values
    np.testing.assert_allclose(errors[off_diagonal], golden[off_diagonal], rtol=bar)
    assert (errors[~off_diagonal] == 0).all()
    contrast = result.contrast(name, ("a/0", "b/0"), ("a/0", "c/0"))
    assert contrast.standard_error == pytest.approx(float(GOLDEN[f"se_contrast_{name}"]), rel=bar)
    scores = result.matrix(name)
    expected = float(scores.loc["a/0", "b/0"] - scores.loc["a/0", "c/0"])
    assert contrast.difference == pytest.approx(expected, abs=1e-12)


def test_float32_has_the_same_errors(result):
    single = ss.compare_activations(
        INPUTS, list(JACKKNIFED), errors=True, groups=GOLDEN["group"], stats_dtype="float32"
    )
    for name in JACKKNIFED:
        np.testing.assert_allclose(
            single.standard_error(name).values, result.standard_error(name).values, rtol=1e-4,
            atol=1e-9, err_msg=name,
        )  # fmt: skip


def test_neither_blocks_nor_order_of_rows_change_errors(result):
    shuffled = np.random.default_rng(0).permutation(len(GOLDEN["group"]))
    again = ss.compare_activations(
        {name: [x[shuffled][:1700], x[shuffled][1700:]] for name, x in INPUTS.items()},
        list(JACKKNIFED), errors=True, groups=GOLDEN["group"][shuffled], rows_per_update=333,
    )  # fmt: skip
    for name in JACKKNIFED:
        np.testing.assert_allclose(
            again.standard_error(name).values, result.standard_error(name).values, rtol=1e-8,
            atol=1e-12,
        )  # fmt: skip


def test_a_sample_of_rows_gives_about_the_same(result):
    few = ss.compare_activations(
        INPUTS, list(JACKKNIFED), errors=True, groups=GOLDEN["group"], errors_rows=1500,
        errors_source="sample",
    )  # fmt: skip
    assert few.attributes["errors"]["rows"] < 1700
    for name in JACKKNIFED:
        errors, all_rows = few.standard_error(name).values, result.standard_error(name).values
        stated = few.dataset[f"{name}_se_error"].values
        used = all_rows > 0
        off = np.abs(errors[used] / all_rows[used] - 1)
        assert (off <= 4 * stated[used] + 0.02).all() and stated[used].max() < 0.25, name


def test_weighted_sums_and_intervals(result):
    name = "maxcorr"
    scores, errors = result.matrix(name), result.standard_error(name)
    low, high = result.interval(name).sel(x="a/0", y="b/0").values
    half = 2.0009953781 * float(errors.loc["a/0", "b/0"])  # t of 59 degrees of freedom
    assert high - low == pytest.approx(2 * half)
    cells = [("a/0", "b/0"), ("b/0", "a/0")]
    mean = result.contrast(name, cells)
    weights = scores * 0
    for cell in cells:
        weights.loc[cell] = 0.5
    assert result.contrast(name, weights=weights) == mean
    assert mean.difference == pytest.approx(float(scores.loc[cells[0]] + scores.loc[cells[1]]) / 2)
    one = result.contrast(name, cells[0])
    assert one.standard_error == pytest.approx(float(errors.loc[cells[0]]), rel=1e-6)
    assert one.interval()[0] == pytest.approx(low, abs=1e-6)
    for wrong in ({"cells": ("a/0", "d/0")}, {}, {"cells": cells, "weights": weights}):
        with pytest.raises(UserError):
            result.contrast(name, **wrong)


def test_contrasts_survive_saving_and_selecting(result, tmp_path):
    cells = ("a/0", "b/0"), ("b/0", "a/0")
    contrast = result.contrast("linreg", *cells)
    loaded = ss.SimilarityResult.load(result.save(tmp_path / "r.nc"))
    assert loaded.contrast("linreg", *cells) == contrast
    assert loaded.select(["b", "a"]).contrast("linreg", *cells) == contrast
    np.testing.assert_array_equal(
        loaded.matrix("linreg_se").values, result.matrix("linreg_se").values
    )
    (tmp_path / "r.influence.nc").unlink()
    with pytest.raises(UserError, match="keep_influence"):
        ss.SimilarityResult.load(tmp_path / "r.nc").contrast("linreg", *cells)


def _fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["netcdf.write", "influence_file.write", "influence_file.settle"])
def test_a_full_disk_leaves_a_result_with_its_own_influences(where, result, tmp_path, monkeypatch):
    """The old pair, or the new result with the new influences under their first name."""
    cells = ("a/0", "b/0"), ("a/0", "c/0")
    older = ss.compare_activations(
        INPUTS, ["lincka"], errors=True, groups=GOLDEN["group"], errors_rows=900,
        errors_source="sample",
    )  # fmt: skip
    path = older.save(tmp_path / "r.nc")
    module, name = where.split(".")
    target = {"netcdf": netcdf, "influence_file": influence_file}[module]
    kept = getattr(target, name)
    calls = []

    def write(*arguments: object) -> object:
        calls.append(arguments)
        # Influences are written by the same function before the result.
        return kept(*arguments) if where == "netcdf.write" and len(calls) == 1 else _fails()

    with monkeypatch.context() as patched:
        patched.setattr(target, name, write)
        with pytest.raises(UserError, match="No space"):
            result.save(path)
    loaded = ss.SimilarityResult.load(path)
    there = result if where.endswith("settle") else older
    assert loaded.contrast("lincka", *cells) == there.contrast("lincka", *cells)
    assert ss.SimilarityResult.load(result.save(path)).contrast("lincka", *cells) == (
        result.contrast("lincka", *cells)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.influence.nc", "r.nc"]


def test_influences_of_another_result_are_refused(result, tmp_path):
    result.save(tmp_path / "r.nc")
    other = ss.compare_activations(INPUTS, ["lincka"], errors=True, groups=GOLDEN["group"])
    other.save(tmp_path / "other.nc")
    (tmp_path / "other.influence.nc").replace(tmp_path / "r.influence.nc")
    with pytest.raises(UserError, match="another result"):
        ss.SimilarityResult.load(tmp_path / "r.nc").contrast("lincka", ("a/0", "b/0"))
    # A result without influences leaves no old ones behind.
    ss.compare_activations(INPUTS, ["lincka"]).save(tmp_path / "other.nc")
    result.save(tmp_path / "r.nc")
    ss.compare_activations(INPUTS, ["lincka"]).save(tmp_path / "r.nc")
    assert not (tmp_path / "r.influence.nc").exists()


@pytest.mark.parametrize("keep", ["clusters", "none"])
def test_what_is_kept_of_influences(keep, tmp_path):
    sampled = {"errors_rows": 1500, "errors_source": "sample"}
    result = ss.compare_activations(
        INPUTS, ["lincka"], errors=True, groups=GOLDEN["group"], **sampled
    )
    kept = ss.compare_activations(
        INPUTS, ["lincka"], errors=True, groups=GOLDEN["group"], keep_influence=keep, **sampled
    )
    np.testing.assert_allclose(kept.matrix("lincka_se"), result.matrix("lincka_se"), rtol=1e-12)
    with pytest.raises(UserError, match="rows"):
        kept.contrast("lincka", ("a/0", "b/0"), ("a/0", "c/0"))
    loaded = ss.SimilarityResult.load(kept.save(tmp_path / "r.nc"))
    if keep == "none":
        assert loaded.influence is None
        return
    np.testing.assert_allclose(
        loaded.influence.cluster_sums("lincka"), result.influence.cluster_sums("lincka"), atol=1e-8
    )


def test_the_closest_layer_and_how_sure():
    """Of layers that are equally close, each is the closest about as often; a far one never."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 50)
    speaker = rng.standard_normal((60, 6))[groups]
    x = speaker + rng.standard_normal((3000, 6))
    layers = {
        f"y/{k}": x
        + scale * (rng.standard_normal((60, 6))[groups] + rng.standard_normal((3000, 6)))
        for k, scale in enumerate((4.0, 1.0, 1.0))
    }
    result = ss.compare_activations({"x/5": x} | layers, ["lincka"], errors=True, groups=groups)
    shares = result.closest("lincka", "x/5", "y")
    assert shares.sum() == 1 and shares[0] == 0 and 0.02 < shares[1] < 0.98
    difference = result.contrast("lincka", ("x/5", "y/1"), ("x/5", "y/2"))
    z = difference.difference / difference.standard_error
    assert float(shares[1]) == pytest.approx(norm.cdf(z), abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "groups"),
        ({"groups": GOLDEN["group"][:-1]}, "groups"),
        ({"groups": np.r_[GOLDEN["group"], 3]}, "groups"),
        ({"groups": np.zeros(len(GOLDEN["group"]))}, "two groups"),
        ({"groups": GOLDEN["group"][:, None]}, "one name a row"),
    ],
)
def test_wrong_groups_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        ss.compare_activations(INPUTS, ["lincka"], errors=True, **arguments)


def test_without_errors_it_says_why():
    result = ss.compare_activations(INPUTS, ["lincka", "pwcca"])
    with pytest.raises(UserError, match="not asked for"):
        result.standard_error("lincka")
    asked = ss.compare_activations(INPUTS, ["lincka", "pwcca"], errors=True, groups=GOLDEN["group"])
    with pytest.raises(UserError, match="pwcca"):
        asked.standard_error("pwcca")


def test_utterances_are_the_groups_by_default(result):
    names = GOLDEN["group"].astype(str)
    by_utterance = ss.compare_activations(INPUTS, ["lincka"], errors=True, utterances=names)
    errors = by_utterance.matrix("lincka_se")
    np.testing.assert_allclose(errors, result.matrix("lincka_se"), rtol=1e-12)


@pytest.mark.parametrize("missing", [np.nan, None, ""])
def test_rows_without_a_group_are_not_a_group(missing):
    names = GOLDEN["group"].astype(float if missing is np.nan else object)
    names = names if missing is np.nan else np.array([str(n) for n in names], object)
    names[5] = missing
    for arguments in ({"errors": True, "groups": names}, {"heldout": True, "groups": names}):
        with pytest.raises(UserError, match="row 5 has none"):
            ss.compare_activations(INPUTS, ["lincka"], **arguments)
    folds = np.array(GOLDEN["fold"], object)
    folds[7] = missing
    with pytest.raises(UserError, match="row 7 has none"):
        ss.compare_activations(INPUTS, ["linreg"], folds=folds)


def test_groups_in_both_folds_are_said(caplog):
    fold = np.arange(len(GOLDEN["group"])) % 2
    ss.compare_activations(INPUTS, ["linreg"], folds=fold, errors=True, groups=GOLDEN["group"])
    assert "both folds" in caplog.text


def test_weights_are_placed_by_their_labels(result):
    matrix = result.matrix("lincka")
    weights = 0 * matrix
    weights.loc["a/0", "b/0"], weights.loc["a/0", "c/0"] = 1, -1
    expected = result.contrast("lincka", ("a/0", "b/0"), ("a/0", "c/0"))
    assert result.contrast("lincka", weights=weights[::-1]) == expected
    assert result.contrast("lincka", weights=weights.transpose("y", "x")) == expected
    assert result.contrast("lincka", weights=weights.sel(x=["a/0"])) == expected
    mistakes = (
        weights.assign_coords(y=["a/0", "b/0", "C/0"]),
        weights.where(weights != 0),
        weights.reset_coords(drop=True).drop_vars(["x", "y"]),
        weights.rename(x="left"),
    )
    for mistake in mistakes:
        with pytest.raises(UserError):
            result.contrast("lincka", weights=mistake)


@pytest.mark.parametrize(
    "cells", [("a/0", "b/0", "c/0"), "a/0", [("a/0", "b/0"), "c/0"], [("a/0",)], []]
)
def test_cells_that_are_none(cells, result):
    with pytest.raises(UserError):
        result.contrast("lincka", cells)


def test_levels_that_are_none(result):
    for interval in (lambda x: result.interval("lincka", x), result.contrast(
        "lincka", ("a/0", "b/0")).interval):  # fmt: skip
        for level in (95, 0, 1, True):
            with pytest.raises(UserError, match="between 0 and 1"):
                interval(level)


def test_errors_that_are_hardly_known_are_none_and_said(caplog):
    """Long clusters without effects of their own, and few of their rows."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 2000)
    x, y = rng.standard_normal((2, len(groups), 4))
    result = ss.compare_activations(
        {"x": x, "y": x + y}, ["lincka"], errors=True, groups=groups, errors_rows=400,
        errors_source="sample",
    )  # fmt: skip
    errors = result.standard_error("lincka").values[0, 1]
    relative = result.dataset["lincka_se_error"].values[0, 1]
    assert relative > 0.5 and np.isnan(errors) and "not known" in caplog.text


def test_the_closest_of_what_has_a_score():
    """Neither the representation itself nor a constant one."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 20)
    x = rng.standard_normal((240, 4))
    layers = {"m/0": x, "m/1": x + rng.standard_normal((240, 4)), "m/2": np.ones((240, 4))}
    result = ss.compare_activations(layers, ["lincka"], errors=True, groups=groups)
    shares = result.closest("lincka", "m/0", "m")
    assert shares["y"].values.tolist() == ["m/1"] and shares.values.tolist() == [1.0]
    for x_, model in (("m/2", "m"), ("m/0", "n"), ("n/0", "m")):
        with pytest.raises(UserError):
            result.closest("lincka", x_, model)
