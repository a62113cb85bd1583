"""The measures: golden and published values, oracles on whole arrays, rankings."""

import gc
import itertools
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax import measures
from speechsim_jax.errors import UserError
from speechsim_jax.measures import cca, neuron
from speechsim_jax.measures.base import RepresentationPair
from speechsim_jax.measures.scoring import rank_neurons
from speechsim_jax.statistics import linalg
from tests.support import reference
from tests.support.golden import GOLDEN, GOLDEN_MEASURES, NAMES, golden_inputs
from tests.support.paths import DATA
from tests.support.rows import moments_of

# name in the golden file -> measure; its diagonal is defined for these.
OWN_GOLDEN = {
    "own_debiased_lincka": "lincka_debiased",
    "own_lincka_zscored": "lincka_zscored",
    "own_procrustes_cos": "procrustes",
    "own_mean_cca": "mean_cca",
}


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


# nacloos/similarity-repository, figures/metric_vs_repo.csv: libraries that agree to 1e-9 on X and Y
# uniform [30, 25], seed 0; and the paper's rules on the same data. (x, y), or both orders.
PUBLISHED = {
    "lincka": 0.4893427391,  # 17 libraries
    "lincka_debiased": 0.0235986986,  # 4 libraries
    "mean_cca": 0.8901049738,  # 5 libraries
    "mean_cca2": 0.8583001426,  # 7 libraries
    "svcca_centred_ge": 0.7831814123,  # 5 libraries; 21 directions of centred neurons
    "svcca_centred": 0.7652971925,  # the paper's cut, 20 directions
    "procrustes_distance": 0.7629815799,  # 6 libraries
    "linreg_r2_global": 0.8634248159,  # ReSi, X from Y
    "maxcorr": (0.4219492238, 0.4231431993),  # the paper's rule
    "linreg": (0.9304012401, 0.9279311943),  # the paper's rule: X from Y, Y from X
}


def published_inputs() -> tuple[np.ndarray, np.ndarray]:
    """The generator of similarity-repository's table."""
    rng = np.random.RandomState(0)
    return rng.uniform(size=(30, 25)), rng.uniform(size=(30, 25))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_values_of_other_libraries(name):
    x, y = published_inputs()
    matrix = ss.compare_activations({"x": x, "y": y}, [name]).matrix(name).values
    values = [matrix[0, 1], matrix[1, 0]]
    np.testing.assert_allclose(values[: np.size(PUBLISHED[name])], PUBLISHED[name], atol=6e-10)
    assert measures.MEASURES[name].symmetric == (values[0] == values[1])


def test_published_values_that_follow_from_ours():
    """Six libraries' squared Procrustes distance, and SVCCA with ten directions of five."""
    x, y = published_inputs()
    sizes = [np.linalg.norm(a - a.mean(0)) for a in (x, y)]
    cosine = ss.compare_activations({"x": x, "y": y}, ["procrustes"]).matrix("procrustes").values
    squared = sizes[0] ** 2 + sizes[1] ** 2 - 2 * cosine[0, 1] * sizes[0] * sizes[1]
    assert squared == pytest.approx(34.2356763789, abs=6e-10)
    moments = moments_of([x, y])
    rho = cca.correlations(
        RepresentationPair(moments, *moments.representations), lambda white: 10, cca.centred
    )
    assert rho.mean() == pytest.approx(0.5379744461, abs=6e-10)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_variants_against_whole_arrays():
    rng = np.random.default_rng(4)
    shared = rng.standard_normal((60, 3))
    x = shared @ rng.standard_normal((3, 5)) + rng.standard_normal((60, 5)) * [1, 2, 1, 3, 1] + 4
    y = shared @ rng.standard_normal((3, 4)) + rng.standard_normal((60, 4))
    r = np.abs(reference.correlations(x, y))
    turned = [reference.zscore(y) @ neuron._haar(4, draw).T for draw in range(3)]
    design = np.hstack([np.ones((60, 1)), y])
    residual = x - design @ np.linalg.lstsq(design, x)[0]
    k, l = x @ x.T, y @ y.T
    expected = {
        "matchcorr": max(r[list(p), range(4)].mean() for p in itertools.permutations(range(5), 4)),
        "rotcorr": np.mean([reference.maxcorr(x, z) for z in turned]),
        "linreg_r2": np.mean(1 - residual.var(0) / x.var(0)),
        "linreg_r2_global": 1 - residual.var(0).sum() / x.var(0).sum(),
        "lincka_zscored": reference.lincka(reference.zscore(x), reference.zscore(y)),
        "lincka_debiased": reference.song(k, l)
        / np.sqrt(reference.song(k, k) * reference.song(l, l)),
        "pwcca_zscored": reference.pwcca(reference.zscore(x), y),
    }
    result = ss.compare_activations({"x": x, "y": y}, list(expected))
    for name, value in expected.items():
        assert result.matrix(name).values[0, 1] == pytest.approx(value, abs=1e-11), name


