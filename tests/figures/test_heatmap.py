"""Heat maps: what is drawn is what was measured, and every label can be read."""

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses.replication import published_maps
from speechsim_jax.errors import UserError
from speechsim_jax.figures import style
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.drawn import (
    MEASURES,
    PAPER,
    SHAPES,
    UNEQUAL,
    assert_readable,
    attention_result,
    axes_of,
    drawn_texts,
    pixels_of,
    result_of,
)


@pytest.mark.slow
@pytest.mark.parametrize("width", [None, 3.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_heatmap_text_is_readable(shape: str, width: float | None) -> None:
    figure = figures.plot(result_of(SHAPES[shape]), "maxcorr", width=width)
    assert_readable(figure)
    assert 3.5 <= figure.get_figwidth() <= 7
    cells = axes_of(figure, "map").get_window_extent()
    assert cells.width == pytest.approx(cells.height)  # square cells


def test_heatmap_shows_the_matrix() -> None:
    result = result_of(PAPER)
    axes = axes_of(figures.plot(result, "maxcorr"), "map")
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), result.matrix("maxcorr"))
    assert axes.get_ylim() == (73.5, -0.5)  # row 0 on top, as in a printed matrix
    assert axes.get_xlim() == (-0.5, 73.5)
    assert image.get_clim() == (0.0, 1.0)
    assert not [p for p in axes.patches if p.get_gid() == "undefined"]


def test_heatmap_blocks_are_separated_and_named() -> None:
    axes = axes_of(figures.plot(result_of(PAPER), "lincka"), "map")
    lines = [line for line in axes.lines if line.get_gid() == "separator"]
    horizontal = [line.get_ydata()[0] for line in lines if np.ptp(line.get_ydata()) == 0]
    vertical = [line.get_xdata()[0] for line in lines if np.ptp(line.get_xdata()) == 0]
    assert horizontal == vertical == [12.5, 36.5, 49.5]
    assert {line.get_color() for line in lines} == {"white"}
    for gid, rotation, coordinate in (("x name", 90, 1), ("y name", 0, 0)):
        names = [t for t in axes.texts if t.get_gid() == gid and isinstance(t, Annotation)]
        texts = [t.get_text().replace("\n", "") for t in names]
        assert texts == [model.removeprefix("facebook/") for model in PAPER]
        assert [t.xy[coordinate] for t in names] == pytest.approx([6, 24.5, 43, 61.5])
        assert {t.get_rotation() for t in names} == {rotation}


def test_heatmap_names_the_layers() -> None:
    axes = axes_of(figures.plot(result_of(PAPER), "lincka"), "map")
    starts = np.repeat([0, 13, 37, 50], [13, 24, 13, 24])
    for positions, labels in (
        (axes.get_xticks(), axes.get_xticklabels()),
        (axes.get_yticks(), axes.get_yticklabels()),
    ):
        layers = [int(label.get_text()) for label in labels]
        assert layers == [int(p) - starts[int(p)] for p in positions]
        assert {0, 13, 37, 50} <= set(positions)
        assert all(layer % 6 == 0 for layer in layers)


def test_heatmap_labels_the_direction_of_scores() -> None:
    result = result_of(PAPER)
    directed = figures.plot(result, "maxcorr")
    assert axes_of(directed, "bar").get_ylabel() == "maxcorr\nrow x accounted for by column y"
    assert axes_of(directed, "map").get_ylabel() == "row x (layer)"
    assert axes_of(directed, "map").get_xlabel() == "column y (layer)"
    assert axes_of(figures.plot(result, "lincka"), "bar").get_ylabel() == "lincka"


def test_heatmap_title_and_caption() -> None:
    result = result_of(PAPER)

    def texts(**options: str) -> list[str]:
        return [t.get_text() for t in figures.plot(result, "lincka", **options).texts]

    caption = "2,703,511 frames · 2,703 utterances · random weights"
    assert texts() == ["Linear CKA", caption]
    assert texts(title="Mine") == ["Mine", caption]
    assert texts(title="") == []


