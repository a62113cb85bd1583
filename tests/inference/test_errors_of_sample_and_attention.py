"""Standard errors of measures on the sample and on attention, against scores without clusters."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference.half_samples import of_groups, signs

SMOOTH = ("rbfcka", "rbfcka_debiased", "rsa")
ON_SAMPLE = (*SMOOTH, "mutual_knn")
CLUSTERS = 24
LENGTHS = np.random.default_rng(1).integers(4, 13, CLUSTERS)
GROUP = np.repeat([f"s{k:02}" for k in range(CLUSTERS)], LENGTHS)


def representations(seed: int = 0, levels: int | None = None) -> dict[str, np.ndarray]:
    """Three with directions in common, in which clusters differ; few levels make ties."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(CLUSTERS), LENGTHS)
    shared = rng.standard_normal((len(GROUP), 3)) + 0.6 * rng.standard_normal((CLUSTERS, 3))[number]
    mixing = np.random.default_rng(0)
    arrays = {
        name: shared @ mixing.standard_normal((3, width)) + rng.standard_normal((len(GROUP), width))
        for name, width in (("x", 6), ("y", 5), ("z", 4))
    }
    if levels is not None:
        arrays = {name: np.clip(np.round(a), -levels, levels) for name, a in arrays.items()}
    return arrays


def compared(arrays: dict[str, np.ndarray], rows: np.ndarray | slice, **options):
    return ss.compare_activations(
        {name: array[rows] for name, array in arrays.items()},
        list(ON_SAMPLE), utterances=GROUP[rows], **options,
    )  # fmt: skip


def jackknife(values: np.ndarray) -> float:
    return float(np.sqrt((len(values) - 1) * np.var(values)))


