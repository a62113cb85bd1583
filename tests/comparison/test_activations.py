"""`compare_activations`: anybody's arrays, in any form."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison.arrays import few_sizes
from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments_accumulator


def arrays(rows: int = 230) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows, 3))
    return {
        name: shared @ rng.standard_normal((3, width)) + rng.standard_normal((rows, width))
        for name, width in (("a/0", 6), ("a/1", 6), ("b/2", 4), ("c", 7))
    }


@pytest.mark.slow
def test_names_and_order_are_kept():
    data = arrays()
    keys = {"c": data["c"], ("a", 1): data["a/1"], "b/2": data["b/2"], "org/a/0": data["a/0"]}
    result = ss.compare_activations(keys, measures="lincka")
    assert [str(n) for n in result.representations] == ["c/0", "a/1", "b/2", "org/a/0"]
    plain = ss.compare_activations(data, measures="lincka").matrix("lincka").values
    order = [3, 1, 2, 0]
    np.testing.assert_allclose(
        result.matrix("lincka").values, plain[np.ix_(order, order)], atol=1e-12
    )


@pytest.mark.slow
def test_memory_mapped_files_and_chunks_equal_arrays(tmp_path):
    data = arrays()
    whole = ss.compare_activations(data, rows_per_update=64)
    mapped, chunked = {}, {}
    for index, (name, x) in enumerate(data.items()):
        np.save(tmp_path / f"{index}.npy", x)
        mapped[name] = np.load(tmp_path / f"{index}.npy", mmap_mode="r")
        cuts = sorted(np.random.default_rng(index).integers(0, 230, 4))
        chunked[name] = iter(np.split(x, cuts))
    for other in (mapped, chunked):
        result = ss.compare_activations(other, rows_per_update=64)
        for name in whole.measures:
            difference = result.matrix(name).values - whole.matrix(name).values
            assert np.abs(difference).max() < 1e-12, name


@pytest.mark.slow
def test_float16_and_float32_inputs():
    data = arrays()
    exact = ss.compare_activations({k: x.astype(np.float16).astype(float) for k, x in data.items()})
    halves = {k: x.astype(np.float16) for k, x in data.items()}
    half = ss.compare_activations(halves, stats_dtype="float64")
    default = ss.compare_activations(halves)
    assert default.attributes["numeric"]["stats_dtype"] == "float32"
    single = ss.compare_activations(data, stats_dtype="float32")
    for name in exact.measures:
        np.testing.assert_allclose(half.matrix(name), exact.matrix(name), atol=1e-12)
        np.testing.assert_allclose(default.matrix(name), exact.matrix(name), atol=1e-5)
        assert np.abs(single.matrix(name).values - exact.matrix(name).values).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("null", ["none", "shift"])
def test_other_numbers_of_rows_need_no_other_programs(null):
    """And their scores are numpy's, whatever was read before them."""
    programs = moments_accumulator._update, moments_accumulator._pack
    counts, compiled = [230, 227, 233, 240, 226], []
    for rows in counts:
        data = arrays(rows)
        utterances = np.arange(rows) // 30
        result = ss.compare_activations(
            data, ["maxcorr"], null=null, null_draws=1, utterances=utterances.astype(str)
        )
        correlation = np.corrcoef(data["a/0"].T, data["c"].T)[:6, 6:]
        expected = np.abs(correlation).max(axis=1).mean()
        assert float(result.matrix("maxcorr").loc["a/0", "c/0"]) == pytest.approx(
            expected, abs=1e-9
        )
        compiled.append([program._cache_size() for program in programs])
    assert compiled == compiled[:1] * len(counts)


def test_few_numbers_of_rows():
    sizes = [few_sizes(rows) for rows in range(1, 5000)]
    assert all(rows <= size for rows, size in enumerate(sizes, start=1)) and sizes == sorted(sizes)
    assert len(set(sizes)) <= 52 and few_sizes(4096) == 4096
    assert all(size <= max(64, 1.125 * rows) for rows, size in enumerate(sizes, start=1))


def test_mistakes_are_named():
    data = arrays()
    with pytest.raises(UserError, match="no activations"):
        ss.compare_activations({})
    with pytest.raises(UserError, match=r"a/0 and c/0 differ in rows \(230 and 229 so far\)"):
        ss.compare_activations(data | {"c": data["c"][1:]})
    with pytest.raises(UserError, match=r"a/0 and b/2 differ in rows"):
        ss.compare_activations(data | {"b/2": iter([])}, rows_per_update=100)
    bad = data["b/2"].copy()
    bad[201, 2] = np.inf
    with pytest.raises(UserError, match="b/2: NaN or inf in row 201"):
        ss.compare_activations(data | {"b/2": bad}, rows_per_update=64)
    with pytest.raises(UserError, match=r"c/0: expected an array \[rows, neurons\]"):
        ss.compare_activations(data | {"c": data["c"][:, 0]})
    with pytest.raises(UserError, match="same model and layer"):
        ss.compare_activations(data | {("a", 1): data["a/1"]})
    with pytest.raises(UserError, match="at least 2 rows"):
        ss.compare_activations({"a": data["c"][:1]})
