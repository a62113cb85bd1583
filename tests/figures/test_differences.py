"""Figures that compare two things: models, results, the heads of layers."""

import numpy as np
import pytest

from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.figures import style as drawing
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.settings import FIGURE_STYLES
from tests.support.drawn import (
    HEADS,
    PAPER,
    SHAPES,
    assert_readable,
    attention_result,
    axes_of,
    result_of,
)

# --- fine-tuned against pretrained ---


@pytest.mark.parametrize("style", FIGURE_STYLES)
def test_finetuned_against_pretrained(style: str) -> None:
    result = result_of({"hubert-large": 6, "org/hubert-large-ft": 6, "other": 2})
    names = ("org/hubert-large-ft", "hubert-large")
    figure = figures.finetuned(result, "maxcorr", *names, style=style)
    assert_readable(figure)
    assert figure.get_figwidth() <= 7
    axes, panel = axes_of(figure, "map"), axes_of(figure, "same layer")
    block = result.matrix("maxcorr").values[:6, 6:12]  # rows pretrained
    np.testing.assert_array_equal(axes.images[0].get_array(), block)
    (curve,) = panel.lines
    np.testing.assert_array_equal(curve.get_xdata(), np.diagonal(block))
    np.testing.assert_array_equal(curve.get_ydata(), range(6))
    assert panel.get_ylim() == axes.get_ylim()  # row by row
    of_panel, of_map = panel.get_position(), axes.get_position()
    assert (of_panel.y0, of_panel.height) == pytest.approx((of_map.y0, of_map.height))
    assert axes_of(figure, "bar").get_position().x1 < of_panel.x0
    low, high = panel.get_xlim()
    assert low <= np.diagonal(block).min() and np.diagonal(block).max() <= high
    assert (axes.images[0].get_cmap() == drawing.PUBLISHED) == (style == "paper")


def test_finetuned_with_other_layers() -> None:
    """The same layer is that of the same number."""
    result = result_of({"a": 5, "b": 5})
    chosen = [
        representation
        for representation in result.representations
        if str(representation) not in ("a/1", "b/0", "b/4")
    ]
    places = [result.representations.index(representation) for representation in chosen]
    values = result.matrix("lincka").values[np.ix_(places, places)]
    some = SimilarityResult.build(chosen, {"lincka": values})
    (curve,) = axes_of(figures.finetuned(some, "lincka", "b", "a"), "same layer").lines
    np.testing.assert_array_equal(curve.get_ydata(), [1, 2])  # rows of layers 2 and 3
    expected = result.matrix("lincka").sel(x=["a/2", "a/3"], y=["b/2", "b/3"])
    np.testing.assert_array_equal(curve.get_xdata(), np.diagonal(expected))


def test_finetuned_refuses_what_it_cannot_draw() -> None:
    result = result_of({"a": 2, "b": 2})
    with pytest.raises(UserError, match="a is given twice"):
        figures.finetuned(result, "lincka", "a", "a")
    with pytest.raises(UserError, match="no model 'c'"):
        figures.finetuned(result, "lincka", "c", "a")
    with pytest.raises(UserError, match=r"at least 4\.5 in, not 3\.5"):
        figures.finetuned(result, "lincka", "b", "a", width=3.5)
    representations = [RepresentationName("a", 0), RepresentationName("b", 1)]
    apart = SimilarityResult.build(representations, {"lincka": np.eye(2)})
    with pytest.raises(UserError, match="b and a have no layer in common under lincka"):
        figures.finetuned(apart, "lincka", "b", "a")


# --- differences ---


def test_difference_of_two_results() -> None:
    first, second = result_of(PAPER), result_of(PAPER, seed=1)
    figure = figures.difference(first, second, "maxcorr", names=("clean", "noisy"))
    assert_readable(figure)
    axes = axes_of(figure, "map")
    (image,) = axes.images
    expected = first.matrix("maxcorr").values - second.matrix("maxcorr").values
    np.testing.assert_array_equal(image.get_array(), expected)
    low, high = image.get_clim()
    assert low == -high and np.abs(expected).max() <= high <= 1.25 * np.abs(expected).max()
    assert image.get_cmap() == drawing.DIFFERENCES
    bar = axes_of(figure, "bar").get_ylabel()
    assert bar == "maxcorr, clean minus noisy\nrow x accounted for by column y"
    caption = next(t.get_text() for t in figure.texts if t.get_gid() == "caption")
    data = "2,703,511 frames, 2,703 utterances, random weights"
    assert "dash: below zero" in caption and f"clean: {data}" in " ".join(caption.split())
    # What has another order is the same.
    turned = second.select(list(PAPER)[::-1])
    again = axes_of(figures.difference(first, turned, "maxcorr"), "map").images[0]
    np.testing.assert_array_equal(again.get_array(), expected)


