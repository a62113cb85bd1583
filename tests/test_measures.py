"""The measures: golden values, oracles on whole arrays, rankings, and bad data."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax import measures
from speechsim_jax.errors import UserError
from tests import reference

GOLDEN = np.load(Path(__file__).parent / "data" / "measures.npz")
NAMES = [str(name) for name in GOLDEN["networks"]]
GOLDEN_MEASURES = ("maxcorr", "linreg", "lincka", "svcca", "pwcca")


# name in the golden file -> measure; its diagonal is defined for these.
OWN_GOLDEN = {
    "own_debiased_lincka": "lincka_debiased",
    "own_lincka_zscored": "lincka_zscored",
    "own_procrustes_cos": "procrustes",
    "own_mean_cca": "mean_cca",
}


def golden_inputs() -> dict[tuple[str, int], np.ndarray]:
    """Keys (model, layer) of the golden networks a0, a1, a2, b0, b1."""
    return {(name[0], int(name[1])): GOLDEN[f"x_{name}"] for name in NAMES}


def worst(result: ss.SimilarityResult, name: str) -> float:
    """Largest error against the golden matrix; its diagonal is not defined."""
    return float(np.nanmax(np.abs(result.matrix(name).values - GOLDEN[name])))


def test_golden_in_float64():
    result = ss.compare_activations(golden_inputs(), stats_dtype="float64", rows_per_update=128)
    for name in GOLDEN_MEASURES:
        assert worst(result, name) <= 1e-9, name


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-9), ("float32", 2e-4)])
def test_golden_of_the_variants(dtype, bar):
    names = list(OWN_GOLDEN.values())
    result = ss.compare_activations(golden_inputs(), names, stats_dtype=dtype)
    for key, name in OWN_GOLDEN.items():
        limit = 1e-5 if dtype == "float32" and "lincka" in name else bar
        assert np.nanmax(np.abs(result.matrix(name).values - GOLDEN[key])) <= limit, name


def test_published_values_of_other_libraries():
    """nacloos/similarity-repository, figures/metric_vs_repo.csv: X, Y uniform [30, 25], seed 0.

    Its SVCCA values are of centred neurons that are not z-scored, which is no measure here.
    """
    rng = np.random.RandomState(0)
    x, y = rng.uniform(size=(30, 25)), rng.uniform(size=(30, 25))
    result = ss.compare_activations({"x": x, "y": y}, "all")
    published = {
        "lincka": 0.4893427391,
        "lincka_debiased": 0.0235986986,
        "mean_cca": 0.8901049738,
        "mean_cca2": 0.8583001426,
        "procrustes_distance": 0.7629815799,
        "maxcorr": 0.4219492238,
    }
    for name, value in published.items():
        assert result.matrix(name).values[0, 1] == pytest.approx(value, abs=1e-9), name
    assert result.matrix("maxcorr").values[1, 0] == pytest.approx(0.4231431993, abs=1e-9)
    r = result.matrix("linreg").values
    assert sorted([r[0, 1], r[1, 0]]) == pytest.approx([0.9279311943, 0.9304012401], abs=1e-9)
    global_r2 = result.matrix("linreg_r2_global").values
    assert min(abs(global_r2[0, 1] - 0.8634248159), abs(global_r2[1, 0] - 0.8634248159)) < 1e-9


def test_floors_are_the_means_over_permutations_of_the_rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)) * [1, 2, 3, 4, 5]
    y = x[:, :4] + rng.standard_normal((60, 4))
    data = {"x": x, **{f"y{k}": y[rng.permutation(60)] for k in range(60)}}
    names = ["lincka", "linreg_r2", "linreg", "svcca"]
    result = ss.compare_activations(data, names)
    rho = result.dataset["svcca_rho"].values[0, 1:]
    means = {
        "lincka_floor": result.matrix("lincka").values[0, 1:],
        "linreg_r2_floor": result.matrix("linreg_r2").values[0, 1:],
        "svcca_rho2_floor": np.nanmean(np.square(rho), axis=1),
    }
    for name, values in means.items():
        floor = result.dataset[name].values[0, 1:]
        assert np.ptp(floor) < 1e-12
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - floor[0]) < 4 * error, name
        assert error < 0.15 * floor[0]


def test_outlier_share():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 200))
    x[:, [3, 77]] *= 20
    share = ss.compare_activations({"x": x}, "lincka").dataset["outlier_share"].values
    expected = np.sort(x.var(0))[-2:].sum() / x.var(0).sum()
    assert share[0] == pytest.approx(expected, rel=1e-9)
    assert share[0] > 0.7


def test_privileged_basis_is_told_from_a_shared_subspace():
    """The same neurons, permuted: maxcorr 1. The same subspace, rotated: maxcorr = rotcorr."""
    rng = np.random.default_rng(0)
    x = rng.laplace(size=(4000, 24)) @ np.diag(rng.uniform(0.5, 3, 24))
    mixed = x @ np.linalg.qr(rng.standard_normal((24, 24)))[0]
    data = {"x": x, "permuted": -x[:, rng.permutation(24)], "rotated": mixed}
    result = ss.compare_activations(data, ["maxcorr", "rotcorr", "matchcorr", "mean_cca"])
    scores = {name: result.matrix(name).values[0] for name in result.measures}
    spread = result.dataset["rotcorr_spread"].values[0]
    assert scores["mean_cca"] == pytest.approx([1, 1, 1], abs=1e-9)
    assert scores["maxcorr"][1] == pytest.approx(1, abs=1e-9)
    assert scores["matchcorr"][1] == pytest.approx(1, abs=1e-9)
    assert scores["rotcorr"][1] < 0.7
    assert abs(scores["maxcorr"][2] - scores["rotcorr"][2]) < 0.1
    assert np.all((spread > 0) & (spread < 0.1))


@pytest.mark.parametrize("size", [37, 900])
def test_golden_through_float32(size):
    result = ss.compare_activations(golden_inputs(), stats_dtype="float32", rows_per_update=size)
    for name in GOLDEN_MEASURES:
        assert worst(result, name) <= (1e-5 if name in ("maxcorr", "lincka") else 2e-4), name


def test_oracles_on_whole_arrays():
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((400, 5))
    x = shared @ rng.standard_normal((5, 9)) + 0.5 * rng.standard_normal((400, 9)) + 4
    y = shared @ rng.standard_normal((5, 7)) * 3 + rng.standard_normal((400, 7)) * rng.random(7)
    result = ss.compare_activations({"x": x, "y": y})
    for name, oracle in reference.MEASURES.items():
        matrix = result.matrix(name).values
        assert matrix[0, 1] == pytest.approx(oracle(x, y), abs=1e-10), name
        assert matrix[1, 0] == pytest.approx(oracle(y, x), abs=1e-10), name
        assert matrix[0, 0] == pytest.approx(1, abs=1e-9), name


def test_svcca_ge_takes_one_direction_more():
    rng = np.random.RandomState(0)
    x, y = rng.uniform(size=(30, 25)), rng.uniform(size=(30, 25))
    result = ss.compare_activations({"x": x, "y": y}, ["svcca", "svcca_ge"])
    assert result.dataset["svcca_directions"].values.tolist() == [20, 20]
    left, right = (np.linalg.svd(reference.zscore(a))[0][:, :21] for a in (x, y))
    expected = np.linalg.svd(left.T @ right, compute_uv=False).mean()
    assert result.matrix("svcca_ge").values[0, 1] == pytest.approx(expected, abs=1e-10)


def test_winners_are_the_best_neurons():
    x, y = GOLDEN["x_a0"], GOLDEN["x_b0"]
    result = ss.compare_activations({"x": x, "y": y}, measures=["maxcorr"])
    for (a, b), (i, j) in {(0, 1): ("x", "y"), (1, 0): ("y", "x")}.items():
        left, right = {"x": x, "y": y}[i], {"x": x, "y": y}[j]
        corr = np.abs(reference.correlations(left, right))
        match = result.dataset["best_match"].values[a, b]
        best = result.dataset["best_corr"].values[a, b]
        np.testing.assert_array_equal(match[: len(corr)], corr.argmax(1))
        np.testing.assert_allclose(best[: len(corr)], corr.max(1), atol=1e-6)
        assert np.all(match[len(corr) :] == -1)
        assert np.all(np.isnan(best[len(corr) :]))


def test_rankings_against_a_written_out_loop():
    rng = np.random.default_rng(5)
    shared = rng.standard_normal((300, 4))
    data = {
        (model, layer): shared @ rng.standard_normal((4, width)) + rng.standard_normal((300, width))
        for model, width in (("a", 5), ("b", 6), ("c", 5))
        for layer in range(2)
    }
    result = ss.compare_activations(data, measures=["mincorr"])
    assert result.measures == ("maxcorr",)
    for row, ((model, _), x) in enumerate(data.items()):
        for name, choose in (("mincorr", min),):
            scores = []
            for i in range(x.shape[1]):
                best = {}
                for (other, _), y in data.items():
                    if other == model:
                        continue
                    for j in range(y.shape[1]):
                        r = abs(np.corrcoef(x[:, i], y[:, j])[0, 1])
                        best[other] = max(best.get(other, 0), r)
                scores.append(choose(best.values()))
            got = result.dataset[f"{name}_neuron"].values[row][: len(scores)]
            np.testing.assert_allclose(got, scores, atol=1e-6)
            order = result.dataset[f"{name}_order"].values[row]
            expected = sorted(range(len(scores)), key=lambda i: -scores[i])
            assert order[order >= 0].tolist() == expected


def test_both_rankings_come_with_the_paper_measures():
    result = ss.compare_activations({"a": GOLDEN["x_a0"], "b": GOLDEN["x_b0"]})
    smallest = result.dataset["mincorr_neuron"].values
    largest = result.dataset["maxcorr_neuron"].values
    np.testing.assert_array_equal(smallest, largest)  # one other model: min and max agree
    assert result.measures == GOLDEN_MEASURES


def test_one_model_has_no_ranking():
    result = ss.compare_activations({("a", 0): GOLDEN["x_a0"], ("a", 1): GOLDEN["x_a1"]})
    assert "mincorr_neuron" not in result.dataset


def test_post_norm_layers_are_singular_and_do_no_harm():
    """A real post-norm layer: its neurons satisfy one linear equation exactly.

    Without a cut, float32 moments turn the null direction into canonical correlations above 1.
    """
    folder = Path(__file__).parent / "data" / "parity"
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(24_000)).astype(np.float32) for _ in range(12)]
    data = {}
    for name in ("wav2vec2-base", "hubert-base"):
        acts = ss.load_encoder(folder / name)(waves)
        states = np.asarray(acts.hidden_states)
        for layer in (0, 3):
            data[(name, layer)] = states[layer].reshape(-1, states.shape[-1])
    ranks = []
    for size in (2, 7, 50, 64, 100, 128, 333, 500, 1000, 4096):
        result = ss.compare_activations(data, stats_dtype="float32", rows_per_update=size)
        ranks.append(result.dataset["rank"].values.tolist())
        for name in GOLDEN_MEASURES:
            assert result.matrix(name).values.max() <= 1 + 1e-6, (name, size)
        assert np.nanmax(result.dataset["svcca_rho"].values) <= 1 + 1e-6
    assert ranks == [[31] * 4] * 10


def test_dead_neurons_have_defined_outcomes():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 6)), rng.standard_normal((200, 5))
    y[:, 0] = x[:, 0] + 0.1 * y[:, 0]
    dead = x.copy()
    dead[:, 3] = 7.25
    full = ss.compare_activations({"x": x, "y": y})
    result = ss.compare_activations({"x": dead, "y": y})
    assert result.dataset["dead_neurons"].values.tolist() == [1, 0]
    best = result.dataset["best_corr"].values[0, 1]
    assert best[3] == 0
    assert result.dataset["best_match"].values[0, 1, 3] == -1
    # counted as 0 by maxcorr, left out of linreg's mean
    others = np.delete(full.dataset["best_corr"].values[0, 1], 3)
    assert result.matrix("maxcorr").values[0, 1] == pytest.approx(others.sum() / 6, abs=1e-6)
    kept = np.delete(x, 3, 1)
    expected = reference.linreg(kept, y)
    assert result.matrix("linreg").values[0, 1] == pytest.approx(expected, abs=1e-10)
    assert result.matrix("svcca").values[0, 1] == pytest.approx(reference.svcca(kept, y), abs=1e-10)


def test_a_network_without_variance_gives_nan_not_a_warning():
    rng = np.random.default_rng(0)
    data = {"x": np.full((50, 4), 3.0), "y": rng.standard_normal((50, 3))}
    result = ss.compare_activations(data)
    for name in ("linreg", "lincka", "svcca", "pwcca"):
        assert np.isnan(result.matrix(name).values[0, 1]), name
    assert result.matrix("maxcorr").values[0, 1] == 0
    assert result.matrix("linreg").values[1, 0] == 0  # nothing of y is accounted for


def test_one_dominating_component_keeps_one_direction():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((300, 1))
    x = common + 0.01 * rng.standard_normal((300, 8))
    y = common + 0.01 * rng.standard_normal((300, 6))
    result = ss.compare_activations({"x": x, "y": y})
    assert result.dataset["svcca_directions"].values.tolist() == [1, 1]
    assert result.matrix("svcca").values[0, 1] == pytest.approx(reference.svcca(x, y), abs=1e-10)


def test_fewer_rows_than_neurons_report_their_rank():
    rng = np.random.default_rng(0)
    result = ss.compare_activations(
        {"x": rng.standard_normal((20, 64)), "y": rng.standard_normal((20, 64))}
    )
    assert result.dataset["rank"].values.tolist() == [19, 19]
    assert result.matrix("linreg").values[0, 1] == pytest.approx(1, abs=1e-9)


def test_resolve():
    chosen, rankings = measures.resolve("paper")
    assert tuple(m.name for m in chosen) == GOLDEN_MEASURES
    assert {r.name for r in rankings} == {"maxcorr", "mincorr"}
    assert {m.name for m in measures.resolve("all")[0]} == set(measures.MEASURES)
    assert [m.name for m in measures.resolve("lincka,svcca")[0]] == ["lincka", "svcca"]
    assert [m.name for m in measures.resolve("paper", ["neuron"])[0]] == ["maxcorr"]
    with pytest.raises(UserError, match="unknown measure 'cka'"):
        measures.resolve("cka")
    with pytest.raises(UserError, match="unknown level 'heads'"):
        measures.resolve("paper", ["heads"])


def test_list_measures_names_each_once():
    names = [entry.name for entry in ss.list_measures()]
    assert len(names) == len(set(names))
    assert set(measures.PAPER) <= set(names)
    for entry in ss.list_measures():
        assert entry.summary
        assert entry.reference


def test_scores_do_not_depend_on_jax_precision_flags():
    assert jnp.zeros(1).dtype == jnp.float32  # x64 is never switched on globally
    ss.compare_activations(golden_inputs(), measures="lincka", stats_dtype="float64")
    assert jnp.zeros(1).dtype == jnp.float32
