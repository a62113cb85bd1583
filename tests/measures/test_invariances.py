"""What each measure is invariant to and what not; and the score of a representation with itself.

Golden values are in test_measures.py: several published implementations pass tests like these and
are wrong.
"""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.measures import MEASURES

NAMES = [name for name, measure in MEASURES.items() if measure.statistic == "moments"]
BARS = {"float64": 1e-10, "float32": 1e-5}

MAPS = ("permutation", "sign", "scale", "shift", "neuron_scale", "rotation", "linear")
ALIKE = {"permutation", "sign", "scale", "shift"}
EACH = ALIKE | {"neuron_scale"}
TURN = ALIKE | {"rotation"}
ANY = set(MAPS)

# Measure -> the maps of x, and those of y, that do not move score(x, y); every other one does.
INVARIANT = {
    "maxcorr": (EACH, EACH),
    "matchcorr": (EACH, EACH),
    # Its rotations are drawn for the axes of y as they come.
    "rotcorr": (EACH, {"scale", "shift", "neuron_scale"}),
    "linreg": (EACH, ANY),
    "linreg_r2": (EACH, ANY),
    "linreg_r2_global": (TURN, ANY),
    "lincka": (TURN, TURN),
    "lincka_zscored": (EACH, EACH),
    "lincka_debiased": (TURN, TURN),
    "svcca": (EACH, EACH),
    "svcca_ge": (EACH, EACH),
    "svcca_centred": (TURN, TURN),
    "svcca_centred_ge": (TURN, TURN),
    "mean_cca": (ANY, ANY),
    "mean_cca2": (ANY, ANY),
    # The variance of x's neurons weighs its directions.
    "pwcca": (ALIKE, EACH),
    "pwcca_zscored": (EACH, EACH),
    "procrustes": (TURN, TURN),
    "procrustes_distance": (TURN, TURN),
}


def representations() -> tuple[np.ndarray, np.ndarray]:
    """Two that share four directions; 99 % of the variance leaves some of the others out."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((400, 4))
    x, y = (
        shared @ rng.standard_normal((4, width))
        + rng.standard_normal((400, width)) * np.geomspace(1, 0.05, width)
        for width in (9, 8)
    )
    return x * rng.uniform(0.7, 1.5, 9), y * rng.uniform(0.7, 1.5, 8) + 2


def mapped(x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """x under each of the maps."""
    rng = np.random.default_rng(seed)
    width = x.shape[1]
    left, right = (np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(2))
    return {
        "permutation": x[:, rng.permutation(width)],
        "sign": x * np.where(np.arange(width) % 2, 1, -1),
        "scale": 3.7 * x,
        "shift": x + 10 * rng.standard_normal(width),
        "neuron_scale": x * rng.permutation(np.geomspace(0.2, 5, width)),
        "rotation": x @ left,
        "linear": x @ left @ np.diag(np.geomspace(0.3, 3, width)) @ right,
    }


@pytest.fixture(scope="module", params=["float64", "float32"])
def scores(request) -> tuple[float, dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The bar, and by measure and map ("" is none) the scores with x, and with y, mapped."""
    x, y = representations()
    xs = {"": x} | mapped(x, 1)
    ys = {"": y} | mapped(y, 2)
    data = {f"x {name}": a for name, a in xs.items()} | {f"y {name}": a for name, a in ys.items()}
    result = ss.compare_activations(data, NAMES, stats_dtype=request.param, rank_tolerance=1e-9)
    rows, columns = {}, {}
    for measure in NAMES:
        matrix = result.matrix(measure).values
        rows[measure] = dict(zip(xs, matrix[: len(xs), len(xs)].tolist()))
        columns[measure] = dict(zip(ys, matrix[0, len(xs) :].tolist()))
    return BARS[request.param], rows, columns


def test_every_measure_on_moments_is_in_the_table():
    assert set(INVARIANT) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_measures_say_whether_neurons_count_by_their_variance(name):
    moved = any("neuron_scale" not in side for side in INVARIANT[name])
    assert MEASURES[name].by_variance == moved


@pytest.mark.slow
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("measure", NAMES)
def test_invariance_and_its_limits(scores, measure, side):
    bar, *sides = scores
    values = sides["xy".index(side)][measure]
    for name in MAPS:
        change = abs(values[name] - values[""])
        if name in INVARIANT[measure]["xy".index(side)]:
            assert change <= bar, name
        else:
            assert change > 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_representation_with_itself_and_with_a_copy(dtype):
    """1 for everything but the baseline and the distance, whatever the representation."""
    rng = np.random.default_rng(0)
    x, y = representations()
    layer_norm = rng.standard_normal((400, 6)) - 3
    layer_norm -= layer_norm.mean(1, keepdims=True)
    data = {"x": x, "y": y, "singular": layer_norm}
    copies = data | {f"copy of {name}": a for name, a in data.items()}
    result = ss.compare_activations(copies, NAMES, stats_dtype=dtype)
    for name in NAMES:
        matrix = result.matrix(name).values
        both = np.stack(
            [np.diagonal(matrix)[: len(data)], np.diagonal(matrix[: len(data), len(data) :])]
        )
        if name == "rotcorr":
            assert np.all(both < 0.95)
        else:
            expected = 0 if name == "procrustes_distance" else 1
            np.testing.assert_allclose(both, expected, atol=1e-6, err_msg=name)
        low, high = MEASURES[name].limits
        assert low - 1e-6 <= matrix.min() <= matrix.max() <= high + 1e-6, name
        if MEASURES[name].symmetric:
            np.testing.assert_array_equal(matrix, matrix.T, err_msg=name)


def test_only_the_debiased_cka_is_near_0_for_unrelated_wide_representations():
    """1000 independent rows of 10,000 uniform neurons: biased > 0.9, debiased < 0.1.

    CKA reads the inner products of rows only, so the 1000 x 1000 factor L of X X' = L L' stands in
    for X: its moments are a hundred times smaller.
    """
    rng = np.random.default_rng(0)
    factors = {}
    for name in "xy":
        x = rng.uniform(size=(1000, 10_000))
        factors[name] = np.linalg.cholesky(x @ x.T)
    result = ss.compare_activations(factors, ["lincka", "lincka_debiased"], rows_per_update=1000)
    assert result.matrix("lincka").values[0, 1] > 0.9
    assert abs(result.matrix("lincka_debiased").values[0, 1]) < 0.1
    assert result.dataset["lincka_floor"].values[0, 1] > 0.9