def test_difference_is_read_without_colour() -> None:
    """A dash in every cell below zero, but for those that are nearly white; none above."""
    first, second = result_of(SHAPES["four"]), result_of(SHAPES["four"], seed=1)
    figure = figures.difference(first, second, "lincka")
    axes = axes_of(figure, "map")
    values = np.asarray(axes.images[0].get_array())
    (dashes,) = [c for c in axes.collections if c.get_gid() == "below zero"]
    places = {(int(row), int(column)) for column, row in dashes.get_offsets()}
    high = axes.images[0].get_clim()[1]
    assert places == set(zip(*np.nonzero(values < -0.05 * high), strict=True)) and places
    for colour, place in zip(dashes.get_edgecolors(), sorted(places), strict=True):
        cell = np.array(axes.images[0].to_rgba(values[place])[:3]) @ [0.299, 0.587, 0.114]
        assert abs(colour[:3] @ [0.299, 0.587, 0.114] - cell) > 0.45  # seen on its cell
    light = drawing.DIFFERENCES(np.linspace(0, 1, 65))[:, :3] @ [0.299, 0.587, 0.114]
    assert light.argmax() in (31, 32, 33)
    assert np.diff(light[:32]).min() > 0 > np.diff(light[33:]).max()  # darker away from zero


def test_difference_of_two_blocks_of_one_result() -> None:
    result = result_of({"trained": 3, "other": 4, "random:trained": 3})
    first, second = result.select("trained"), result.select("random:trained")
    figure = figures.difference(first, second, "lincka", names=("trained", "untrained"))
    assert_readable(figure)
    values = result.matrix("lincka").values
    expected = values[:3, :3] - values[7:, 7:]
    np.testing.assert_array_equal(axes_of(figure, "map").images[0].get_array(), expected)
    texts = [t.get_text() for t in figure.texts]
    assert texts[0] == "Linear CKA: trained minus untrained"
    assert "trained minus random:trained" in " ".join(texts[1].split())


def test_difference_of_attention_with_undefined_cells() -> None:
    first, second = attention_result(), attention_result()
    second.dataset["attn_js"].values[3, 4] = np.nan
    axes = axes_of(figures.difference(first, second, "attn_js", limits=(-1, 1)), "map")
    shown = axes.images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert list(zip(*np.nonzero(shown.mask), strict=True)) == [(3, 4)]
    assert axes.images[0].get_clim() == (-1, 1)
    assert [p for p in axes.patches if p.get_gid() == "undefined"]


@pytest.mark.parametrize(
    ("far", "limit"), [(0.0, 0.01), (0.004, 0.01), (0.3, 0.3), (0.31, 0.35), (0.96, 1.0), (7, 7)]
)
def test_difference_limits(far: float | int, limit: float) -> None:
    values = np.array([[0.0, -far], [np.nan, far / 2]])
    assert drawing.difference_limits(values) == pytest.approx((-limit, limit))


def test_difference_refuses_representations_that_do_not_correspond() -> None:
    first = result_of({"a": 3, "b": 2})
    with pytest.raises(
        UserError, match=r"new has a \(3 layers\), b \(2 layers\); old has a \(3 la"
    ):
        figures.difference(first, result_of({"a": 3}), "lincka", names=("new", "old"))
    with pytest.raises(UserError, match="do not correspond"):
        figures.difference(first, result_of({"c": 2, "d": 3}), "lincka")
    with pytest.raises(UserError, match="no measure 'cka'"):
        figures.difference(first, first, "cka")
    with pytest.raises(UserError, match="must increase"):
        figures.difference(first, first, "lincka", limits=(1, -1))


# --- heads ---


@pytest.mark.parametrize("y", ["facebook/hubert-large-ll60k/3", RepresentationName("org/tiny", 2)])
def test_heads_against_heads(y: str | RepresentationName) -> None:
    result = attention_result()
    x = "facebook/wav2vec2-base-960h/12"
    figure = figures.plot_heads(result, "attn_js", x, y)
    assert_readable(figure)
    axes = axes_of(figure, "map")
    heads = result.dataset["attn_js_heads"].sel(x_attention=x, y_attention=str(y)).values
    heads = heads[:12, : 1 if "tiny" in str(y) else 16]
    np.testing.assert_array_equal(axes.images[0].get_array(), heads)
    (rings,) = [c for c in axes.collections if c.get_gid() == "best"]
    np.testing.assert_array_equal(
        rings.get_offsets(), np.stack([heads.argmax(1), np.arange(12)], axis=1)
    )
    assert axes.get_ylabel() == "head of x: wav2vec2-base-960h, layer 12"
    cells = axes.get_window_extent()
    if heads.shape[1] > 1:
        assert cells.width / heads.shape[1] == pytest.approx(cells.height / 12)