@pytest.fixture(scope="module", params=[None, 2], ids=["continuous", "ties"])
def both(request) -> tuple[ss.SimilarityResult, list[ss.SimilarityResult]]:
    """A result, and those without each cluster."""
    arrays = representations(levels=request.param)
    whole = compared(arrays, slice(None), errors=True, groups=GROUP)
    return whole, [compared(arrays, name != GROUP) for name in np.unique(GROUP)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_errors_and_contrasts_of_smooth_measures_are_those_of_the_jackknife(name, both):
    whole, without = both
    scores = np.array([result.matrix(name).values for result in without])
    errors = whole.standard_error(name).values
    for x, y in ((0, 1), (0, 2), (1, 2)):
        assert errors[x, y] == errors[y, x]
        assert errors[x, y] == pytest.approx(jackknife(scores[:, x, y]), rel=0.12)
    assert (np.diagonal(errors) == 0).all()
    contrast = whole.contrast(name, ("x/0", "y/0"), ("x/0", "z/0"))
    expected = jackknife(scores[:, 0, 1] - scores[:, 0, 2])
    assert contrast.standard_error == pytest.approx(expected, rel=0.12)
    assert contrast.degrees == CLUSTERS - 1
    moved = whole.influence.cluster_sums(name)[:, 0, 1]
    change = scores[:, 0, 1].mean() - scores[:, 0, 1]
    assert np.corrcoef(moved, change)[0, 1] > 0.98


@pytest.mark.parametrize("name", ON_SAMPLE)
def test_what_all_rows_of_a_cluster_share_is_its_influence(name):
    """The influences sum to 0, and are the same with clusters named in another order."""
    arrays = representations()
    one = compared(arrays, slice(None), errors=True, groups=GROUP)
    names = {old: f"{k:02}" for k, old in enumerate(sorted(set(GROUP), key=lambda s: s[::-1]))}
    other = compared(arrays, slice(None), errors=True, groups=np.array([names[g] for g in GROUP]))
    assert np.abs(one.influence.cluster_sums(name).sum(axis=0)).max() < 1e-6
    if name != "mutual_knn":  # of which group a cluster is depends on its name, where sizes tie
        np.testing.assert_allclose(
            other.standard_error(name), one.standard_error(name), rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("groups", [2, 3, 4, 7, 11, 12, 15, 16, 19, 20])
def test_half_samples_give_the_influences_of_a_mean(groups):
    rng = np.random.default_rng(groups)
    sizes = rng.integers(3, 9, groups)
    group = np.repeat(np.arange(groups), sizes)
    values = rng.standard_normal(len(group))
    expected = [np.sum(values[group == g] - values.mean()) / len(group) for g in range(groups)]
    differences = []
    for sides in signs(groups)[:, group]:
        first, share = sides > 0, np.mean(sides > 0)
        of_way = 0.0
        if 0 < share < 1:
            of_way = 2 * share * (1 - share) * (values[first].mean() - values[~first].mean())
        differences.append(of_way)
    np.testing.assert_allclose(of_groups(np.array(differences), groups), expected, atol=1e-12)


def test_errors_of_neighbours_are_over_groups():
    """24 clusters in 20 groups; contrasts of the same scores are 0."""
    arrays = representations()
    result = compared(arrays, slice(None), errors=True, groups=GROUP)
    error = float(result.standard_error("mutual_knn")[0, 1])
    assert 0 < error < 0.1
    assert result.attributes["errors"]["degrees"]["mutual_knn"] == 19
    assert result.contrast("mutual_knn", ("x/0", "y/0")).standard_error == pytest.approx(error)
    same = result.contrast("mutual_knn", ("x/0", "y/0"), ("y/0", "x/0"))
    assert same.difference == same.standard_error == 0


@pytest.mark.slow
def test_errors_of_neighbours_are_the_spread_of_scores():
    """Over independent drawings of clusters."""
    errors, scores = [], []
    for seed in range(30):
        result = compared(representations(seed), slice(None), errors=True, groups=GROUP)
        errors.append(float(result.standard_error("mutual_knn")[0, 1]))
        scores.append(float(result.matrix("mutual_knn")[0, 1]))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(scores, ddof=1), rel=0.5)


@pytest.mark.parametrize(
    "y",
    [np.ones((len(GROUP), 3)), np.repeat([[1.0], [2.0]], len(GROUP) // 2, axis=0)],
    ids=["constant", "two values"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_scores_that_are_not_defined_have_no_errors(y):
    """Whatever has one has the other, and nothing is divided by 0."""
    x = representations()["x"][: len(y)]
    result = ss.compare_activations(
        {"x": x, "y": y}, list(ON_SAMPLE), errors=True, groups=GROUP[: len(y)]
    )
    for name in ON_SAMPLE:
        scores, errors = result.matrix(name).values, result.standard_error(name).values
        assert np.isnan(errors[np.isnan(scores)]).all()
        assert np.isfinite(errors[np.isfinite(scores)]).all()


def test_with_few_clusters_there_are_errors_without_intervals():
    few = np.array([f"g{k % 4}" for k in range(len(GROUP))])
    result = compared(representations(), slice(None), errors=True, groups=few)
    for name in ON_SAMPLE:
        assert np.isfinite(result.standard_error(name)).all()
        assert np.isnan(result.interval(name)).all()


def test_measures_on_the_sample_without_moments_are_saved_and_read(tmp_path):
    arrays = representations()
    result = compared(arrays, slice(None), errors=True, groups=GROUP)
    result.save(tmp_path / "result.nc")
    read = ss.SimilarityResult.load(tmp_path / "result.nc")
    for name in ON_SAMPLE:
        np.testing.assert_array_equal(
            read.influence.cluster_sums(name), result.influence.cluster_sums(name)
        )
        one, other = (r.contrast(name, ("x/0", "y/0"), ("x/0", "z/0")) for r in (read, result))
        assert one == other
    assert "standard error" in read.summary()


def test_moments_and_sample_in_one_table(tmp_path):
    arrays = representations()
    names = ["lincka", "rbfcka", "mutual_knn"]
    result = ss.compare_activations(arrays, names, utterances=GROUP, errors=True, groups=GROUP)
    assert result.attributes["errors"]["clusters"] == CLUSTERS
    path = result.save(tmp_path / "result.nc")
    read = ss.SimilarityResult.load(path)
    for name in names:
        one, other = (r.contrast(name, ("x/0", "y/0")).standard_error for r in (result, read))
        assert one == other == pytest.approx(float(result.standard_error(name)[0, 1]), rel=1e-5)
    with pytest.raises(UserError, match="pwcca"):
        result.influence.of("pwcca")
    assert result.influence.nbytes > 0


def test_without_errors_there_are_none():
    result = compared(representations(), slice(None))
    assert result.influence is None
    assert not any(str(name).endswith("_se") for name in result.dataset)


HEADS = {"mine/1": 3, "mine/2": 3, "theirs/1": 2}
ON_ATTENTION = ("attn_js", "attn_frobenius_norm", "attn_pearson", "attn_lincka", "attn_svcca")


def attentions(utterances: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Maps that resemble each other by as much as utterances say."""
    rng = np.random.default_rng(seed)
    maps: dict[str, list[np.ndarray]] = {name: [] for name in HEADS}
    for _ in range(utterances):
        size, strength = rng.integers(5, 12), rng.uniform(0.2, 2)
        shared = strength * rng.standard_normal((size, size))
        for name, heads in HEADS.items():
            powers = np.exp(shared + rng.standard_normal((heads, size, size)))
            maps[name].append(powers / powers.sum(axis=2, keepdims=True))
    return maps


@pytest.mark.slow
@pytest.mark.parametrize("utterances", [12, 26])
def test_errors_of_attention_leave_out_groups(utterances):
    maps = attentions(utterances)
    groups = [f"s{k % 13}" for k in range(utterances)]
    result = ss.compare_attentions(maps, list(ON_ATTENTION), errors=True, groups=groups)
    names = sorted(set(groups))
    without = [
        ss.compare_attentions(
            {n: [m for m, g in zip(of, groups) if g != name] for n, of in maps.items()},
            list(ON_ATTENTION),
        )
        for name in names
    ]
    frames = np.array([sum(m.shape[1] for m, g in zip(maps["mine/1"], groups) if g == name)
                       for name in names])  # fmt: skip
    rest = 1 - frames / frames.sum()
    for name in ON_ATTENTION:
        score = result.matrix(name).values
        moved = np.array([
            share * (score - other.matrix(name).values) for share, other in zip(rest, without)
        ])  # fmt: skip
        # A mean over clusters of the moved, weighted by frames as the table weighs them.
        weighted = moved * (frames.sum() / frames)[:, None, None]
        moved = (weighted - weighted.mean(axis=0)) * (frames / frames.sum())[:, None, None]
        expected = np.sqrt(len(names) / (len(names) - 1) * np.square(moved).sum(axis=0))
        np.testing.assert_allclose(result.standard_error(name), expected, rtol=1e-5, atol=1e-9)
    assert set(result.attributes["errors"]["degrees"].values()) == {len(names) - 1}
    contrast = result.contrast("attn_js", ("mine/1", "theirs/1"), ("mine/2", "theirs/1"))
    assert 0 < contrast.standard_error < 0.2


@pytest.mark.slow
def test_attention_without_groups_takes_utterances():
    result = ss.compare_attentions(attentions(30), ["attn_js"], errors=True)
    assert result.attributes["errors"]["degrees"] == {"attn_js": 19}
    assert np.isfinite(result.interval("attn_js")).all()
    shares = result.closest("attn_js", "theirs/1", "mine")
    assert float(shares.sum()) == pytest.approx(1)
    none = ss.compare_attentions(attentions(30), ["attn_js"])
    assert none.influence is None
    np.testing.assert_allclose(none.matrix("attn_js"), result.matrix("attn_js"), rtol=1e-12)


@pytest.mark.slow
def test_groups_of_attention_are_one_for_each_utterance():
    with pytest.raises(UserError, match="2 utterances"):
        ss.compare_attentions(attentions(3), ["attn_js"], errors=True, groups=["a", "b"])
    with pytest.raises(UserError, match="groups"):
        ss.compare_attentions(attentions(2), ["attn_js"], errors=True, groups=["a", "a"])