def test_blocks_too_small_for_a_name_get_a_key() -> None:
    figure = figures.plot(result_of(UNEQUAL), "lincka")
    for side in ("x name", "y name"):
        names = [t.get_text() for t in axes_of(figure, "map").texts if t.get_gid() == side]
        assert names[:2] == ["A", "B"] and names[2].replace("\n", "") == "hubert-large-ll60k"
    for drawn in (figure, figures.plot(result_of(UNEQUAL), "lincka", title="")):
        key = [t.get_text() for t in drawn.texts if t.get_gid() == "key"]
        assert key == ["A", "log-mel", "B", "mfcc"]


def test_undefined_cells_are_hatched() -> None:
    result = result_of(PAPER)
    values = result.matrix("lincka").values.copy()
    values[3, 40] = np.nan
    values[60, 2] = np.inf
    holes = SimilarityResult.build(result.representations, {"lincka": values}, measures=MEASURES)
    figure = figures.plot(holes, "lincka")
    axes = axes_of(figure, "map")
    shown = axes.images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert sorted(zip(*np.nonzero(shown.mask), strict=True)) == [(3, 40), (60, 2)]
    (below,) = [p for p in axes.patches if p.get_gid() == "undefined"]
    assert below.get_hatch() and below.get_zorder() < axes.images[0].get_zorder()
    assert any("hatched: not defined" in t.get_text() for t in figure.texts)
    pixels = pixels_of(figure)
    cells = axes.get_window_extent()
    side = cells.width / 74
    hole = _patch(pixels, cells.x0 + 40 * side, cells.y1 - 4 * side, side)
    colour = _patch(pixels, cells.x0 + 41 * side, cells.y1 - 4 * side, side)
    assert np.ptp(hole, axis=-1).max() == 0  # grey: the hatch shows through
    assert np.ptp(colour, axis=-1).min() > 0