def test_svcca_variants_against_whole_arrays():
    """z-scored or centred neurons, directions below 99 % of the variance or reaching it."""
    x, y = published_inputs()
    scaled = x * np.geomspace(1, 30, 25)
    result = ss.compare_activations(
        {"x": scaled, "y": y}, "svcca,svcca_ge,svcca_centred,svcca_centred_ge"
    )
    for name in result.measures:
        left = []
        for a in (scaled, y):
            u, s, _ = np.linalg.svd(a - a.mean(0) if "centred" in name else reference.zscore(a))
            below = int(np.sum(np.cumsum(s**2) / np.sum(s**2) < 0.99))
            left.append(u[:, : below + name.endswith("_ge")])
        expected = np.linalg.svd(left[0].T @ left[1], compute_uv=False).mean()
        assert result.matrix(name).values[0, 1] == pytest.approx(expected, abs=1e-10), name
    assert len(set(result.dataset[list(result.measures)].isel(x=0, y=1).to_array().values)) == 4


def test_an_svd_that_does_not_converge_is_done_again(monkeypatch):
    """LAPACK's divide and conquer fails on some products within 1e-11 of the identity."""
    names, plain, failed = ["svcca", "pwcca", "svcca_centred"], np.linalg.svd, []
    whole = ss.compare_activations(golden_inputs(), names)

    def fail(matrix, full_matrices=True, compute_uv=True):
        if not compute_uv:
            return plain(matrix, compute_uv=False)
        failed.append(matrix)
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fail)
    monkeypatch.setattr(linalg, "_SMALL", 2.0)  # eigenvectors are never enough
    again = ss.compare_activations(golden_inputs(), names)
    assert len(failed) > len(NAMES)
    for name in names:
        np.testing.assert_allclose(again.matrix(name), whole.matrix(name), atol=1e-12)


def test_swapped_pairs_share_their_matrices_and_are_freed_at_once():
    moments = moments_of(published_inputs())
    pair = RepresentationPair(moments, *moments.representations)
    back = pair.swapped.swapped
    for name in ("scatter", "correlation", "live_correlation"):
        matrix = getattr(pair, name)
        assert np.abs(matrix - matrix.T).max() > 0.01
        np.testing.assert_array_equal(getattr(pair.swapped, name), matrix.T)
        np.testing.assert_array_equal(getattr(back, name), matrix)
    cca.canonical(pair)
    references = [weakref.ref(pair), weakref.ref(pair.swapped)]
    gc.disable()
    try:
        del pair, back
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


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


def test_neurons_are_not_ranked_by_tracks():
    """All models share the first neuron and none the second; a track has none of the first."""
    best = np.full((4, 4, 2), 0.2)
    best[..., 0] = 0.9
    best[:, 3] = best[3] = [0.1, 0.8]
    ranking = measures.RANKINGS["mincorr"]
    ranked = rank_neurons(best, ranking, ["a", "b", "c", None])
    alone = rank_neurons(best[:3, :3], ranking, ["a", "b", "c"])
    np.testing.assert_array_equal(ranked["mincorr_neuron"][1][:3], alone["mincorr_neuron"][1])
    assert np.isnan(ranked["mincorr_neuron"][1][3]).all()
    assert rank_neurons(best[:2, :2], ranking, ["a", None]) == {}


@pytest.mark.slow
def test_post_norm_layers_are_singular_and_do_no_harm():
    """A real post-norm layer: its neurons satisfy one linear equation exactly.

    Without a cut, float32 moments turn the null direction into canonical correlations above 1.
    """
    folder = DATA / "parity"
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


def names_of(selection) -> list[str]:
    return [measure.name for measure in selection.measures]


def test_names_and_levels_select_measures():
    paper = measures.resolve("paper")
    assert tuple(names_of(paper)) == GOLDEN_MEASURES
    assert {ranking.name for ranking in paper.rankings} == {"maxcorr", "mincorr"}
    every = {name for name, m in measures.MEASURES.items() if m.level != "attention"}
    assert set(names_of(measures.resolve("all"))) == every  # attention is costly: only if named
    assert names_of(measures.resolve("lincka,svcca")) == ["lincka", "svcca"]
    assert names_of(measures.resolve("paper", ["neuron"])) == ["maxcorr"]
    assert names_of(measures.resolve("mincorr")) == ["maxcorr"]
    mixed = measures.resolve("lincka,attn_js")
    assert names_of(mixed.attention) == ["attn_js"]
    assert names_of(mixed.without_attention) == ["lincka"]
    selection = measures.resolve("paper", ["attention", "layer"])
    assert names_of(selection.attention) == ["attn_frobenius", "attn_js", "attn_pearson"]
    assert names_of(selection.without_attention) == ["lincka", "svcca", "pwcca"]
    attention = {m.name for m in measures.MEASURES.values() if m.level == "attention"}
    assert set(names_of(measures.resolve("all", ["attention"]))) == attention


def test_selections_name_the_statistics_that_they_read():
    assert measures.resolve("lincka").statistics == ("moments",)
    assert measures.resolve("rsa").statistics == ("moments", "sample")
    assert measures.resolve("attn_js").statistics == ("attention",)
    assert measures.resolve("attn_js,rsa").statistics == ("moments", "attention", "sample")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="lincka"):
        measures.resolve("linka")
    with pytest.raises(UserError, match="attention"):
        measures.resolve("paper", ["atention"])
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
