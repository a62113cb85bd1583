"""Layers chosen by number, by a fraction of the depth and by a word."""

import dataclasses
import json

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.figures.curves import layer_trend, trend
from speechsim_jax.settings import layer_numbers
from tests.support.small_models import QUICK, waves

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("layers", "small", "large"),
    [
        (None, list(range(13)), list(range(25))),
        ([0, 6, -1], [0, 6, 12], [0, 6, 24]),
        (["first", "last"], [0, 12], [0, 24]),
        ([0.5], [6], [12]),
        ([0.0, 0.25, 0.5, 1.0], [0, 3, 6, 12], [0, 6, 12, 24]),
        ([1, "1"], [1], [1]),
        ([1.0, "1.0", "1."], [12], [24]),
        (["0", "0.25", ".5", "last"], [0, 3, 6, 12], [0, 6, 12, 24]),
        ([0.125], [1], [3]),  # 1.5 of 12: of two equally near ones the lower
        ([0.13], [2], [3]),
        ([0.3], [4], [7]),  # 3.6 and 7.2
        ([np.float64(0.5), np.int64(2)], [2, 6], [2, 12]),
        ([12, 0.5, -1], [6, 12], [12, 24]),
        (range(0, 3), [0, 1, 2], [0, 1, 2]),
    ],
)
def test_each_model_has_its_own_depth(layers, small, large):
    chosen = ss.Settings(layers=layers).layers
    assert list(layer_numbers(chosen, 12, "small")) == small
    assert list(layer_numbers(chosen, 24, "large")) == large


@pytest.mark.parametrize(
    ("fraction", "depth", "number"), [(0.07, 50, 3), (0.57, 50, 28), (0.5, 1, 0), (0.51, 1, 1)]
)
def test_a_fraction_is_taken_as_it_is_written(fraction, depth, number):
    assert layer_numbers((fraction,), depth, "m") == (number,)


def test_what_is_recorded_tells_a_fraction_from_a_number():
    """1 == 1.0 in Python and in JSON; a job of one must not continue as the other."""
    for number, fraction in ((0, 0.0), (1, 1.0), ("1", "1.0")):
        one, other = (ss.Settings(layers=[layer]).layers for layer in (number, fraction))
        assert one != other
        assert json.loads(json.dumps(one)) != json.loads(json.dumps(other))
    again = ss.Settings(layers=[0, 0.25, "last", -1]).layers
    assert again == (0, 0.25, "last", -1)
    assert ss.Settings(layers=json.loads(json.dumps(again))).layers == again


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (["lats"], "'lats'"), ([1.5], "1.5"), (["-0.5"], "'-0.5'"), (["1e-1"], "'1e-1'"),
        ([float("nan")], "nan"), ([True], "True"), ([None], "None"), ([[1]], r"\[1\]"),
        ([""], "''"), ("last", "'last'"), (3, "3"), ([], "empty"), (["half"], "'half'"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(layers, named):
    with pytest.raises(ss.UserError, match=named) as refused:
        ss.Settings(layers=layers)
    line = str(refused.value)
    assert line.startswith("layers ") and "0.0 to 1.0" in line and "first or last" in line
    assert "\n" not in line


def test_numbers_beyond_a_model_are_refused_by_its_name():
    with pytest.raises(ss.UserError, match="small has layers 0 to 12; `layers` asks for 13"):
        layer_numbers(ss.Settings(layers=[0.5, 13]).layers, 12, "small")


def test_models_of_two_depths_are_compared_at_the_same_depth(encoders):
    """Layers, attention blocks, and which of two models belong together."""
    shallow = encoders[0]  # of 3 layers
    config = dataclasses.replace(shallow.config, num_hidden_layers=6)
    deep = ss.random_like(dataclasses.replace(shallow, name="deep", config=config), name="deep")
    result = ss.compare(
        [shallow, deep], waves(), layers=[0.34, 0.67], measures=["lincka", "attn_js"], **QUICK
    )
    expected = [(shallow.name, 1), (shallow.name, 2), ("deep", 2), ("deep", 4)]
    for names in (result.representations, result.attention_representations):
        assert [(name.model, name.layer) for name in names] == expected
        np.testing.assert_allclose(result.relative_depths(names), [1 / 3, 2 / 3] * 2)
    assert result.transformer_layers == {shallow.name: 3, "deep": 6}
    assert result.attributes["settings"]["layers"] == [0.34, 0.67]
    for measure in ("lincka", "attn_js"):
        block = result.block(measure, shallow.name, "deep")
        _, same = trend(block)
        np.testing.assert_array_equal(same, np.diagonal(block.values))
        for axes in layer_trend(result, measure).axes:
            for line in axes.lines:
                np.testing.assert_allclose(line.get_xdata(), [1 / 3, 2 / 3])
