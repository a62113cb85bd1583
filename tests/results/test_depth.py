"""Layers of two models: which correspond, by score and by depth; floors and baselines."""

import itertools
from typing import Any

import numpy as np
import pytest

from speechsim_jax.results.depth import (
    best_match,
    block_depths,
    floors,
    head_baselines,
    match_layers,
    matched_scores,
    monotone_path,
    nearest_depth,
    relative_depth,
)
from speechsim_jax.results.reference import reference_cells
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.drawn import HEADS, SHAPES, attention_result, result_of, result_with_facts


def test_relative_depth_is_of_the_transformer_layers() -> None:
    np.testing.assert_array_equal(relative_depth([0, 1, 2, 4], 4), [0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(relative_depth(np.array([3, 6]), 12), [0.25, 0.5])
    np.testing.assert_array_equal(relative_depth([0], 0), [0])


def _of_two_depths(layers: dict[str, list[int]], **further: Any) -> SimilarityResult:
    """A result of models of 12 ("small") and 24 ("large") layers, with some of their layers."""
    names = [RepresentationName(model, layer) for model in layers for layer in layers[model]]
    rng = np.random.default_rng(0)
    return SimilarityResult.build(
        names,
        {"lincka": rng.random((len(names), len(names)))},
        attributes={
            "models": {"small": {"num_hidden_layers": 12}, "large": {"num_hidden_layers": 24}}
        },
        **further,
    )


def test_depths_of_some_layers_are_those_of_the_whole_models() -> None:
    result = _of_two_depths({"small": [0, 3, 6], "large": [6, 12]})
    assert result.transformer_layers == {"small": 12, "large": 24}
    rows, columns = block_depths(result.block("lincka", "small", "large"))
    np.testing.assert_array_equal(rows, [0, 0.25, 0.5])
    np.testing.assert_array_equal(columns, [0.25, 0.5])
    np.testing.assert_array_equal(
        result.relative_depths(result.representations), [0, 0.25, 0.5, 0.25, 0.5]
    )
    # Also of a part of it, and where it was written and read.
    part = result.select(layers=6)
    np.testing.assert_array_equal(part.relative_depths(part.representations), [0.5, 0.25])


def test_depths_of_attention_blocks_are_of_all_layers() -> None:
    heads = [RepresentationName("small", 6), RepresentationName("large", 12)]
    result = _of_two_depths(
        {"small": [6], "large": [12]},
        attention_representations=heads,
        extras={},
    )
    np.testing.assert_array_equal(result.relative_depths(result.attention_representations), 0.5)


def test_a_model_is_a_reference_by_relative_depth() -> None:
    layers = {"small": list(range(13)), "large": list(range(25))}
    matrix = _of_two_depths(layers).matrix("lincka")
    counts = {"small": 12, "large": 24}
    _, y = reference_cells(matrix, "small", True, counts)
    # 2 k of the 24 layers belongs to k of the 12; between two of them, to the lower.
    assert y[0].tolist() == [*range(13), *(k // 2 for k in range(25))]
    _, y = reference_cells(matrix, "large", True, counts)
    assert y[0].tolist() == [*range(13, 38, 2), *range(13, 38)]


def test_a_reference_lacks_layers_that_it_has_no_layer_near() -> None:
    matrix = _of_two_depths({"small": [0, 1, 6], "large": [0, 2, 5, 12]}).matrix("lincka")
    _, y = reference_cells(matrix, "large", True, {"small": 12, "large": 24})
    assert y[0].tolist() == [3, 4, 6, 3, 4, 5, 6]
    _, y = reference_cells(matrix, "small", True, {"small": 12, "large": 24})
    assert y[0].tolist() == [0, 1, 2, 0, 1, -1, 2]  # 5 of 24 is nearest to 2 or 3 of 12


def test_depths_of_a_block_are_those_of_its_axes() -> None:
    names = [RepresentationName("a", i) for i in (0, 2, 4)] + [RepresentationName("b", 3)]
    result = SimilarityResult.build(names, {"lincka": np.eye(4)})
    rows, columns = block_depths(result.block("lincka", "a", "b"))
    np.testing.assert_array_equal(rows, [0, 0.5, 1])  # not recorded: of the last that is there
    np.testing.assert_array_equal(columns, [1])
    heads = attention_result()
    rows, columns = block_depths(heads.block("attn_js", "org/tiny", "facebook/hubert-large-ll60k"))
    np.testing.assert_array_equal(rows, [0.5, 1])
    np.testing.assert_allclose(columns, np.arange(1, 25) / 24)


def test_nearest_depth_takes_the_first_of_equals() -> None:
    x, y = np.array([0, 0.5, 1]), np.array([0.0, 1.0])
    np.testing.assert_array_equal(nearest_depth(x, y), [0, 0, 1])
    np.testing.assert_array_equal(nearest_depth(y, x), [0, 2])


def test_layers_of_24_match_those_of_12_ties_down() -> None:
    large, small = np.arange(25) / 24, np.arange(13) / 12
    assert nearest_depth(large, small).tolist() == [k // 2 for k in range(25)]
    assert nearest_depth(small, large).tolist() == list(range(0, 25, 2))


def _best_by_trying(similarity: np.ndarray) -> tuple[int, float]:
    """The fewest undefined cells and the greatest sum of the others, over all rising columns."""
    rows, columns = similarity.shape
    sums = []
    for path in itertools.combinations_with_replacement(range(columns), rows):
        values = similarity[np.arange(rows), path]
        sums.append((-int(np.isnan(values).sum()), float(np.nansum(values))))
    missing, total = max(sums)
    return -missing, total


@pytest.mark.parametrize("seed", range(40))
def test_monotone_path_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(rng.integers(1, 6), rng.integers(1, 6)))
    similarity[rng.random(similarity.shape) < 0.3 * (seed % 3)] = np.nan
    path = monotone_path(similarity)
    if np.isnan(similarity).all():
        np.testing.assert_array_equal(path, -1)
        return
    assert np.all(np.diff(path) >= 0)
    values = similarity[np.arange(len(path)), path]
    missing, total = _best_by_trying(similarity)
    assert np.isnan(values).sum() == missing
    assert np.nansum(values) == pytest.approx(total, abs=1e-12)


def test_monotone_path_follows_a_diagonal_and_gives_way() -> None:
    np.testing.assert_array_equal(monotone_path(np.eye(4)), [0, 1, 2, 3])
    np.testing.assert_array_equal(monotone_path(np.ones((3, 4))), [0, 0, 0])
    reversed_layers = np.array([[0.0, 0, 0.5], [0, 0.9, 0], [0.5, 0, 0]])
    assert best_match(reversed_layers).tolist() == [2, 1, 0]
    assert monotone_path(reversed_layers).tolist() == [0, 1, 1]


def test_best_match_where_scores_are_not_defined() -> None:
    assert best_match(np.array([[np.nan, 1.0], [np.nan, np.nan]])).tolist() == [1, -1]
    values = np.array([[0.5, np.nan], [0.25, 0.75]])
    np.testing.assert_array_equal(matched_scores(values, np.array([0, -1])), [0.5, np.nan])


def test_layers_of_two_models() -> None:
    values = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    depths = relative_depth([0, 1, 2], 2), relative_depth([0, 1], 1)
    matches = match_layers(values, *depths)
    assert matches.best.tolist() == [0, 1, 0]
    assert matches.same.tolist() == [0, 0, 1]
    assert matches.path is not None and matches.path.tolist() == [0, 1, 1]
    far = match_layers(values, *depths, higher_is_closer=False)  # distances
    assert far.best.tolist() == [1, 0, 1] and far.same.tolist() == [0, 0, 1]
    assert far.path is not None and far.path.tolist() == [1, 1, 1]
    assert values[0, 0] == 0.9  # the input is not written to


def test_layers_of_one_model_are_not_matched_with_themselves() -> None:
    values = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.3], [0.4, 0.3, 1.0]])
    depth = relative_depth([0, 1, 2], 2)
    matches = match_layers(values, depth, depth, same_model=True)
    assert matches.best.tolist() == [2, 2, 0]
    assert matches.same.tolist() == [1, 2, -1]  # the next layer
    assert matches.path is None
    np.testing.assert_array_equal(np.diagonal(values), 1)
    alone = match_layers(np.ones((1, 1)), np.zeros(1), np.zeros(1), same_model=True)
    assert alone.best.tolist() == alone.same.tolist() == [-1]


def test_floors_are_on_the_scale_of_their_scores() -> None:
    result = result_with_facts(SHAPES["four"])
    data = result.dataset
    by_name = {floor.name: floor for floor in floors(data)}
    assert list(by_name) == ["lincka", "linreg", "mean squared svcca_rho"]
    np.testing.assert_array_equal(by_name["lincka"].floor, data["lincka_floor"])
    assert by_name["lincka"].scores is not None and by_name["linreg"].scores is not None
    np.testing.assert_array_equal(by_name["lincka"].scores, data["lincka"])
    # linreg is the root of r², whose floor is known.
    np.testing.assert_allclose(by_name["linreg"].floor, np.sqrt(data["linreg_r2_floor"].values))
    np.testing.assert_array_equal(by_name["linreg"].scores, data["linreg"])
    squares = by_name["mean squared svcca_rho"].scores
    np.testing.assert_allclose(squares, np.nanmean(data["svcca_rho"].values ** 2, axis=2))
    without = floors(data.drop_vars(["linreg", "lincka"]))
    assert [(floor.name, floor.scores is None) for floor in without] == [
        ("lincka", True),
        ("linreg_r2", True),
        ("mean squared svcca_rho", False),
    ]
    np.testing.assert_array_equal(without[1].floor, data["linreg_r2_floor"])
    assert floors(result_of(SHAPES["four"]).dataset) == []


def test_baselines_are_means_over_the_heads_of_a_layer() -> None:
    result = attention_result()
    diagonal, shift = head_baselines(result.dataset, "attn_js")
    assert "mean over" in diagonal.name and "half an utterance" in shift.name
    values = result.dataset["attn_js_baseline"].values  # [layer, baseline, head]
    for kind, baseline in enumerate((diagonal, shift)):
        assert baseline.scores.dims == ("x_attention",)
        np.testing.assert_allclose(baseline.scores, np.nanmean(values[:, kind], axis=1), rtol=1e-6)
    assert len(diagonal.scores) == sum(depth for depth, _ in HEADS.values())
    assert head_baselines(result.dataset, "attn_frobenius") == []
