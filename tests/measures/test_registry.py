"""The registry: measures of one's own (docs/extending.md has a whole example), and records."""

import dataclasses
import inspect
import math
import re

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


ATTENDED = dataclasses.replace(
    NEAREST,
    name="same_diagonal",
    level="attention",
    statistic="attention",
    needs="distance",
    limits=(-np.inf, 0.0),
    function=lambda pair: float(-pair.means.distance.mean()),
    details=lambda pair: {"same_diagonal_far": ("head_x", pair.means.distance.max(axis=1))},
    higher_is_closer=False,
    inflated_by_few_rows=True,
)


def test_an_attention_measure_of_ones_own():
    register(ATTENDED)
    assert ATTENDED not in measures.resolve("all").measures  # attention is costly: only if named
    assert ATTENDED in measures.resolve("all", ["attention"]).measures
    maps = np.random.default_rng(0).dirichlet(np.ones(6), size=(3, 6))
    result = ss.compare_attentions({"x/1": [maps], "y/1": [maps[:2]]}, ["same_diagonal"])
    matrix = result.matrix("same_diagonal")
    assert matrix.dims == ("x_attention", "y_attention")
    apart = np.linalg.norm(maps[:, None] - maps, axis=(2, 3))
    np.testing.assert_allclose(matrix.values[0, 1], -apart[:, :2].mean(), rtol=1e-6)
    far = result.dataset["same_diagonal_far"]
    assert far.dims == ("x_attention", "y_attention", "head_x")
    np.testing.assert_allclose(far.values[1, 0, :2], apart[:2].max(axis=1), rtol=1e-6)
    assert np.isnan(far.values[1, 0, 2])


def test_a_result_knows_what_a_measure_is():
    register(ATTENDED)
    maps = np.random.default_rng(0).dirichlet(np.ones(6), size=(3, 6))
    result = ss.compare_attentions({"x/1": [maps]}, ["same_diagonal", "attn_js"])
    own, shipped = result.definition("same_diagonal"), result.definition("attn_js")
    assert (own["higher_is_closer"], own["inflated_by_few_rows"]) == (False, True)
    assert (shipped["higher_is_closer"], shipped["inflated_by_few_rows"]) == (True, False)
    assert own["statistic"] == shipped["statistic"] == "attention"


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_what_cannot_be_registered(change, message):
    before = ss.list_measures()
    with pytest.raises(UserError, match=message):
        register(dataclasses.replace(NEAREST, **change))
    assert ss.list_measures() == before


# --- docstrings agree with records ---

# The functions of attention measures are made of others, which have the docstrings.
FUNCTIONS = {
    name: measure for name, measure in measures.MEASURES.items() if measure.statistic != "attention"
}
_ENDS = {"0": 0.0, "1": 1.0, "-1": -1.0, "pi / 2": math.pi / 2}


def _docstring(measure: Measure) -> str:
    return inspect.getdoc(measure.function) or ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_range_and_symmetry_in_the_docstring_are_those_of_the_record(name):
    measure = FUNCTIONS[name]
    words = re.findall(r"\ba?symmetric\b", _docstring(measure).lower())
    assert set(words) == {"symmetric" if measure.symmetric else "asymmetric"}
    if interval := re.search(r"\bin \[([^,]+), ([^\]]+)\]", _docstring(measure), re.IGNORECASE):
        assert (_ENDS[interval[1]], _ENDS[interval[2]]) == measure.limits


@pytest.mark.parametrize("measure", ss.list_measures(), ids=lambda measure: measure.name)
def test_references_name_author_and_year(measure):
    """Or that the definition is this package's own."""
    assert re.search(r"^[A-Za-z].* (18|19|20)\d\d\b|^this package$", measure.reference)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_names_the_author_of_the_record(name):
    reference = FUNCTIONS[name].reference
    author = reference.removeprefix("after ").split()[0]
    assert reference == "this package" or author in _docstring(FUNCTIONS[name])