@pytest.mark.slow
@pytest.mark.parametrize("models", [tuple(HEADS)[:2], tuple(HEADS)[1::-1], tuple(HEADS)[::2]])
def test_which_head_matches_which(models: tuple[str, str]) -> None:
    result = attention_result()
    figure = figures.head_matches(result, "attn_js", *models)
    assert_readable(figure)
    axes = axes_of(figure, "map")
    (x_layers, x_heads), (y_layers, y_heads) = (HEADS[model] for model in models)
    x_names = [f"{models[0]}/{i + 1}" for i in range(x_layers)]
    y_names = [f"{models[1]}/{i + 1}" for i in range(y_layers)]
    chosen = result.dataset["attn_js_heads"].sel(x_attention=x_names, y_attention=y_names).values
    chosen = chosen[:, :, :x_heads, :y_heads]
    np.testing.assert_array_equal(axes.images[0].get_array(), chosen.max(axis=(1, 3)))
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == x_layers * x_heads
    for (head, row), text in texts.items():
        layer, match = map(int, text.split("."))
        assert chosen[row, layer - 1, head, match] == chosen[row, :, head].max()
    (right,) = axes.child_axes
    together = [int(label.get_text()) for label in right.get_yticklabels()]
    scores = result.matrix("attn_js").sel(x_attention=x_names, y_attention=y_names)
    assert together == (scores.values.argmax(axis=1) + 1).tolist()


def test_a_layer_is_not_matched_with_itself() -> None:
    result = attention_result()
    model = "facebook/wav2vec2-base-960h"
    figure = figures.head_matches(result, "attn_js", model, model)
    assert_readable(figure)
    rows = {(text.get_position()[1] + 1, text.get_text()) for text in axes_of(figure, "map").texts}
    assert len(rows) > 100
    assert all(int(text.split(".")[0]) != row for row, text in rows)


@pytest.mark.parametrize("heads", [1, 2])
def test_few_heads_and_layers_are_readable(heads: int) -> None:
    result = attention_result({"org/a-rather-long-name-of-a-model": (2, heads), "b": (1, heads)})
    x, y = result.models
    assert_readable(figures.head_matches(result, "attn_js", x, y))
    assert_readable(figures.head_matches(result, "attn_js", y, x))
    assert_readable(figures.plot_heads(result, "attn_js", f"{x}/1", f"{y}/1"))


def test_long_names_of_heads_are_whole() -> None:
    names = [f"org/model-{'with-a-long-name' * 3}-{k}" for k in range(2)]
    result = attention_result(dict.fromkeys(names, (3, 4)))
    for figure in (
        figures.plot_heads(result, "attn_js", f"{names[0]}/1", f"{names[1]}/2"),
        figures.head_matches(result, "attn_js", *names),
    ):
        assert_readable(figure)
        axes = axes_of(figure, "map")
        for label, name in ((axes.get_ylabel(), names[0]), (axes.get_xlabel(), names[1])):
            assert name.removeprefix("org/") in label.replace("\n", "")


def test_names_next_to_few_heads_are_not_broken() -> None:
    result = attention_result({"ckpt/my_wav2vec2": (2, 2), "my_hubert-large": (1, 2)})
    x, y = result.models
    axes = axes_of(figures.plot_heads(result, "attn_js", f"{x}/1", f"{y}/1"), "map")
    assert axes.get_ylabel() == "head of x: my_wav2vec2, layer 1"
    assert axes.get_xlabel() == "head of y: my_hubert-large, layer 1"
    axes = axes_of(figures.head_matches(result, "attn_js", x, y), "map")
    assert axes.get_ylabel() == "layer of x: my_wav2vec2"
    assert axes.get_xlabel() == "head of x, y: my_hubert-large"


def test_undefined_heads_are_hatched() -> None:
    result = attention_result()
    result.dataset["attn_js_heads"].values[0, 13] = np.nan
    pair = [str(result.attention_representations[k]) for k in (0, 13)]
    figure = figures.plot_heads(result, "attn_js", *pair)
    assert any("hatched: not defined" in t.get_text() for t in figure.texts)


def test_head_figures_refuse_what_they_cannot_draw() -> None:
    result = attention_result()
    x = "facebook/wav2vec2-base-960h/1"
    with pytest.raises(UserError, match="no attention layer org/tiny/3"):
        figures.plot_heads(result, "attn_js", x, "org/tiny/3")
    with pytest.raises(UserError, match="no measure 'lincka'"):
        figures.plot_heads(result, "lincka", x, x)
    with pytest.raises(UserError, match="no similarities of heads"):
        figures.head_matches(result_of(PAPER), "lincka", *tuple(PAPER)[:2])
    with pytest.raises(UserError, match="no model 'c'"):
        figures.head_matches(result, "attn_js", "org/tiny", "c")
    single = attention_result({"a": (1, 2)})
    with pytest.raises(UserError, match="not matched with itself"):
        figures.head_matches(single, "attn_js", "a", "a")
