"""Measures of one's own (docs/extending.md has a whole example)."""

import dataclasses

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax import measures
from speechsim_jax.errors import UserError
from speechsim_jax.measures import Measure, register

NEAREST = Measure(
    name="nearest",
    level="layer",
    summary="rows of the sample",
    function=lambda pair: float(pair.rows),
    symmetric=True,
    limits=(0.0, np.inf),
    reference="this test",
    statistic="sample",
)


@pytest.fixture(autouse=True)
def _registry():
    before = dict(measures.MEASURES)
    yield
    measures.MEASURES.clear()
    measures.MEASURES.update(before)


def test_a_registered_measure_is_one_of_all():
    assert register(NEAREST) is NEAREST
    assert NEAREST in ss.list_measures()
    assert NEAREST in measures.resolve("all").measures
    assert NEAREST not in measures.resolve("paper").measures


def test_a_measure_on_the_sample():
    register(NEAREST)
    x = np.random.default_rng(0).standard_normal((500, 64))
    result = ss.compare_activations({"x": x, "y": -x}, ["nearest"], sample_frames=100)
    assert (result.matrix("nearest").values == 100).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "my measure"}, "letters, digits and underscores"),
        ({"name": ""}, "letters, digits and underscores"),
        ({"name": "lincka"}, "already"),
        ({"name": "mincorr"}, "already"),
        ({"name": "attn_js"}, "already"),
        ({"name": "all"}, "already"),
        ({"reference": " "}, "no reference"),
    ],
)
def test_what_cannot_be_registered(change, said):
    before = ss.list_measures()
    with pytest.raises(UserError, match=said):
        register(dataclasses.replace(NEAREST, **change))
    assert ss.list_measures() == before
