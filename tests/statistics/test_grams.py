"""Norms of cross moments from Gram matrices, against the cross moments themselves."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison import few_rows
from speechsim_jax.errors import UserError
from speechsim_jax.statistics import grams
from speechsim_jax.statistics.grams import FinishedGrams, fewer_products

MEASURES = ["lincka", "lincka_debiased"]


def representations(rows: int = 60, dtype: str = "float64") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows, 3))
    return {
        f"{name}/{layer}": (
            shared @ rng.standard_normal((3, width)) + rng.standard_normal((rows, width)) + 100
        ).astype(dtype)
        for name, width in (("a", 70), ("b", 80))
        for layer in range(3)
    }


def in_chunks(data: dict[str, np.ndarray], size: int = 25) -> dict[str, list[np.ndarray]]:
    """The same rows one after the other, of which moments are accumulated."""
    return {k: [x[i : i + size] for i in range(0, len(x), size)] for k, x in data.items()}


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """The numbers of rows that Gram matrices were made of."""
    rows, plain = [], few_rows.FinishedGrams

    def counting(of, tolerance):
        rows.append(len(of[0]))
        return plain(of, tolerance)

    monkeypatch.setattr(few_rows, "FinishedGrams", counting)
    return rows


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-12), ("float32", 2e-6)])
def test_norms_are_those_of_cross_moments(monkeypatch, block, dtype, bar):
    data = list(representations().values())
    monkeypatch.setattr(grams, "_BLOCK_BYTES", block * len(data) * 60 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(grams, "_CELLS", 50)
    finished = FinishedGrams([x.astype(dtype) for x in data])
    centred = [x - x.mean(axis=0) for x in data]
    for x, of_x in zip(centred, finished.representations):
        np.testing.assert_allclose(of_x.std, x.std(axis=0), rtol=1e-5)
        np.testing.assert_allclose(of_x.scatter(), x.T @ x, atol=1e-4 * 60)
        for y, of_y in zip(centred, finished.representations):
            expected = np.square(x.T @ y).sum()
            assert finished.squared_norm(of_x, of_y) == pytest.approx(expected, rel=bar)


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-12), ("float32", 3e-6)])
def test_scores_are_those_of_accumulated_moments(used, dtype, bar):
    data = representations(dtype=dtype)
    data["a/1"][:, 5] = 3.0  # constant
    expected = ss.compare_activations(in_chunks(data), MEASURES, stats_dtype="float64")
    assert not used
    found = ss.compare_activations(data, MEASURES)
    assert used == [60]
    assert found.attributes["numeric"]["stats_dtype"] == dtype
    for name in [*MEASURES, "lincka_floor"]:
        np.testing.assert_allclose(
            found.dataset[name].values, expected.dataset[name].values, atol=bar, err_msg=name
        )
    for fact in ("width", "dead_neurons", "outlier_share"):
        np.testing.assert_allclose(found.dataset[fact], expected.dataset[fact], rtol=1e-5)
    assert found.dataset["dead_neurons"].values.tolist() == [0, 1, 0, 0, 0, 0]
    assert "rank" not in found.dataset


@pytest.mark.parametrize("offset", ["first row", "mean", "last row"])
def test_rows_far_from_others_and_means_cost_no_digits(offset):
    rows = representations(dtype="float32")
    for x in rows.values():
        x[{"first row": slice(1), "mean": slice(None), "last row": slice(-1, None)}[offset]] += 1000
    finished = FinishedGrams([x.copy() for x in rows.values()])
    for x, of_x in zip(rows.values(), finished.representations):
        exact = x.astype(np.float64)
        exact -= exact.mean(axis=0)
        norm = np.linalg.norm(exact @ exact.T)
        assert of_x.scatter_norm == pytest.approx(norm, rel=1e-6)
        np.testing.assert_allclose(of_x.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_rows_that_have_little_to_say():
    """Constant representations, and fewer rows than the unbiased estimator takes."""
    data = representations()
    data["b/0"][:] = 0.1
    result = ss.compare_activations(data, MEASURES)
    assert np.isnan(result.matrix("lincka").loc["b/0"]).all()
    few = {name: x[:3] for name, x in representations().items()}
    result = ss.compare_activations(few, MEASURES)
    assert np.isnan(result.matrix("lincka_debiased")).all()
    assert np.isfinite(result.matrix("lincka")).all()


@pytest.mark.parametrize(
    ("measures", "settings"),
    [
        (["lincka", "maxcorr"], {}),
        (["lincka"], {"errors": True, "groups": np.arange(60) // 3}),
        (["lincka"], {"labels": {"phone": ["a", "b"] * 30}}),
        (["lincka"], {"given": ["b/0"]}),
    ],
)
def test_what_reads_more_has_moments(used, measures, settings):
    ss.compare_activations(representations(), measures, **settings)
    assert not used


def test_what_does_not_fit_has_moments(used, monkeypatch):
    monkeypatch.setattr(few_rows, "_MOST_BYTES", 60 * 450 * 8 - 1)
    ss.compare_activations(representations(), MEASURES)
    assert not used


def test_mistakes_are_named(used):
    data = representations()
    data["b/1"] = data["b/1"][:50]
    with pytest.raises(UserError, match="differ in rows"):
        ss.compare_activations(data, MEASURES)
    data = representations()
    data["b/1"][41, 2] = np.nan
    with pytest.raises(UserError, match="NaN or inf in row 41"):
        ss.compare_activations(data, MEASURES)
    with pytest.raises(UserError, match="utterances names 2 rows"):
        ss.compare_activations(representations(), MEASURES, utterances=["a", "b"])
    assert used == [60]


def test_few_rows_of_many_neurons_take_fewer_products():
    assert fewer_products(2000, [768] * 26)
    assert not fewer_products(32_000, [768] * 26)
    assert not fewer_products(1000, [10, 10])
