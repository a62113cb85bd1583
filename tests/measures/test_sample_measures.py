"""Measures on the frame sample: golden and published values, oracles, bad data, blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax._jax_compat import x64
from speechsim_jax.measures import MEASURES, kernel, neighbours, resolve, scoring
from speechsim_jax.statistics import sample
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.sample import SampleAccumulator, SampledRepresentation
from tests.support import reference
from tests.support.golden import GOLDEN, golden_inputs

NAMES = list(reference.SAMPLE_MEASURES)


def correlated(rows: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two representations of different widths that share five directions."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((rows, 5))
    x = shared @ rng.standard_normal((5, 9)) + 0.5 * rng.standard_normal((rows, 9)) + 1
    y = shared @ rng.standard_normal((5, 7)) * 3 + rng.standard_normal((rows, 7)) * rng.random(7)
    return x, y


def scores(x: np.ndarray, y: np.ndarray, **options) -> dict[str, float]:
    """Each measure of x against y."""
    result = ss.compare_activations({"x": x, "y": y}, NAMES, **options)
    return {name: float(result.matrix(name).values[0, 1]) for name in NAMES}


def representation(x: np.ndarray) -> SampledRepresentation:
    """A representation without utterances."""
    return SampledRepresentation(x, np.full(len(x), -1))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-9), ("float32", 1e-6)])
def test_golden(dtype, bar):
    result = ss.compare_activations(
        golden_inputs(), "rbfcka", stats_dtype=dtype, rows_per_update=128
    )
    assert result.attributes["sample"] == {"rows": 900, "utterances": 0}
    matrix = result.matrix("rbfcka").values
    assert np.nanmax(np.abs(matrix - GOLDEN["rbfcka"])) <= bar
    np.testing.assert_allclose(np.diagonal(matrix), 1, atol=1e-12)


def test_published_values_of_other_libraries():
    """nacloos/similarity-repository, figures/metric_vs_repo.csv: X, Y uniform [30, 25], seed 0.

    Its RBF kernels have the bandwidth 1 instead of the median.
    """
    rng = np.random.RandomState(0)
    x, y = rng.uniform(size=(30, 25)), rng.uniform(size=(30, 25))
    # rsatoolbox, brainscore, thingsvision, resi: correlation distance, Spearman
    assert scores(x, y)["rsa"] == pytest.approx(-0.004092795694065198, abs=1e-12)
    k, l = (kernel.gaussian(kernel.squared_distances(z), 1.0) for z in (x, y))
    # Gretton: netrep, rsatoolbox, thingsvision, resi and others; Song: representation_similarity,
    # thingsvision, contrasim, correcting_cka_alignment
    for hsic, value in ((kernel.hsic0, 0.8940267986288911), (kernel.hsic1, 0.06763941584088)):
        assert hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)) == pytest.approx(value, abs=1e-10)
    # resi: Jaccard index of ten nearest neighbours by cosine
    near = [neighbours.neighbours(representation(z)).tolist() for z in (x, y)]
    overlaps = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*near)]
    assert np.mean(overlaps) == pytest.approx(0.21488074762068568, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_oracles(seed):
    x, y = correlated(50, seed)
    utterances = [f"u{i // 6}" for i in range(50)]
    result = ss.compare_activations({"x": x, "y": y}, NAMES, utterances=utterances)
    for name, oracle in reference.SAMPLE_MEASURES.items():
        arguments = (utterances,) if name == "mutual_knn" else ()
        matrix = result.matrix(name).values
        assert matrix[0, 1] == pytest.approx(oracle(x, y, *arguments), abs=1e-10), name
        assert matrix[1, 0] == matrix[0, 1], name
        assert np.diagonal(matrix) == pytest.approx([1, 1], abs=1e-12), name
    assert scores(x, y)["mutual_knn"] == pytest.approx(reference.mutual_knn(x, y), abs=1e-12)


def test_the_median_is_the_lower_one_with_the_diagonal():
    x = np.random.default_rng(0).standard_normal((6, 3))
    for rows in (3, 4, 5, 6):
        expected = reference.rbf_gram(x[:rows])
        got = kernel.gram(representation(x[:rows]))
        np.testing.assert_allclose(got.upper - got.diagonal, neighbours.upper(expected) - 1)


def test_only_the_chosen_rows_are_read_whatever_the_blocks():
    x, y = correlated(400)
    every = BatchRows(np.arange(400), np.zeros(400, np.int64), np.arange(400), ("",), ("",))
    drawn = np.sort(np.argsort(sample.row_keys(7, every))[:60])
    expected = {
        name: oracle(x[drawn], y[drawn]) for name, oracle in reference.SAMPLE_MEASURES.items()
    }
    for size in (33, 1000):
        got = scores(x, y, sample_frames=60, seed=7, rows_per_update=size)
        assert got == pytest.approx(expected, abs=1e-10)
    assert scores(x, y, sample_frames=60, seed=8)["rsa"] != pytest.approx(expected["rsa"], abs=1e-3)


def test_invariances_and_non_invariances():
    rng = np.random.default_rng(0)
    x, y = correlated()
    rotation = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    plain = scores(x, y)
    turned = scores(3 * x @ rotation, y)
    for name in ("rbfcka", "rbfcka_debiased", "mutual_knn"):
        assert turned[name] == pytest.approx(plain[name], abs=1e-10), name
    assert abs(turned["rsa"] - plain["rsa"]) > 1e-3  # Pearson over neurons sees their axes
    shifted = scores(x + rng.standard_normal(9) * 2, y)
    for name in ("rbfcka", "rbfcka_debiased"):
        assert shifted[name] == pytest.approx(plain[name], abs=1e-10), name
    for name in ("mutual_knn", "rsa"):  # columns are not centred
        assert abs(shifted[name] - plain[name]) > 1e-3, name
    assert scores(2 * x + 5, y)["rsa"] == pytest.approx(plain["rsa"], abs=1e-10)
    stretched = scores(x @ np.diag(np.linspace(0.1, 3, 9)), y)
    for name in NAMES:
        assert abs(stretched[name] - plain[name]) > 1e-3, name


@pytest.mark.slow
def test_the_debiased_value_is_near_0_for_independent_rows():
    rng = np.random.default_rng(0)
    got = scores(rng.random((200, 2000)), rng.random((200, 2000)))
    assert got["rbfcka"] > 0.9
    assert abs(got["rbfcka_debiased"]) < 0.05
    assert got["mutual_knn"] == pytest.approx(10 / 199, abs=0.03)
    assert abs(got["rsa"]) < 0.05


def test_neighbours_in_time_are_excluded_by_default():
    """Two unrelated representations whose rows drift slowly within an utterance."""
    rng = np.random.default_rng(0)
    utterances = np.repeat([f"u{i:02}" for i in range(20)], 30)
    x, y = (
        np.concatenate([rng.standard_normal((30, 16)).cumsum(axis=0) for _ in range(20)])
        for _ in range(2)
    )
    known = scores(x, y, utterances=utterances)
    unknown = scores(x, y)
    assert unknown["mutual_knn"] > 0.5
    assert known["mutual_knn"] < 0.1
    assert {k: v for k, v in known.items() if k != "mutual_knn"} == {
        k: v for k, v in unknown.items() if k != "mutual_knn"
    }


def test_rows_without_enough_candidates_are_left_out():
    x, y = correlated(60)
    # The second utterance has 9 rows outside it, fewer than the neighbours asked for.
    lopsided = ["a"] * 9 + ["b"] * 51
    near = [reference.nearest(z, 10, lopsided) for z in (x, y)]
    expected = np.mean([len(a & b) / 10 for a, b in zip(*near)][:9])
    assert scores(x, y, utterances=lopsided)["mutual_knn"] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(scores(x, y, utterances=["a"] * 60)["mutual_knn"])


@pytest.mark.parametrize("rows", [2, 3, 4, 10, 11])
def test_few_rows(rows):
    x, y = correlated(rows)
    got = scores(x, y)
    assert {name for name, value in got.items() if np.isnan(value)} == {
        *(("rbfcka", "rsa") if rows < 3 else ()),
        *(("rbfcka_debiased",) if rows < 4 else ()),
        *(("mutual_knn",) if rows < 11 else ()),
    }
    if rows == 3:
        assert got["rbfcka"] == pytest.approx(reference.rbfcka(x, y), abs=1e-10)


def test_dead_neurons():
    x, y = correlated()
    plain = scores(x, y)
    with_zero = scores(np.insert(x, 4, 0.0, axis=1), y)
    assert with_zero["mutual_knn"] == plain["mutual_knn"]
    constant = scores(np.insert(x, 4, 7.25, axis=1), y)
    for name in ("rbfcka", "rbfcka_debiased"):
        assert constant[name] == pytest.approx(plain[name], abs=1e-12), name
    for name in ("mutual_knn", "rsa"):
        assert np.isfinite(constant[name]), name


def test_constant_rows_and_representations_have_defined_outcomes():
    x, y = correlated()
    flat = x.copy()
    flat[[3, 8, 30]] = [[0.1], [-2.0], [0.0]]  # the last is a row of zeros
    got = scores(flat, y)
    assert all(np.isfinite(value) for value in got.values())
    # rsa: correlation 0 with every other row
    ranks = []
    for z in (flat, y):
        with np.errstate(invalid="ignore"):
            r = np.nan_to_num(np.corrcoef(z), nan=0)
        r[np.ptp(z, axis=1) == 0] = 0
        r[:, np.ptp(z, axis=1) == 0] = 0
        values = (1 - r)[np.triu_indices(len(z), 1)]
        values[np.abs(values - 1) < 1e-12] = 1
        ranks.append([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
    assert got["rsa"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-10)
    # a representation that never changes: nothing to compare
    still = scores(np.tile(x[:1], (50, 1)), y)
    assert all(np.isnan(value) for value in still.values())
    # most rows equal: no bandwidth
    half = x.copy()
    half[:40] = half[0]
    assert np.isnan(scores(half, y)["rbfcka"])
    # one neuron, two neurons: correlations are undefined, or only +1 and -1
    assert np.isnan(scores(x[:, :1], y)["rsa"])
    two = np.where(x[:, 0] > x[:, 1], 1.0, -1.0)
    expected = (1 - np.outer(two, two))[np.triu_indices(50, 1)]
    other = (1 - np.corrcoef(y))[np.triu_indices(50, 1)]
    ranks = [[(v < e).sum() + ((v == e).sum() + 1) / 2 for e in v] for v in (expected, other)]
    assert scores(x[:, :2], y)["rsa"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-10)


def test_equal_rows_are_neighbours_in_order():
    """Duplicates must not be ordered by rounding: x and a rotated x have the same neighbours."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((4, 12)), 15, axis=0)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert scores(x, x @ rotation)["mutual_knn"] == 1


