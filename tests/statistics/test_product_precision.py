"""How products are computed: what is chosen, what it falls back to, and that highest is as ever."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.settings import ALGORITHMS, Settings
from speechsim_jax.statistics import moments, moments_finished, product_precision
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.product_precision import Measured, Precision, choose, resolved

ACCURATE = 2.5e-7
"""An error of short products that float32 may have."""


def updated(precision):
    """Two updates, as leaves."""
    shapes = (ModelShape(2, 16), ModelShape(1, 24))
    data = product_precision.hard_rows(shapes, 128)
    rows = [tuple(jnp.asarray(x[:, k : k + 64]) for x in data) for k in (0, 64)]
    state = moments.zero(shapes)
    state = moments.with_reference(state, moments.reference_mean(rows[0], jnp.int32(64)))
    update = jax.jit(moments.update, static_argnames="precision")
    for block in rows:
        state = update(state, block, jnp.int32(60), precision=precision)
    return jax.tree.leaves(state)


def test_names_are_those_of_jax():
    assert set(ALGORITHMS) <= set(lax.DotAlgorithmPreset.__members__)
    assert {"highest", *ALGORITHMS} == set(product_precision._BITS)


def test_highest_is_full_precision_bit_for_bit(monkeypatch):
    found = updated("highest")
    full = lambda _, *args: jnp.einsum(*args, precision=lax.Precision.HIGHEST)  # noqa: E731
    monkeypatch.setattr(moments, "_einsum", full)
    for a, b in zip(found, updated("none of them")):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([("highest", 1e-7, 3), ("F32_F32_F32", 1e-7, 2), ("TF32_TF32_F32_X3", 2e-7, 1)], 2),
        ([("highest", 1e-7, 3), ("F32_F32_F32", 1e-7, 2), ("TF32_TF32_F32_X3", 3e-7, 1)], 1),
        ([("highest", 1e-7, 1), ("F32_F32_F32", 1e-7, 2), ("TF32_TF32_F32_X3", 1e-7, 3)], 0),
        ([("highest", 4e-7, 3), ("F32_F32_F32", 5e-7, 1), ("TF32_TF32_F32_X3", 3e-7, 2)], 2),
        ([("highest", 1e-7, 3), ("F32_F32_F32", float("nan"), 1)], 0),
    ],
    ids=["fastest", "not accurate", "slower", "no worse than highest", "nan"],
)  # fmt: skip
def test_the_fastest_that_is_accurate_is_chosen(measured, chosen):
    found = [Measured(name, error, ACCURATE, seconds) for name, error, seconds in measured]
    assert choose(found) == measured[chosen][0]


def test_what_has_fewer_digits_than_it_claims_is_not_chosen():
    highest = Measured("highest", 1e-7, ACCURATE, 3)
    rounded = Measured("TF32_TF32_F32_X3", 1e-7, 1e-4, 1)
    assert highest.as_claimed and not rounded.as_claimed
    assert Measured("TF32_TF32_F32", 1e-5, 1e-4, 1).as_claimed  # and too inaccurate
    assert choose([highest, rounded]) == "highest"


def test_nothing_is_measured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(product_precision, "measure_all", None)
    assert Precision.of(Settings()) == ("highest", "highest")
    assert resolved("auto") == "highest" and resolved("high") == "high"


def test_an_accelerator_is_asked_once(monkeypatch, caplog):
    asked = []

    def measure_all(algorithms):
        asked.append(algorithms)
        return [Measured(name, 1e-7, ACCURATE, 1 / k) for k, name in enumerate(algorithms, 1)]

    monkeypatch.setattr(product_precision, "measure_all", measure_all)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    product_precision._fastest_here.cache_clear()
    with caplog.at_level(logging.INFO):
        found = Precision.of(Settings(model_precision="auto"))
    assert found.statistics == found.models == asked[0][-1] != "highest"
    assert len(asked) == 1 and [r for r in caplog.messages if found.models in r] == caplog.messages
    assert resolved("auto", "float64") == "highest"
    product_precision._fastest_here.cache_clear()


def test_what_a_device_lacks_is_full_precision_and_said(caplog):
    assert resolved("TF32_TF32_F32_X3") == "highest"
    (line,) = caplog.messages
    assert "full precision" in line and "does not have TF32_TF32_F32_X3" in line
    assert resolved("TF32_TF32_F32_X3", "float64") == "highest"
    assert resolved("F32_F32_F32") == "F32_F32_F32"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("setting", ["stats_precision", "model_precision"])
def test_an_unknown_name_is_answered_with_the_closest(setting):
    with pytest.raises(UserError, match=rf"{setting} is 'TF32_TF32_F32_X4'.*'TF32_TF32_F32_X3'\?"):
        Settings(**{setting: "TF32_TF32_F32_X4"})


def test_algorithms_of_this_device_are_measured(monkeypatch):
    monkeypatch.setattr(product_precision, "_CPU", ModelShape(2, 70))
    highest, single = product_precision.measure_all(("highest", "F32_F32_F32", "TF32_TF32_F32"))
    for found in (highest, single):
        assert 0 < found.error < 5e-7 and found.as_claimed and found.seconds > 0
    assert [highest.algorithm, single.algorithm] == ["highest", "F32_F32_F32"]


def test_what_fails_in_an_update_is_left_out(monkeypatch):
    measure = product_precision._measure

    def small_products_only(algorithm, *rows):
        if algorithm != "highest":
            raise RuntimeError("UNIMPLEMENTED")
        return measure(algorithm, *rows)

    monkeypatch.setattr(product_precision, "_CPU", ModelShape(2, 70))
    monkeypatch.setattr(product_precision, "_measure", small_products_only)
    (found,) = product_precision.measure_all(("highest", "F32_F32_F32"))
    assert found.algorithm == "highest"


def test_an_error_of_a_covariance_is_found():
    streams = (ModelShape(2, 6),)
    (rows,) = product_precision.hard_rows(streams, 500)
    state = moments.zero(streams)
    state = moments.with_reference(
        state, moments.reference_mean((jnp.asarray(rows),), jnp.int32(500))
    )
    state = moments.update(state, (jnp.asarray(rows),), jnp.int32(500))
    finished = moments_finished.FinishedMoments(state)
    assert product_precision.covariance_error(finished, [rows]) < 5e-7
    other = rows.copy()
    other[1, 0, 2] += 0.1 * rows[1, :, 2].std()
    assert product_precision.covariance_error(finished, [other]) > 1e-5
    assert product_precision.covariance_error(finished, [other[:1, :, :4]]) < 5e-7


@pytest.mark.slow
def test_arrays_record_how_products_were_computed():
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    for dtype, precision in (("float32", "F32_F32_F32"), ("float64", "highest")):
        result = ss.compare_activations(
            {"a": x, "b": x[:, ::-1]}, "lincka", stats_dtype=dtype, stats_precision="F32_F32_F32"
        )
        assert result.attributes["numeric"]["stats_precision"] == precision
