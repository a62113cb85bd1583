"""Layers as points of a plane."""

import numpy as np
import pytest

from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.figures.plane import scaled, squared_distances
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.drawn import SHAPES, assert_readable, drawn_texts, result_of


def of_points(points: np.ndarray, distance: bool = False) -> SimilarityResult:
    """Of two models, whose layers have these places: inner products, or distances."""
    names = [RepresentationName("ab"[k % 2 == 1], k // 2) for k in range(len(points))]
    order = sorted(range(len(points)), key=lambda k: str(names[k]))
    points = points[order]
    values = points @ points.T
    if distance:
        values = np.linalg.norm(points[:, None] - points, axis=2)
    definition = {"higher_is_closer": not distance, "symmetric": True}
    return SimilarityResult.build(
        [names[k] for k in order], {"m": values}, measures={"m": definition}
    )


@pytest.mark.parametrize("distance", [False, True])
def test_distances_in_a_plane_are_kept(distance):
    points = np.random.default_rng(0).standard_normal((8, 2))
    figure = figures.plane(of_points(points, distance), "m")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if "first" not in line.get_gid()]
    drawn = np.concatenate([line.get_xydata() for line in lines])
    expected = np.concatenate([points[::2], points[1::2]])
    apart, wanted = (np.linalg.norm(of[:, None] - of, axis=2) for of in (drawn, expected))
    np.testing.assert_allclose(apart, wanted, atol=1e-7)
    assert [line.get_gid() for line in axes.lines] == ["a", "a, first", "b", "b, first"]
    assert any("100%" in text.get_text() for text in drawn_texts(figure))
    assert axes.get_aspect() == 1.0


def test_what_is_not_in_the_plane_is_said():
    points = np.random.default_rng(1).standard_normal((9, 5))
    centred = points - points.mean(axis=0)
    values = np.square(np.linalg.svd(centred, compute_uv=False))
    _, share = scaled(squared_distances(points @ points.T, True))
    assert share == pytest.approx(values[:2].sum() / values.sum())


def test_both_directions_count():
    values = np.array([[1.0, 0.8], [0.4, 1.0]])
    np.testing.assert_allclose(squared_distances(values, True), [[0, 0.8], [0.8, 0]], atol=1e-12)
    np.testing.assert_allclose(squared_distances(values - np.eye(2), False)[0, 1], 0.36)


def test_points_that_are_one():
    points, share = scaled(np.zeros((4, 4)))
    assert (points == 0).all() and share == 1


@pytest.mark.parametrize("name", ["four", "one-model", "paper", "unequal"])
def test_every_shape_is_readable(name):
    assert_readable(figures.plane(result_of(SHAPES[name]), "maxcorr"))


def test_a_constant_layer_is_left_out():
    result = result_of({"a": 3, "b": 3})
    values = result.matrix("lincka").values.copy()
    values[1], values[:, 1] = np.nan, np.nan
    names = list(result.representations)
    figure = figures.plane(SimilarityResult.build(names, {"lincka": values}), "lincka")
    assert [len(line.get_xydata()) for line in figure.axes[0].lines] == [2, 1, 3, 1]


def test_what_has_no_plane():
    with pytest.raises(UserError, match="at least 3 layers"):
        figures.plane(result_of({"a": 1, "b": 1}), "lincka")
    result = result_of({"a": 2, "b": 2})
    values = result.matrix("lincka").values.copy()
    values[0, 1] = np.nan
    partial = SimilarityResult.build(list(result.representations), {"lincka": values})
    with pytest.raises(UserError, match="all pairs of layers"):
        figures.plane(partial, "lincka")


def test_tracks_are_no_layers_of_models():
    names = [RepresentationName(model, k) for model in ("a", "b") for k in range(2)]
    names.append(RepresentationName("phone", 0))
    values = np.eye(5) / 2 + 0.5
    result = SimilarityResult.build(names, {"lincka": values}, attributes={"tracks": {"phone": {}}})
    assert result.tracks == ("phone",)
    lines = figures.plane(result, "lincka").axes[0].lines
    assert {line.get_gid().split(",")[0] for line in lines} == {"a", "b"}
