"""Curves over depth: the best layer of another model, and facts of the representations."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.drawn import (
    PAPER,
    SHAPES,
    UNEQUAL,
    assert_readable,
    attention_result,
    axes_of,
    drawn_texts,
    result_of,
    result_with_facts,
)


def test_trend_is_best_layer_and_layer_at_the_same_depth() -> None:
    values = np.arange(25.0).reshape(5, 5) % 7
    representations = [RepresentationName("a", i) for i in range(3)] + [
        RepresentationName("b", i) for i in range(2)
    ]
    result = SimilarityResult.build(
        representations,
        {"maxcorr": values, "angle": values},
        measures={"angle": {"higher_is_closer": False}},
    )
    first, second = (axes for axes in figures.layer_trend(result, "maxcorr").axes)
    lines = {line.get_gid(): line for line in first.lines}
    np.testing.assert_array_equal(lines["best"].get_xdata(), [0, 0.5, 1])
    np.testing.assert_array_equal(lines["best"].get_ydata(), values[:3, 3:].max(axis=1))
    same = [values[0, 3], values[1, 3], values[2, 4]]
    np.testing.assert_array_equal(lines["same"].get_ydata(), same)
    back = {line.get_gid(): line for line in second.lines}
    np.testing.assert_array_equal(back["best"].get_ydata(), values[3:, :3].max(axis=1))
    np.testing.assert_array_equal(back["same"].get_ydata(), [values[3, 0], values[4, 2]])
    assert lines["same"].get_linestyle() == "--" and lines["best"].get_linestyle() == "-"
    near = figures.layer_trend(result, "angle").axes[0].lines[0]
    np.testing.assert_array_equal(near.get_ydata(), values[:3, 3:].min(axis=1))


def test_trend_of_one_model_leaves_self_similarity_out() -> None:
    result = result_of({"a": 4})
    values = result.matrix("lincka").values
    (axes,) = figures.layer_trend(result, "lincka").axes
    best, following = (line.get_ydata() for line in axes.lines)
    np.testing.assert_array_equal(best, (values - 2 * np.eye(4)).max(axis=1))
    np.testing.assert_array_equal(following, [*np.diagonal(values, 1), np.nan])


def test_trend_with_undefined_cells() -> None:
    values = np.full((4, 4), np.nan)
    values[0, 2] = 0.5
    representations = [RepresentationName(m, i) for m in "ab" for i in range(2)]
    result = SimilarityResult.build(representations, {"lincka": values})
    line = figures.layer_trend(result, "lincka").axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan])


@pytest.mark.parametrize("shape", ["four", "one-model", "paper", "unequal"])
def test_trend_text_is_readable(shape: str) -> None:
    models = SHAPES[shape]
    figure = figures.layer_trend(result_of(models), "maxcorr")
    assert_readable(figure)
    assert len(figure.axes) == len(models)
    others = 1 if len(models) == 1 else len(models) - 1
    assert {len(axes.lines) for axes in figure.axes} == {2 * others}


def test_trend_survives_grey_and_colour_blindness() -> None:
    figure = figures.layer_trend(result_of(UNEQUAL), "maxcorr")
    (legend,) = figure.legends
    (panel, *_) = figure.axes
    solid = [line for line in panel.lines if line.get_gid() == "best"]
    assert len({line.get_marker() for line in solid}) == len(solid)
    assert len({to_hex(line.get_color()) for line in solid}) == len(solid)
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "y: log-mel" and labels[-2] == "best layer of y"
    assert len(labels) == len(UNEQUAL) + 2


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5, 12])
def test_long_names_are_whole_over_panels_and_in_legends(count: int) -> None:
    names = [
        f"organisation/model-{'with-a-name' * 2}-of-forty-characters{k:02}" for k in range(count)
    ]
    models = dict.fromkeys(names, 4)
    for figure in (
        figures.layer_trend(result_of(models), "maxcorr"),
        figures.facts(result_with_facts(models)),
    ):
        assert_readable(figure)
        texts = {t.get_text().replace("\n", "") for t in drawn_texts(figure)}
        for name in names:
            short = name.rpartition("/")[2]
            assert {short, f"y: {short}"} & texts
            if "maxcorr" in texts:
                assert f"x: {short}" in texts


def test_a_name_wider_than_the_page_is_broken_in_the_legend() -> None:
    name = "one-" * 40 + "end"
    figure = figures.layer_trend(result_of({name: 3, "b": 3, "c": 2}), "maxcorr")
    assert_readable(figure)
    assert f"y: {name}" in {t.get_text().replace("\n", "") for t in drawn_texts(figure)}


def test_trend_needs_layers() -> None:
    with pytest.raises(UserError, match="at least two layers"):
        figures.layer_trend(result_of(SHAPES["two"]), "lincka")


def test_attention_measures_have_maps_and_trends() -> None:
    result = attention_result()
    figure = figures.plot(result, "attn_js")
    assert_readable(figure)
    (image,) = axes_of(figure, "map").images
    np.testing.assert_array_equal(image.get_array(), result.matrix("attn_js"))
    assert axes_of(figure, "map").get_ylabel() == "row x (layer)"
    trend = figures.layer_trend(result, "attn_js")
    assert_readable(trend)
    expected = result.dataset["attn_js_baseline"].values
    lines = [line for line in trend.axes[1].lines if "mean over" in str(line.get_gid())]
    assert len(lines) == 1 and lines[0].get_linestyle() == ":"
    np.testing.assert_allclose(lines[0].get_ydata(), expected[12:36, 0].mean(1), rtol=1e-6)
    (tiny,) = [line for line in trend.axes[2].lines if "half" in str(line.get_gid())]
    np.testing.assert_allclose(tiny.get_ydata(), expected[36:, 1, 0], rtol=1e-6)
    labels = [text.get_text() for text in trend.legends[0].get_texts()]
    assert labels[-2:] == [lines[0].get_gid(), tiny.get_gid()]


def test_trend_label_is_clear_of_the_widest_number() -> None:
    values = np.linspace(0.99971, 0.99997, 16).reshape(4, 4)
    representations = [RepresentationName(m, i) for m in "ab" for i in range(2)]
    figure = figures.layer_trend(
        SimilarityResult.build(representations, {"attn_js": values}), "attn_js"
    )
    assert_readable(figure)
    numbers = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert max(map(len, numbers)) >= len("0.99725")


# --- facts ---


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["four", "one-model", "paper", "unequal"])
def test_facts_text_is_readable(shape: str) -> None:
    assert_readable(figures.facts(result_with_facts(SHAPES[shape])))


def test_facts_are_those_of_the_representations() -> None:
    result = result_with_facts(PAPER)
    panels = {axes.get_title(): axes for axes in figures.facts(result).axes}
    assert list(panels) == [
        "rank, svcca_directions",
        "condition",
        "dead_neurons",
        "outlier_share",
        "mean_to_std",
        "lincka, its floor",
        "linreg, its floor",
        "mean squared svcca_rho, its floor",
    ]
    model, where = "facebook/hubert-large-ll60k", slice(13, 37)
    data = {
        title: [line for line in axes.lines if line.get_gid() == model]
        for title, axes in panels.items()
    }
    values = {title: [line.get_ydata() for line in lines] for title, lines in data.items()}
    part = result.dataset.isel(x=where)
    for name in ("condition", "dead_neurons", "outlier_share", "mean_to_std"):
        np.testing.assert_array_equal(values[name], [part[name]])
    directions = [part["rank"], part["svcca_directions"]]
    np.testing.assert_array_equal(values["rank, svcca_directions"], directions)
    others = np.r_[0:13, 37:74]
    score = result.matrix("lincka").values[where][:, others].mean(axis=1)
    floor = part["lincka_floor"].values[:, others].mean(axis=1)
    np.testing.assert_allclose(values["lincka, its floor"], [score, floor])
    root = np.sqrt(part["linreg_r2_floor"].values)[:, others].mean(axis=1)
    np.testing.assert_allclose(values["linreg, its floor"][1], root)
    squares = np.nanmean(part["svcca_rho"].values ** 2, axis=2)[:, others].mean(axis=1)
    np.testing.assert_allclose(values["mean squared svcca_rho, its floor"][0], squares)
    assert panels["condition"].get_yscale() == "log" != panels["outlier_share"].get_yscale()
    first, second = data["lincka, its floor"]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")


def test_facts_of_one_model_leave_self_similarity_out() -> None:
    result = result_with_facts({"a": 5})
    axes = next(a for a in figures.facts(result).axes if a.get_title() == "lincka, its floor")
    values = result.matrix("lincka").values
    expected = (values.sum(axis=1) - 1) / 4
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)


def test_counts_start_at_zero() -> None:
    result = result_with_facts(PAPER)
    result.dataset["dead_neurons"].values[:] = 0
    panels = {axes.get_title(): axes for axes in figures.facts(result).axes}
    assert panels["dead_neurons"].get_ylim() == (0, 1)
    low, high = panels["rank, svcca_directions"].get_ylim()
    assert 100 < low < 300 and high > 767  # the others keep their range


def test_facts_that_are_missing_are_left_out() -> None:
    result = result_with_facts(PAPER, "mean_to_std", "rank", "svcca_rho", "lincka_floor")
    titles = [axes.get_title() for axes in figures.facts(result).axes]
    assert titles[:3] == ["condition", "dead_neurons", "outlier_share"] and len(titles) == 4
    with pytest.raises(UserError, match="no facts to draw"):
        figures.facts(result_of(PAPER))
    with pytest.raises(UserError, match="no model has two layers"):
        figures.facts(result_with_facts(SHAPES["two"]))


def test_bands_are_the_intervals_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 30)
    x = rng.standard_normal((12, 4))[groups] + rng.standard_normal((360, 4))
    layers = {f"{m}/{k}": x + k * rng.standard_normal((360, 4)) for m in "ab" for k in (0, 1, 2)}
    result = ss.compare_activations(layers, ["lincka"], errors=True, groups=groups)
    figure = figures.layer_trend(result, "lincka")
    axes = figure.axes[0]
    lines = {line.get_gid(): line.get_ydata() for line in axes.lines}
    best, same = (band for band in axes.collections if band.get_gid() == "band")
    block = result.block("lincka", "a", "b").values
    low, high = result.interval("lincka").values[:, :3, 3:]
    column = block.argmax(axis=1)
    for band, columns, line in ((best, column, "best"), (same, np.arange(3), "same")):
        ends = band.get_datalim(axes.transData)
        at = np.arange(3), columns
        assert ends.y0 == pytest.approx(low[at].min()) and ends.y1 == pytest.approx(high[at].max())
        np.testing.assert_allclose(lines[line], block[at])
    assert any("12 groups" in text.get_text() for text in figure.texts)
    plain = ss.compare_activations(layers, ["lincka"])
    assert not figures.layer_trend(plain, "lincka").axes[0].collections


def test_a_trend_of_pairs_within_models_has_no_other_models() -> None:
    result = result_of(UNEQUAL)
    matrix = result.dataset["lincka"]
    models = list(dict.fromkeys(matrix["x_model"].values.tolist()))
    matrix.values[matrix["x_model"].values[:, None] != matrix["y_model"].values] = np.nan
    panels = figures.layer_trend(result, "lincka").axes
    for axes, model in zip(panels, models, strict=True):
        assert {line.get_label() for line in axes.lines} == {model}
