"""Pairs of models, closest first."""

import numpy as np
import pytest

from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.results.model_scores import ModelScores, ranked_pairs
from tests.support.clustered import clustered_result
from tests.support.drawn import SHAPES, assert_readable, drawn_texts, result_of


def points_of(figure):
    (axes,) = figure.axes
    return [line for line in axes.lines if line.get_gid() != "interval"]


def test_pairs_in_order_and_their_means():
    result = result_of({"org/a": 3, "b": 2, "c": 4})
    expected = ranked_pairs(ModelScores(result, "maxcorr"))
    figure = figures.model_pairs(result, "maxcorr")
    points = points_of(figure)
    assert [point.get_xdata()[0] for point in points] == [pair.mean.value for pair in expected]
    places = [point.get_ydata()[0] for point in points]
    assert places == sorted(places) and figure.axes[0].yaxis_inverted()
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [f"{pair.x.removeprefix('org/')}, {pair.y}" for pair in expected]
    # Without standard errors nothing is known to differ, or not to.
    assert [point.get_gid() for point in points] == ["alike", "not known", "not known"]
    assert not any("filled" in text.get_text() for text in drawn_texts(figure))


def test_intervals_and_which_pairs_differ():
    result = clustered_result()
    scores = ModelScores(result, "lincka")
    pairs = ranked_pairs(scores)
    figure = figures.model_pairs(result, "lincka")
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_gid() == "interval"]
    for bar, pair in zip(bars, pairs, strict=True):
        np.testing.assert_allclose(
            bar, [pair.mean.value - pair.mean.half, pair.mean.value + pair.mean.half]
        )
    for point, pair in zip(points_of(figure)[1:], pairs[1:], strict=True):
        differs = scores.estimate(pairs[0].weights - pair.weights).differs
        assert point.get_gid() == ("differs" if differs else "alike")
        assert (point.get_markerfacecolor() == "white") == differs


@pytest.mark.parametrize("name", ["two", "paper", "unequal"])
def test_every_shape_is_readable(name):
    assert_readable(figures.model_pairs(result_of(SHAPES[name]), "lincka"))


def test_of_many_pairs_the_closest_are_drawn():
    figure = figures.model_pairs(result_of(SHAPES["many"]), "lincka")
    assert len(points_of(figure)) == 40
    assert any("the closest 40 of 1770 pairs" in text.get_text() for text in drawn_texts(figure))


def test_a_model_alone_has_no_pairs():
    with pytest.raises(UserError, match="no two models"):
        figures.model_pairs(result_of({"a": 4}), "lincka")
