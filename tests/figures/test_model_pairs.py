"""Pairs of models, closest first."""

import importlib
import unittest.mock

import numpy as np
import pytest
import scipy.stats

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.results.model_scores import ModelScores, ranked_pairs
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.drawn import SHAPES, assert_readable, drawn_texts, result_of


def points_of(figure):
    (axes,) = figure.axes
    return [line for line in axes.lines if line.get_gid() != "interval"]


@pytest.fixture(scope="module")
def sure():
    """Of a, b and c, which are alike, and d, which is not."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(30), 60)
    shared = rng.standard_normal((30, 8))[speaker] + rng.standard_normal((len(speaker), 8))
    noise = rng.standard_normal((4, *shared.shape))
    arrays = {f"{name}/0": shared + 0.5 * own for name, own in zip("abc", noise)}
    arrays["d/0"] = shared[:, :1] + noise[3]
    return ss.compare_activations(arrays, ["lincka"], errors=True, groups=speaker)


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
    # Without standard errors nothing is known to differ, or not to, and nothing is said of it.
    assert {point.get_markerfacecolor() for point in points} == {"black"}
    assert not any("filled" in text.get_text() for text in drawn_texts(figure))


def test_intervals_and_which_pairs_differ(sure):
    scores = ModelScores(sure, "lincka")
    pairs = ranked_pairs(scores)
    figure = figures.model_pairs(sure, "lincka")
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_gid() == "interval"]
    for bar, pair in zip(bars, pairs, strict=True):
        ends = [pair.mean.value - pair.mean.half, pair.mean.value + pair.mean.half]
        np.testing.assert_allclose(bar, ends)
    points = points_of(figure)
    far = ["d" in (pair.x, pair.y) for pair in pairs]
    assert far == [False] * 3 + [True] * 3
    assert [point.get_markerfacecolor() == "white" for point in points][3:] == far[3:]
    for point, differs in zip(points[1:], scores.distinguished(pairs[0], pairs[1:]), strict=True):
        assert point.get_gid() == ("differs" if differs else "alike")
    texts = " ".join(text.get_text() for text in drawn_texts(figure)).replace("\n", " ")
    assert "filled: not found to differ" in texts and "false discovery rate 5 %" in texts


def test_pairs_are_tested_together(sure):
    """Their q-values decide: of unsure differences more are needed than of one alone."""
    scores = ModelScores(sure, "lincka")
    first, *others = ranked_pairs(scores)
    weights = [scores.of_pair(pair.x, pair.y) for pair in (first, *others)]
    labelled = [sure.matrix("lincka").copy(data=weights[0] - other) for other in weights[1:]]
    p = np.array([sure.contrast("lincka", weights=of).p for of in labelled])
    expected = scipy.stats.false_discovery_control(p) <= 0.05
    assert scores.distinguished(first, others) == expected.tolist()
    # Alone the first two would differ (p = 0.03, 0.04); of four, 0.08 of them would be false.
    drawn = [ss.Contrast(t, 1.0, 1e9) for t in (2.17, 2.054, 0.6, 0.5)]
    drawn.append(ss.Contrast(1.0, np.nan, 29))
    with unittest.mock.patch.object(ModelScores, "_contrast", side_effect=drawn):
        assert scores.distinguished(first, others) == [False] * 4 + [None]


def test_copies_of_a_model_do_not_differ():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(12), 20)
    rows = rng.standard_normal((240, 4))
    arrays = {f"{name}/0": rows for name in "abc"} | {"d/0": rows + rng.standard_normal((240, 4))}
    result = ss.compare_activations(arrays, ["lincka"], errors=True, groups=speaker)
    scores = ModelScores(result, "lincka")
    first, *others = ranked_pairs(scores)
    assert [pair.mean.value for pair in (first, *others)[:3]] == pytest.approx([1.0] * 3)
    assert scores.distinguished(first, others) == [False, False, True, True, True]


def test_others_are_held_against_the_closest_of_trained_models(sure):
    module = importlib.import_module("speechsim_jax.figures.model_pairs")
    pairs = ranked_pairs(ModelScores(sure, "lincka"))
    closest = pairs[0]
    with unittest.mock.patch.object(module, "untrained_models", lambda result: [closest.x]):
        figure = figures.model_pairs(sure, "lincka")
    assert any("pair of trained models" in text.get_text() for text in drawn_texts(figure))
    trained = [k for k, pair in enumerate(pairs) if closest.x not in (pair.x, pair.y)]
    assert points_of(figure)[trained[0]].get_gid() == "alike"


def test_what_is_not_known_is_grey(sure):
    known = ModelScores.distinguished

    def distinguished(scores, one, others):
        found = zip(others, known(scores, one, others))
        return [None if "d" in (pair.x, pair.y) else differs for pair, differs in found]

    with unittest.mock.patch.object(ModelScores, "distinguished", distinguished):
        figure = figures.model_pairs(sure, "lincka")
    faces = [point.get_markerfacecolor() for point in points_of(figure)]
    assert set(faces[3:]) == {"#b5b5b5"} and "#b5b5b5" not in faces[:3]
    assert any("grey: not known" in text.get_text() for text in drawn_texts(figure))


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


def of_scores(values: np.ndarray, models: str) -> SimilarityResult:
    names = [RepresentationName(model, 0) for model in models]
    definition = {"lincka": {"symmetric": True, "level": "layer"}}
    return SimilarityResult.build(names, {"lincka": values}, measures=definition)


def test_what_whole_models_are_drawn_as(tmp_path):
    values = np.full((4, 4), 0.5) + 0.5 * np.eye(4)

    def written(scores: np.ndarray, models: str = "abcd") -> set[str]:
        paths = figures.save_figures(of_scores(scores, models), tmp_path / "figures")
        return {path.stem for path in paths} - {"heatmap_lincka"}

    assert written(values) == {"plane_lincka", "pairs_lincka"}
    assert written(values[:2, :2], "ab") == set()
    constant = values.copy()
    constant[:2], constant[:, :2] = np.nan, np.nan
    assert written(constant) == {"pairs_lincka"}  # two layers are no plane
    within = np.where(np.eye(4, dtype=bool), 1, np.nan)
    assert written(within) == set()