def _patch(pixels: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
    inner = slice(int(y) + 3, int(y + side) - 3), slice(int(x) + 3, int(x + side) - 3)
    return pixels[inner]


@pytest.mark.parametrize(
    ("low", "high", "declared", "expected"),
    [
        (0.12, 1.0, (0, 1), (0.0, 1.0)),  # fills the range: all of it
        (0.12, 1.0 + 1e-7, (0, 1), (0.0, 1.0)),
        (0.83, 0.97, (0, 1), (0.8, 1.0)),  # a narrow band: stretched, to round numbers
        (0.31, 0.42, (0, 1), (0.3, 0.45)),
        (-0.02, 1.0, (0, 1), (-0.02, 1.0)),  # beyond the range: the data decide
        (-5.39, 0.99, (None, 1), (-5.5, 1.0)),
        (-5.39, 0.99, None, (-5.5, 1.0)),
        (1.0, 1.0, (0, 1), (0.995, 1.0)),
        (0.5, 0.5, None, (0.495, 0.505)),
    ],
)
def test_colour_limits(
    low: float, high: float, declared: tuple | None, expected: tuple[float, float]
) -> None:
    values = np.array([[low, np.nan], [high, (low + high) / 2]])
    assert figures.colour_limits(values, declared) == pytest.approx(expected)


def test_colour_limits_without_numbers() -> None:
    assert figures.colour_limits(np.full((2, 2), np.nan), (0, 1)) == (0.0, 1.0)


def test_given_limits_are_kept_and_marked() -> None:
    figure = figures.plot(result_of(PAPER), "lincka", limits=(0.4, 0.9))
    (image,) = axes_of(figure, "map").images
    assert image.get_clim() == (0.4, 0.9)
    assert image.colorbar is not None and image.colorbar.extend == "both"
    with pytest.raises(UserError, match="must increase"):
        figures.plot(result_of(PAPER), "lincka", limits=(0.9, 0.4))


def test_colours_keep_their_order_in_grey() -> None:
    (image,) = axes_of(figures.plot(result_of(PAPER), "lincka"), "map").images
    grey = image.cmap(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert np.diff(grey).min() > 0


def test_heatmap_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(UserError, match=r"'cka'.*lincka"):
        figures.plot(result_of(PAPER), "cka")
    with pytest.raises(UserError, match="at least 3 in"):
        figures.plot(result_of(PAPER), "lincka", width=1)


def test_plot_is_exported_and_notebooks_show_it() -> None:
    figure = ss.plot(result_of(PAPER), "lincka", limits=(0, 2), title="T", width=5)
    assert figure.get_figwidth() == 5
    assert axes_of(figure, "map").images[0].get_clim() == (0, 2)
    assert figure._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize("limits", [(0.98125, 0.9865), (-0.0024, 0.0024), (-11.25, -10.125)])
def test_numbers_of_the_bar_have_room(limits: tuple[float, float]) -> None:
    """However many decimals they take, the label next to them stays on the page."""
    for shape in ("four", "paper"):
        figure = figures.plot(result_of(SHAPES[shape]), "maxcorr", limits=limits)
        assert_readable(figure)
        low, high = axes_of(figure, "bar").get_ylim()
        ticks = axes_of(figure, "bar").get_yticks()
        assert 3 <= len([tick for tick in ticks if low <= tick <= high]) <= 6
    result = attention_result()
    values = result.dataset["attn_js_heads"].values
    values[np.isfinite(values)] = np.linspace(*limits, int(np.isfinite(values).sum()))
    assert_readable(
        figures.plot_heads(result, "attn_js", "facebook/wav2vec2-base-960h/1", "org/tiny/2")
    )


def test_numbers_of_the_bar() -> None:
    for limits, expected in {
        (0, 1): ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"],
        (0.3, 0.45): ["0.30", "0.35", "0.40", "0.45"],
        (-5.5, 1): ["\N{MINUS SIGN}4", "\N{MINUS SIGN}2", "0"],
        (0.995, 1): ["0.996", "0.998", "1.000"],
    }.items():
        figure = figures.plot(result_of(SHAPES["two"]), "lincka", limits=limits)
        labels = [label.get_text() for label in axes_of(figure, "bar").get_yticklabels()]
        assert labels == expected, limits


# --- the published layout ---


PUBLISHED_ORDER = ["hubert-base", "hubert-large", "wav2vec2-base", "wav2vec2-large"]


def test_paper_style_has_the_published_layout() -> None:
    """As in the published PNGs, whose map is at pixels 80 to 477, 58 to 427 of 640 x 480."""
    (result, *_) = published_maps.load().results()
    turned = result.select(PUBLISHED_ORDER[::-1])
    figure = figures.plot(turned, "maxcorr", style="paper")
    assert figure.get_size_inches() == pytest.approx([6.4, 4.8])
    axes, bar = axes_of(figure, "map"), axes_of(figure, "bar")
    (image,) = axes.images
    values = result.matrix("maxcorr").values
    np.testing.assert_array_equal(image.get_array(), values)  # the published order again
    assert axes.get_ylim() == (73.5, -0.5) and axes.get_xlim() == (-0.5, 73.5)
    assert image.get_clim() == (values.min(), values.max())
    assert image.get_cmap() == style.PUBLISHED
    assert not axes.axison and not axes.texts and not axes.lines and not figure.texts
    assert bar.get_ylabel() == "" and {t.get_fontsize() for t in bar.get_yticklabels()} == {10}
    numbers = [label.get_text() for label in bar.get_yticklabels()]
    assert {f"{n / 10:.1f}" for n in range(2, 10)} <= set(numbers)
    figure.set_dpi(100)
    pixels = pixels_of(figure)[::-1]
    assert pixels.shape == (480, 640, 3)
    coloured = np.ptp(pixels, axis=2) > 8
    columns = np.flatnonzero(coloured.mean(axis=0) > 0.5)
    rows = np.flatnonzero(coloured.mean(axis=1) > 0.4)
    assert {(k, k + 1) for k in columns} >= {(80, 81), (476, 477), (503, 504), (518, 519)}
    assert not {78, 79, 478, 479, 500, 522} & set(columns.tolist())
    assert (rows[0], rows[-1]) == (58, 426)
    light = pixels[60, 82]  # the first layer with itself
    assert np.abs(light - [250, 235, 221]).max() <= 3


def test_paper_style_has_the_published_colours() -> None:
    """Colours of the published bar, by their position among its 256."""
    known = {
        0: (3, 5, 26), 7: (11, 9, 32), 52: (78, 29, 75), 100: (158, 26, 91), 155: (233, 66, 62),
        200: (245, 150, 108), 233: (247, 202, 172), 255: (250, 235, 221),
    }  # fmt: skip
    for place, colour in known.items():
        actual = np.array(style.PUBLISHED(place)[:3]) * 255
        assert np.abs(actual - colour).max() <= 2.5, place
    grey = style.PUBLISHED(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert np.diff(grey).min() > 0


def test_paper_style_otherwise() -> None:
    result = result_of(PAPER)
    titled = figures.plot(result, "lincka", style="paper", title="Linear $CKA", width=3.2)
    assert axes_of(titled, "map").get_title() == "Linear $CKA"
    assert titled.get_size_inches() == pytest.approx([3.2, 2.4])
    sizes = {t.get_fontsize() for t in drawn_texts(titled)}
    assert min(sizes) >= 6
    limited = figures.plot(result, "lincka", style="paper", limits=(0, 2))
    assert axes_of(limited, "map").images[0].get_clim() == (0, 2)
    same = SimilarityResult.build(result.representations, {"lincka": np.full((74, 74), 0.5)})
    clim = axes_of(figures.plot(same, "lincka", style="paper"), "map").images[0].get_clim()
    assert clim == (0.495, 0.505)
    with pytest.raises(UserError, match="no style 'published'; there are: labelled, paper"):
        figures.plot(result, "lincka", style="published")


def test_published_order() -> None:
    """Predictive before contrastive, small before large; by the model type, or by name."""
    models = {"x/wav2vec2-large": 3, "mine": 2, "hubert": 3, "wav2vec2-ft": 2, "wavlm": 2}
    result = result_of(models)
    expected = ["wavlm", "hubert", "mine", "wav2vec2-ft", "x/wav2vec2-large"]
    metadata = {"mine": {"model_type": "wav2vec2"}, "hubert": {"model_type": "hubert"}}
    attributes = {"models": metadata}
    result = SimilarityResult.build(
        result.representations, {"lincka": result.matrix("lincka").values}, {}, MEASURES, attributes
    )
    assert figures.published_order(result) == expected
    turned = result.select(list(models)[::-1])
    assert set(figures.published_order(turned)[:2]) == {"wavlm", "hubert"}
    widths = np.repeat([9, 5], 2)
    representations = [RepresentationName(m, i) for m in ("wide", "narrow") for i in range(2)]
    by_width = SimilarityResult.build(
        representations, {"m": np.eye(4)}, {"width": (("x",), widths)}
    )
    assert figures.published_order(by_width) == ["narrow", "wide"]


def test_short_names_of_single_layers_beside_deep_models() -> None:
    """Tracks, as f0, are models of one layer, between which a name of two letters has no room."""
    rng = np.random.default_rng(0)
    names = [f"contrastive_model_{m}/{k}" for m in range(6) for k in range(7)]
    arrays = {name: rng.standard_normal((60, 4)) for name in (*names, "f0", "x", "phone", "energy")}
    result = ss.compare_activations(arrays, ["lincka"])
    ss.plot(result, "lincka", style="paper")
    texts = [text.get_text() for text in ss.plot(result, "lincka").findobj(Text)]
    assert {"f0", "x", "phone", "energy"} <= set(texts)


# Hub ids of 40 characters and more, none a prefix of another.
LONG = [
    f"organisation/{name}"
    for name in (
        "wav2vec2-large-robust-ft-libri-960h-seed1", "hubert-xlarge-ls960-finetuned-on-english",
        "wav2vec2-conformer-rope-large-960h-ft-one", "data2vec-audio-large-100h-second-of-three",
        "unispeech-sat-base-100h-libri-ft-16-khz-b", "wavlm-base-plus-for-speaker-verification1",
        "sew-d-mid-k127-400k-ft-ls100h-from-random", "whisper-large-v3-turbo-encoder-of-english",
        "w2v-bert-2.0-common-voice-17-german-large", "mms-1b-all-with-the-adapter-of-swahili_01",
        "xls-r-300m-21-to-english-speech-translate", "a_name_that_is_long_and_has_no_hyphens_in",
    )
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 13])
@pytest.mark.parametrize("width", [3.5, 7.0])
@pytest.mark.parametrize("count", [2, 5, 12])
def test_long_names_are_whole_somewhere(count: int, width: float, layers: int) -> None:
    """At the layers or in the key, on both sides of the map."""
    result = result_of({name: layers for name in LONG[:count]})
    assert_named(figures.plot(result, "maxcorr", width=width), LONG[:count])
    if count == 2:
        return
    half = SimilarityResult.build(
        result.representations[layers:],
        {"lincka": result.matrix("lincka").values[layers:, layers:]},
    )
    assert_named(figures.plot(half, "lincka", width=width), LONG[1:count])


def assert_named(figure: Figure, models: Sequence[str]) -> None:
    assert_readable(figure)
    axes = axes_of(figure, "map")
    texts = [t.get_text() for t in figure.texts if t.get_gid() == "key"]
    key = dict(zip(texts[::2], texts[1::2], strict=True))
    for side in ("x name", "y name"):
        names = [t.get_text() for t in axes.texts if t.get_gid() == side]
        whole = [key.get(name, name).replace("\n", "") for name in names]
        assert whole == [model.rpartition("/")[2] for model in models]
    assert not any("…" in text.get_text() for text in drawn_texts(figure))


@pytest.mark.parametrize(
    ("models", "width", "expected"),
    [
        (dict.fromkeys("abcde", 4), 3.5, "along"),
        (dict.fromkeys(PAPER, 13), 7, "along"),
        ({f"contrastive_{c}": 3 for c in "abcdefghi"}, 7, "across"),
        ({f"contrastive-model_{c}": 1 for c in "abcdefghijkl"}, 3.5, "letters"),
        ({f"number-{k}-of-many": 1 for k in range(80)}, 5, "every n-th"),
    ],
)
def test_how_names_stand(models: dict[str, int], width: float, expected: str) -> None:
    figure = figures.plot(result_of(models), "lincka", width=width)
    assert_readable(figure)
    axes = axes_of(figure, "map")
    rows, columns = (
        {(t.get_rotation(), len(t.get_text()) <= 2) for t in axes.texts if t.get_gid() == side}
        for side in ("x name", "y name")
    )
    if expected == "along" and "a" not in models:
        assert (rows, columns) == ({(90, False)}, {(0, False)})
    elif expected in ("across", "every n-th"):
        assert (rows, columns) == ({(0, False)}, {(90, False)})
    elif expected == "letters":
        assert (rows, columns) == ({(0, True)}, {(0, True)})


def test_names_of_two_models_against_each_other_are_both_in_the_key() -> None:
    before, after = LONG[:2]
    result = result_of({before: 1, after: 1, "x": 2})
    figure = figures.finetuned(result, "maxcorr", before, after, width=4.5)
    assert_readable(figure)
    shown = "".join(t.get_text().replace("\n", "") for t in drawn_texts(figure))
    assert all(name.rpartition("/")[2] in shown for name in (before, after))