def test_float16_and_large_offsets():
    x, y = correlated()
    half = scores(x.astype(np.float16), y)
    exact = scores(x.astype(np.float16).astype(np.float64), y)
    assert half == exact
    far = scores(x + 1e4, y)
    for name in ("rbfcka", "rbfcka_debiased"):
        assert far[name] == pytest.approx(scores(x, y)[name], abs=1e-9), name


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8])
def test_blocks_hold_every_pair_once(count):
    blocks = scoring.pair_blocks(count, 100, 600)  # six representations
    pairs = [(i, j) for a, b in blocks for i in a for j in b if i <= j]
    assert sorted(pairs) == [(i, j) for i in range(count) for j in range(i, count)]


def test_blocks_do_not_change_the_scores_and_bound_what_is_cached(monkeypatch):
    accumulator = SampleAccumulator((ModelShape(7, 6),), 100, rows_dtype="float64")
    rows = BatchRows(np.arange(40), np.zeros(40, np.int64), np.arange(40), ("",), ("",))
    with x64(True):
        hidden = jnp.asarray(np.random.default_rng(0).standard_normal((7, 1, 40, 6)))
    accumulator.append((hidden,), rows)
    finished = {"sample": accumulator.result().finish()}
    whole = scoring.score_all(finished, resolve(NAMES)).matrices
    representations = finished["sample"].representations
    for one in representations:
        one.release()
    cached, once = [], SampledRepresentation.once

    def counted(self, derive, *arguments):
        value = once(self, derive, *arguments)
        cached.append(sum(bool(one._cache) for one in representations))
        return value

    monkeypatch.setattr(SampledRepresentation, "once", counted)
    cut = scoring.score_all(finished, resolve(NAMES), sample_bytes=4 * 8 * 40**2).matrices
    assert max(cached) == 4
    assert set(cut) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(cut[name], whole[name])


def test_utterances_must_name_every_row():
    x, y = correlated(40)
    for count in (39, 41):
        with pytest.raises(ss.UserError, match=rf"utterances names {count} rows"):
            scores(x, y, utterances=["u"] * count, rows_per_update=16)
    for size in (3, 10_001):
        with pytest.raises(ss.UserError, match="sample_frames is"):
            scores(x, y, sample_frames=size)


@pytest.mark.parametrize("name", NAMES)
def test_measures_say_whether_neurons_count_by_their_variance(name):
    x, y = correlated()
    moved = abs(scores(x * np.geomspace(0.05, 5, 9), y)[name] - scores(x, y)[name]) > 1e-6
    assert MEASURES[name].by_variance == moved
