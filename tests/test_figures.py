"""Figures: what is drawn is what was measured, and every label can be read."""

import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

import speechsim_jax
from speechsim_jax import drawing, figures, published
from speechsim_jax.errors import UserError
from speechsim_jax.labels import ellipsised, short_names, text_width
from speechsim_jax.results import NetworkName, SimilarityResult

PAPER = {
    "facebook/hubert-base-ls960": 13,
    "facebook/hubert-large-ll60k": 24,
    "facebook/wav2vec2-base-960h": 13,
    "facebook/wav2vec2-large-lv60": 24,
}
UNEQUAL = {
    "log-mel": 1,
    "mfcc": 2,
    "org/hubert-large-ll60k": 24,
    "microsoft/wavlm-large": 25,
    "org/data2vec-audio-base-960h": 13,
    "org/xls-r-$1b$-a_very-long-name-to-shorten-somewhere": 35,
}
SHAPES = {
    "two": {"a0": 1, "b": 1},
    "four": {"facebook/hubert-base-ls960": 2, "facebook/wav2vec2-base-960h": 2},
    "one-model": {"facebook/hubert-base-ls960": 13},
    "paper": PAPER,
    "unequal": UNEQUAL,
    "many": {f"network-{i}": 1 for i in range(60)},
}
MEASURES = {
    "lincka": {"symmetric": True, "range": (0, 1), "summary": "Linear CKA"},
    "maxcorr": {"symmetric": False, "range": (0, 1)},
}


def _result(models: dict[str, int], seed: int = 0) -> SimilarityResult:
    networks = [NetworkName(model, i) for model, depth in models.items() for i in range(depth)]
    steps = np.random.default_rng(seed).standard_normal((len(networks), 60)).cumsum(axis=0)
    values = np.abs(np.corrcoef(steps))
    skewed = values * np.linspace(0.5, 1, len(networks))
    attributes = {"frames": 2703511, "utterances": 2703, "note": "random weights"}
    matrices = {"lincka": values, "maxcorr": skewed}
    return SimilarityResult.build(networks, matrices, {}, MEASURES, attributes)


def _axes(figure: Figure, label: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == label)


def _drawn_texts(figure: Figure) -> list[Text]:
    """Every text with ink on the page, after drawing."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    found = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text().strip()]
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:  # matplotlib keeps such ticks, but draws none
                hidden |= {id(tick.label1), id(tick.label2)}
    return [t for t in found if t.get_visible() and id(t) not in hidden]


def _assert_readable(figure: Figure) -> None:
    """No text under 6 pt, none outside the page, no two over each other."""
    texts = _drawn_texts(figure)
    assert len(texts) > 4
    page = figure.bbox
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    for text in texts:
        assert text.get_fontsize() >= 6, text.get_text()
    for name, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{name!r} leaves the page: {box}"
    for (name, box), (other, that) in combinations(boxes, 2):
        wide = min(box.x1, that.x1) - max(box.x0, that.x0)
        high = min(box.y1, that.y1) - max(box.y0, that.y0)
        assert wide <= 0.5 or high <= 0.5, f"{name!r} overlaps {other!r}"


@pytest.mark.parametrize("width", [None, 3.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_heatmap_text_is_readable(shape: str, width: float | None) -> None:
    figure = figures.heatmap(_result(SHAPES[shape]), "maxcorr", width=width)
    _assert_readable(figure)
    assert 3.5 <= figure.get_figwidth() <= 7
    cells = _axes(figure, "map").get_window_extent()
    assert cells.width == pytest.approx(cells.height)  # square cells


def test_heatmap_shows_the_matrix() -> None:
    result = _result(PAPER)
    axes = _axes(figures.heatmap(result, "maxcorr"), "map")
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), result.matrix("maxcorr"))
    assert axes.get_ylim() == (73.5, -0.5)  # row 0 on top, as in a printed matrix
    assert axes.get_xlim() == (-0.5, 73.5)
    assert image.get_clim() == (0.0, 1.0)
    assert not [p for p in axes.patches if p.get_gid() == "undefined"]


def test_heatmap_blocks_are_separated_and_named() -> None:
    axes = _axes(figures.heatmap(_result(PAPER), "lincka"), "map")
    lines = [line for line in axes.lines if line.get_gid() == "separator"]
    horizontal = [line.get_ydata()[0] for line in lines if np.ptp(line.get_ydata()) == 0]
    vertical = [line.get_xdata()[0] for line in lines if np.ptp(line.get_xdata()) == 0]
    assert horizontal == vertical == [12.5, 36.5, 49.5]
    assert {line.get_color() for line in lines} == {"white"}
    for gid, rotation, coordinate in (("x name", 90, 1), ("y name", 0, 0)):
        names = [t for t in axes.texts if t.get_gid() == gid and isinstance(t, Annotation)]
        joined = [t.get_text().replace("\n", "") for t in names]
        assert joined == [model.removeprefix("facebook/") for model in PAPER]
        assert [t.xy[coordinate] for t in names] == pytest.approx([6, 24.5, 43, 61.5])
        assert {t.get_rotation() for t in names} == {rotation}


def test_heatmap_names_the_layers() -> None:
    axes = _axes(figures.heatmap(_result(PAPER), "lincka"), "map")
    starts = np.repeat([0, 13, 37, 50], [13, 24, 13, 24])
    for positions, labels in (
        (axes.get_xticks(), axes.get_xticklabels()),
        (axes.get_yticks(), axes.get_yticklabels()),
    ):
        layers = [int(label.get_text()) for label in labels]
        assert layers == [int(p) - starts[int(p)] for p in positions]
        assert {0, 13, 37, 50} <= set(positions)
        assert all(layer % 6 == 0 for layer in layers)


def test_heatmap_says_which_way_it_reads() -> None:
    result = _result(PAPER)
    directed = figures.heatmap(result, "maxcorr")
    assert _axes(directed, "bar").get_ylabel() == "maxcorr\nrow x accounted for by column y"
    assert _axes(directed, "map").get_ylabel() == "row x (layer)"
    assert _axes(directed, "map").get_xlabel() == "column y (layer)"
    assert _axes(figures.heatmap(result, "lincka"), "bar").get_ylabel() == "lincka"


def test_heatmap_title_and_caption() -> None:
    result = _result(PAPER)

    def texts(**options: str) -> list[str]:
        return [t.get_text() for t in figures.heatmap(result, "lincka", **options).texts]

    caption = "2,703,511 frames · 2,703 utterances · random weights"
    assert texts() == ["Linear CKA", caption]
    assert texts(title="Mine") == ["Mine", caption]
    assert texts(title="") == []


def test_blocks_too_small_for_a_name_get_a_key() -> None:
    figure = figures.heatmap(_result(UNEQUAL), "lincka")
    names = [t.get_text() for t in _axes(figure, "map").texts if t.get_gid() == "y name"]
    assert names[:3] == ["A", "B", "hubert-large-ll60k"]
    caption = next(t.get_text() for t in figure.texts if t.get_gid() == "caption")
    assert caption.endswith("A: log-mel · B: mfcc")
    unnamed = figures.heatmap(_result(UNEQUAL), "lincka", title="")
    assert [t.get_text() for t in unnamed.texts] == ["A: log-mel · B: mfcc"]


def test_undefined_cells_are_hatched() -> None:
    result = _result(PAPER)
    values = result.matrix("lincka").values.copy()
    values[3, 40] = np.nan
    values[60, 2] = np.inf
    holes = SimilarityResult.build(result.networks, {"lincka": values}, measures=MEASURES)
    figure = figures.heatmap(holes, "lincka")
    axes = _axes(figure, "map")
    shown = axes.images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert sorted(zip(*np.nonzero(shown.mask), strict=True)) == [(3, 40), (60, 2)]
    (below,) = [p for p in axes.patches if p.get_gid() == "undefined"]
    assert below.get_hatch() and below.get_zorder() < axes.images[0].get_zorder()
    assert any("hatched: not defined" in t.get_text() for t in figure.texts)
    pixels = _pixels(figure)
    cells = axes.get_window_extent()
    side = cells.width / 74
    hole = _patch(pixels, cells.x0 + 40 * side, cells.y1 - 4 * side, side)
    colour = _patch(pixels, cells.x0 + 41 * side, cells.y1 - 4 * side, side)
    assert np.ptp(hole, axis=-1).max() == 0  # grey: the hatch shows through
    assert np.ptp(colour, axis=-1).min() > 0


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)


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
    figure = figures.heatmap(_result(PAPER), "lincka", limits=(0.4, 0.9))
    (image,) = _axes(figure, "map").images
    assert image.get_clim() == (0.4, 0.9)
    assert image.colorbar is not None and image.colorbar.extend == "both"
    with pytest.raises(UserError, match="must increase"):
        figures.heatmap(_result(PAPER), "lincka", limits=(0.9, 0.4))


def test_colours_keep_their_order_in_grey() -> None:
    (image,) = _axes(figures.heatmap(_result(PAPER), "lincka"), "map").images
    grey = image.cmap(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert np.diff(grey).min() > 0


def test_heatmap_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(UserError, match=r"'cka'.*lincka"):
        figures.heatmap(_result(PAPER), "cka")
    with pytest.raises(UserError, match="at least 3 in"):
        figures.heatmap(_result(PAPER), "lincka", width=1)


def test_result_plots_itself() -> None:
    figure = _result(PAPER).plot("lincka", limits=(0, 2), title="T", width=5)
    assert figure.get_figwidth() == 5
    assert _axes(figure, "map").images[0].get_clim() == (0, 2)
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_trend_is_best_layer_and_layer_at_the_same_depth() -> None:
    values = np.arange(25.0).reshape(5, 5) % 7
    networks = [NetworkName("a", i) for i in range(3)] + [NetworkName("b", i) for i in range(2)]
    result = SimilarityResult.build(networks, {"maxcorr": values, "procrustes_distance": values})
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
    near = figures.layer_trend(result, "procrustes_distance").axes[0].lines[0]
    np.testing.assert_array_equal(near.get_ydata(), values[:3, 3:].min(axis=1))


def test_trend_of_one_model_leaves_self_similarity_out() -> None:
    result = _result({"a": 4})
    values = result.matrix("lincka").values
    (axes,) = figures.layer_trend(result, "lincka").axes
    best, following = (line.get_ydata() for line in axes.lines)
    np.testing.assert_array_equal(best, (values - 2 * np.eye(4)).max(axis=1))
    np.testing.assert_array_equal(following, [*np.diagonal(values, 1), np.nan])


def test_trend_with_undefined_cells() -> None:
    values = np.full((4, 4), np.nan)
    values[0, 2] = 0.5
    networks = [NetworkName(m, i) for m in "ab" for i in range(2)]
    result = SimilarityResult.build(networks, {"lincka": values})
    line = figures.layer_trend(result, "lincka").axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan])


@pytest.mark.parametrize("shape", ["four", "one-model", "paper", "unequal"])
def test_trend_text_is_readable(shape: str) -> None:
    models = SHAPES[shape]
    figure = figures.layer_trend(_result(models), "maxcorr")
    _assert_readable(figure)
    assert len(figure.axes) == len(models)
    others = 1 if len(models) == 1 else len(models) - 1
    assert {len(axes.lines) for axes in figure.axes} == {2 * others}


def test_trend_survives_grey_and_colour_blindness() -> None:
    figure = figures.layer_trend(_result(UNEQUAL), "maxcorr")
    (legend,) = figure.legends
    (panel, *_) = figure.axes
    solid = [line for line in panel.lines if line.get_gid() == "best"]
    assert len({line.get_marker() for line in solid}) == len(solid)
    assert len({to_hex(line.get_color()) for line in solid}) == len(solid)
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "y: log-mel" and labels[-2] == "best layer of y"
    assert len(labels) == len(UNEQUAL) + 2


def test_trend_needs_layers() -> None:
    with pytest.raises(UserError, match="at least two layers"):
        figures.layer_trend(_result(SHAPES["two"]), "lincka")


@pytest.mark.parametrize("limits", [(0.98125, 0.9865), (-0.0024, 0.0024), (-11.25, -10.125)])
def test_numbers_of_the_bar_have_room(limits: tuple[float, float]) -> None:
    """However many decimals they take, the label beside them stays on the page."""
    for shape in ("four", "paper"):
        figure = figures.heatmap(_result(SHAPES[shape]), "maxcorr", limits=limits)
        _assert_readable(figure)
        low, high = _axes(figure, "bar").get_ylim()
        ticks = _axes(figure, "bar").get_yticks()
        assert 3 <= len([tick for tick in ticks if low <= tick <= high]) <= 6
    result = _attention_result()
    values = result.dataset["attn_js_heads"].values
    values[np.isfinite(values)] = np.linspace(*limits, int(np.isfinite(values).sum()))
    _assert_readable(
        figures.plot_heads(result, "attn_js", "facebook/wav2vec2-base-960h/1", "org/tiny/2")
    )


def test_numbers_of_the_bar() -> None:
    for limits, expected in {
        (0, 1): ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"],
        (0.3, 0.45): ["0.30", "0.35", "0.40", "0.45"],
        (-5.5, 1): ["\N{MINUS SIGN}4", "\N{MINUS SIGN}2", "0"],
        (0.995, 1): ["0.996", "0.998", "1.000"],
    }.items():
        figure = figures.heatmap(_result(SHAPES["two"]), "lincka", limits=limits)
        labels = [label.get_text() for label in _axes(figure, "bar").get_yticklabels()]
        assert labels == expected, limits


def test_one_place_for_colours() -> None:
    """Figures and report name no colour map but those of `drawing`."""
    package = Path(speechsim_jax.__file__).parent
    named = re.compile(r"colormaps|cmap=|set_cmap|colorscale: *[\"']|magma|viridis|PuOr|rocket")
    using = {p.name for p in package.rglob("*.[pj][ys]") if named.search(p.read_text())}
    assert using == {"drawing.py"}
    assert '"colours": [to_hex(c) for c in SCORES' in (package / "report/content.py").read_text()


# --- for print ---


def test_save_figures_in_several_formats(tmp_path: Path) -> None:
    result = _result(SHAPES["four"])
    paths = figures.save_figures(result, tmp_path, formats=("png", "pdf", "svg"))
    assert len(paths) == 3 * 4 and all(path.exists() for path in paths)
    assert [path.name for path in paths][:3] == [f"heatmap_lincka.{k}" for k in drawing.FORMATS]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert "Linear CKA" in paths[2].read_text()  # text, no outlines
    for wrong in (("jpg",), ("png", "jpg"), ()):
        with pytest.raises(UserError, match="png, pdf, svg, not as"):
            figures.save_figures(result, tmp_path / "none", formats=wrong)
    assert not (tmp_path / "none").exists()


def test_pdf_keeps_text_and_sharp_cells(tmp_path: Path) -> None:
    path = tmp_path / "map.pdf"
    _result(PAPER).plot("lincka").savefig(path)
    content = path.read_bytes()
    assert b"/Subtype /Type0" in content and b"/CIDFontType2" in content  # TrueType
    assert b"/Type3" not in content and b"CreationDate" not in content
    sides = {
        tuple(map(int, m)) for m in re.findall(rb"/Width (\d+)\s+/Height (\d+)", content, re.S)
    }
    # A viewer that smooths images blurs a sixteenth of a cell, and no cell has another's size.
    assert (74 * 16, 74 * 16) in sides
    assert len(content) < 100_000


def test_vector_cells_are_those_of_the_screen(tmp_path: Path) -> None:
    """What a vector file gets as an image is the matrix, cell by cell, in its place."""
    figure = _result(UNEQUAL).plot("maxcorr")
    axes = _axes(figure, "map")
    (image,) = axes.images
    FigureCanvasAgg(figure)
    renderer = figure.canvas.get_renderer()
    pixels, x, y, transform = image.make_image(renderer, unsampled=True)
    assert pixels.shape == (100 * 16, 100 * 16, 4)
    assert (pixels.reshape(100, 16, 100, 16, 4) == pixels[::16, None, ::16][:, :, :, None]).all()
    colours = image.to_rgba(image.get_array(), bytes=True)
    np.testing.assert_array_equal(pixels[::16, ::16], colours)
    corners = transform.transform([(0, 0), (1600, 1600)])
    box = axes.get_window_extent()
    np.testing.assert_allclose(corners, [(0, box.height), (box.width, 0)], atol=1e-6)
    assert (x, y) == pytest.approx((box.x0, box.y0))


def test_figures_are_the_same_bytes(tmp_path: Path) -> None:
    """In another process and at another time, with another seed of Python's hashes."""
    code = (
        "import sys; from tests import test_figures as t\n"
        "result = t._result(t.SHAPES['four'])\n"
        "t.figures.save_figures(result, sys.argv[1], ('png', 'pdf', 'svg'))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    names = [path.name for path in (tmp_path / "1").iterdir()]
    assert len(names) == 12
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


# --- the published layout ---

PUBLISHED_ORDER = ["hubert-base", "hubert-large", "wav2vec2-base", "wav2vec2-large"]


def test_paper_style_has_the_published_layout() -> None:
    """As of the published PNGs, whose map is at pixels 80 to 477, 58 to 427 of 640 x 480."""
    (result, *_) = published.load().results()
    turned = result.select(PUBLISHED_ORDER[::-1])
    figure = turned.plot("maxcorr", style="paper")
    assert figure.get_size_inches() == pytest.approx([6.4, 4.8])
    axes, bar = _axes(figure, "map"), _axes(figure, "bar")
    (image,) = axes.images
    values = result.matrix("maxcorr").values
    np.testing.assert_array_equal(image.get_array(), values)  # the published order again
    assert axes.get_ylim() == (73.5, -0.5) and axes.get_xlim() == (-0.5, 73.5)
    assert image.get_clim() == (values.min(), values.max())
    assert image.get_cmap() == drawing.PUBLISHED
    assert not axes.axison and not axes.texts and not axes.lines and not figure.texts
    assert bar.get_ylabel() == "" and {t.get_fontsize() for t in bar.get_yticklabels()} == {10}
    numbers = [label.get_text() for label in bar.get_yticklabels()]
    assert {f"{n / 10:.1f}" for n in range(2, 10)} <= set(numbers)
    figure.set_dpi(100)
    pixels = _pixels(figure)[::-1]
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
    """Colours of the published bar, by their place in its 256."""
    known = {
        0: (3, 5, 26), 7: (11, 9, 32), 52: (78, 29, 75), 100: (158, 26, 91), 155: (233, 66, 62),
        200: (245, 150, 108), 233: (247, 202, 172), 255: (250, 235, 221),
    }  # fmt: skip
    for place, colour in known.items():
        found = np.array(drawing.PUBLISHED(place)[:3]) * 255
        assert np.abs(found - colour).max() <= 2.5, place
    grey = drawing.PUBLISHED(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert np.diff(grey).min() > 0


def test_paper_style_otherwise() -> None:
    result = _result(PAPER)
    titled = figures.heatmap(result, "lincka", style="paper", title="Linear $CKA", width=3.2)
    assert _axes(titled, "map").get_title() == "Linear $CKA"
    assert titled.get_size_inches() == pytest.approx([3.2, 2.4])
    sizes = {t.get_fontsize() for t in _drawn_texts(titled)}
    assert min(sizes) >= 6
    given = figures.heatmap(result, "lincka", style="paper", limits=(0, 2))
    assert _axes(given, "map").images[0].get_clim() == (0, 2)
    same = SimilarityResult.build(result.networks, {"lincka": np.full((74, 74), 0.5)})
    clim = _axes(figures.heatmap(same, "lincka", style="paper"), "map").images[0].get_clim()
    assert clim == (0.495, 0.505)
    with pytest.raises(UserError, match="no style 'published'; there are: labelled, paper"):
        figures.heatmap(result, "lincka", style="published")


def test_published_order() -> None:
    """Predictive before contrastive, small before large; by what is told, or by name."""
    models = {"x/wav2vec2-large": 3, "mine": 2, "hubert": 3, "wav2vec2-ft": 2, "wavlm": 2}
    result = _result(models)
    expected = ["wavlm", "hubert", "mine", "wav2vec2-ft", "x/wav2vec2-large"]
    told = {"mine": {"model_type": "wav2vec2"}, "hubert": {"model_type": "hubert"}}
    attributes = {"models": told}
    result = SimilarityResult.build(
        result.networks, {"lincka": result.matrix("lincka").values}, {}, MEASURES, attributes
    )
    assert figures.published_order(result) == expected
    turned = result.select(list(models)[::-1])
    assert set(figures.published_order(turned)[:2]) == {"wavlm", "hubert"}
    widths = np.repeat([9, 5], 2)
    networks = [NetworkName(m, i) for m in ("wide", "narrow") for i in range(2)]
    by_width = SimilarityResult.build(networks, {"m": np.eye(4)}, {"width": (("x",), widths)})
    assert figures.published_order(by_width) == ["narrow", "wide"]


def test_save_figures_in_the_paper_style(tmp_path: Path) -> None:
    result = _result({"wav2vec2": 3, "hubert": 3})
    first, *_ = figures.save_figures(result, tmp_path / "1", style="paper")
    assert matplotlib.image.imread(first).shape == (960, 1280, 4)


# --- fine-tuned against pretrained ---


@pytest.mark.parametrize("style", figures.STYLES)
def test_finetuned_against_pretrained(style: str) -> None:
    result = _result({"hubert-large": 6, "org/hubert-large-ft": 6, "other": 2})
    names = ("org/hubert-large-ft", "hubert-large")
    figure = figures.finetuned(result, "maxcorr", *names, style=style)
    _assert_readable(figure)
    assert figure.get_figwidth() <= 7
    axes, panel = _axes(figure, "map"), _axes(figure, "same layer")
    block = result.matrix("maxcorr").values[:6, 6:12]  # rows pretrained
    np.testing.assert_array_equal(axes.images[0].get_array(), block)
    (curve,) = panel.lines
    np.testing.assert_array_equal(curve.get_xdata(), np.diagonal(block))
    np.testing.assert_array_equal(curve.get_ydata(), range(6))
    assert panel.get_ylim() == axes.get_ylim()  # row by row
    beside, of_map = panel.get_position(), axes.get_position()
    assert (beside.y0, beside.height) == pytest.approx((of_map.y0, of_map.height))
    assert _axes(figure, "bar").get_position().x1 < beside.x0
    low, high = panel.get_xlim()
    assert low <= np.diagonal(block).min() and np.diagonal(block).max() <= high
    assert (axes.images[0].get_cmap() == drawing.PUBLISHED) == (style == "paper")


def test_finetuned_with_other_layers() -> None:
    """The same layer is that of the same number."""
    result = _result({"a": 5, "b": 5})
    kept = [network for network in result.networks if str(network) not in ("a/1", "b/0", "b/4")]
    places = [result.networks.index(network) for network in kept]
    values = result.matrix("lincka").values[np.ix_(places, places)]
    some = SimilarityResult.build(kept, {"lincka": values})
    (curve,) = _axes(figures.finetuned(some, "lincka", "b", "a"), "same layer").lines
    np.testing.assert_array_equal(curve.get_ydata(), [1, 2])  # rows of layers 2 and 3
    whole = result.matrix("lincka").sel(x=["a/2", "a/3"], y=["b/2", "b/3"])
    np.testing.assert_array_equal(curve.get_xdata(), np.diagonal(whole))


def test_finetuned_refuses_what_it_cannot_draw() -> None:
    result = _result({"a": 2, "b": 2})
    with pytest.raises(UserError, match="a is given twice"):
        figures.finetuned(result, "lincka", "a", "a")
    with pytest.raises(UserError, match="no model 'c'"):
        figures.finetuned(result, "lincka", "c", "a")
    with pytest.raises(UserError, match=r"at least 4\.5 in, not 3\.5"):
        figures.finetuned(result, "lincka", "b", "a", width=3.5)
    networks = [NetworkName("a", 0), NetworkName("b", 1)]
    apart = SimilarityResult.build(networks, {"lincka": np.eye(2)})
    with pytest.raises(UserError, match="b and a have no layer in common under lincka"):
        figures.finetuned(apart, "lincka", "b", "a")


# --- differences ---


def test_difference_of_two_results() -> None:
    first, second = _result(PAPER), _result(PAPER, seed=1)
    figure = figures.difference(first, second, "maxcorr", names=("clean", "noisy"))
    _assert_readable(figure)
    axes = _axes(figure, "map")
    (image,) = axes.images
    expected = first.matrix("maxcorr").values - second.matrix("maxcorr").values
    np.testing.assert_array_equal(image.get_array(), expected)
    low, high = image.get_clim()
    assert low == -high and np.abs(expected).max() <= high <= 1.25 * np.abs(expected).max()
    assert image.get_cmap() == drawing.DIFFERENCES
    bar = _axes(figure, "bar").get_ylabel()
    assert bar == "maxcorr, clean minus noisy\nrow x accounted for by column y"
    caption = next(t.get_text() for t in figure.texts if t.get_gid() == "caption")
    told = "2,703,511 frames, 2,703 utterances, random weights"
    assert "dash: below zero" in caption and f"clean: {told}" in " ".join(caption.split())
    # What has another order is the same.
    turned = second.select(list(PAPER)[::-1])
    again = _axes(figures.difference(first, turned, "maxcorr"), "map").images[0]
    np.testing.assert_array_equal(again.get_array(), expected)


def test_difference_is_read_without_colour() -> None:
    """A dash in every cell below zero, but for those that are nearly white; none above."""
    first, second = _result(SHAPES["four"]), _result(SHAPES["four"], seed=1)
    figure = figures.difference(first, second, "lincka")
    axes = _axes(figure, "map")
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
    result = _result({"trained": 3, "other": 4, "random:trained": 3})
    one, other = result.select("trained"), result.select("random:trained")
    figure = figures.difference(one, other, "lincka", names=("trained", "untrained"))
    _assert_readable(figure)
    values = result.matrix("lincka").values
    expected = values[:3, :3] - values[7:, 7:]
    np.testing.assert_array_equal(_axes(figure, "map").images[0].get_array(), expected)
    texts = [t.get_text() for t in figure.texts]
    assert texts[0] == "Linear CKA: trained minus untrained"
    assert "trained minus random:trained" in " ".join(texts[1].split())


def test_difference_of_attention_with_undefined_cells() -> None:
    first, second = _attention_result(), _attention_result()
    second.dataset["attn_js"].values[3, 4] = np.nan
    axes = _axes(figures.difference(first, second, "attn_js", limits=(-1, 1)), "map")
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


def test_difference_refuses_networks_that_do_not_correspond() -> None:
    first = _result({"a": 3, "b": 2})
    with pytest.raises(
        UserError, match=r"new has a \(3 layers\), b \(2 layers\); old has a \(3 la"
    ):
        figures.difference(first, _result({"a": 3}), "lincka", names=("new", "old"))
    with pytest.raises(UserError, match="do not correspond"):
        figures.difference(first, _result({"c": 2, "d": 3}), "lincka")
    with pytest.raises(UserError, match="no measure 'cka'"):
        figures.difference(first, first, "cka")
    with pytest.raises(UserError, match="must increase"):
        figures.difference(first, first, "lincka", limits=(1, -1))


def test_save_figures(tmp_path: Path) -> None:
    paths = figures.save_figures(_result(SHAPES["four"]), tmp_path / "figures")
    names = [f"{kind}_{m}.png" for m in ("lincka", "maxcorr") for kind in ("heatmap", "trend")]
    assert [path.name for path in paths] == names
    pixels = matplotlib.image.imread(paths[0])
    assert pixels.shape[1] == 3.5 * 200
    single = figures.save_figures(_result(SHAPES["two"]), tmp_path)
    assert [path.name for path in single] == ["heatmap_lincka.png", "heatmap_maxcorr.png"]


def test_short_names_stay_apart() -> None:
    assert short_names(["org/a", "b", "runs/c/"]) == ["a", "b", "c"]
    assert short_names(["one/a", "two/a", "b"]) == ["one/a", "two/a", "b"]


@pytest.mark.parametrize("limit", [12.0, 30.0, 60.0])
def test_ellipsised_fits_and_keeps_both_ends(limit: float) -> None:
    name = "wav2vec2-large-lv60"
    short = ellipsised(name, limit, 7)
    assert text_width(short, 7) <= max(limit, text_width("w…0", 7))
    assert short[0] == "w" and short[-1] == "0" and "…" in short
    assert ellipsised(name, 1000, 7) == name


# Layers and heads of each model; the last has fewer heads.
HEADS = {
    "facebook/wav2vec2-base-960h": (12, 12),
    "facebook/hubert-large-ll60k": (24, 16),
    "org/tiny": (2, 1),
}
ATTENTION = {
    "attn_js": {"symmetric": False, "range": (0.307, 1), "summary": "1 - mean divergence of rows"}
}


def _attention_result(models: dict[str, tuple[int, int]] = HEADS) -> SimilarityResult:
    """As `measures.attention.score_attention` makes them, of random similarities."""
    rng = np.random.default_rng(3)
    networks = [NetworkName(m, i + 1) for m, (depth, _) in models.items() for i in range(depth)]
    counts = [models[network.model][1] for network in networks]
    size, most = len(networks), max(counts)
    blocks = np.full((size, size, most, most), np.nan, np.float32)
    baseline = np.full((size, 2, most), np.nan, np.float32)
    match = np.full((size, size, most), -1, np.int32)
    for i, x in enumerate(counts):
        baseline[i, :, :x] = np.sort(rng.uniform(0.4, 0.7, (2, x)), axis=0)
        for j, y in enumerate(counts):
            blocks[i, j, :x, :y] = np.eye(x, y) if i == j else rng.uniform(0.5, 0.95, (x, y)) ** 2
            match[i, j, :x] = blocks[i, j, :x, :y].argmax(1)
    best = np.fmax.reduce(blocks, axis=3)
    dims = ("x_attention", "y_attention")
    extras = {
        "baseline": (("baseline",), np.array(["diagonal", "shift"], dtype=object)),
        "attn_js_heads": ((*dims, "head_x", "head_y"), blocks),
        "attn_js_best": ((*dims, "head_x"), best),
        "attn_js_match": ((*dims, "head_x"), match),
        "attn_js_baseline": (("x_attention", "baseline", "head_x"), baseline),
    }
    return SimilarityResult.build(
        networks,
        {"attn_js": np.nanmean(best, axis=2)},
        extras,
        ATTENTION,
        {"frames": 9000, "utterances": 12, "note": "random weights"},
        attention_networks=networks,
        dims={"attn_js": dims},
    )


def test_attention_measures_have_maps_and_trends() -> None:
    result = _attention_result()
    figure = result.plot("attn_js")
    _assert_readable(figure)
    (image,) = _axes(figure, "map").images
    np.testing.assert_array_equal(image.get_array(), result.matrix("attn_js"))
    assert _axes(figure, "map").get_ylabel() == "row x (layer)"
    trend = figures.layer_trend(result, "attn_js")
    _assert_readable(trend)
    expected = result.dataset["attn_js_baseline"].values
    lines = [line for line in trend.axes[1].lines if "mean over" in str(line.get_gid())]
    assert len(lines) == 1 and lines[0].get_linestyle() == ":"
    np.testing.assert_allclose(lines[0].get_ydata(), expected[12:36, 0].mean(1), rtol=1e-6)
    (tiny,) = [line for line in trend.axes[2].lines if "half" in str(line.get_gid())]
    np.testing.assert_allclose(tiny.get_ydata(), expected[36:, 1, 0], rtol=1e-6)
    labels = [text.get_text() for text in trend.legends[0].get_texts()]
    assert labels[-2:] == [lines[0].get_gid(), tiny.get_gid()]


@pytest.mark.parametrize("y", ["facebook/hubert-large-ll60k/3", NetworkName("org/tiny", 2)])
def test_heads_against_heads(y: str | NetworkName) -> None:
    result = _attention_result()
    x = "facebook/wav2vec2-base-960h/12"
    figure = figures.plot_heads(result, "attn_js", x, y)
    _assert_readable(figure)
    axes = _axes(figure, "map")
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


@pytest.mark.parametrize("models", [tuple(HEADS)[:2], tuple(HEADS)[1::-1], tuple(HEADS)[::2]])
def test_which_head_matches_which(models: tuple[str, str]) -> None:
    result = _attention_result()
    figure = figures.head_matches(result, "attn_js", *models)
    _assert_readable(figure)
    axes = _axes(figure, "map")
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
    result = _attention_result()
    model = "facebook/wav2vec2-base-960h"
    figure = figures.head_matches(result, "attn_js", model, model)
    _assert_readable(figure)
    rows = {(text.get_position()[1] + 1, text.get_text()) for text in _axes(figure, "map").texts}
    assert len(rows) > 100
    assert all(int(text.split(".")[0]) != row for row, text in rows)


@pytest.mark.parametrize("heads", [1, 2])
def test_few_heads_and_layers_are_readable(heads: int) -> None:
    result = _attention_result({"org/a-rather-long-name-of-a-model": (2, heads), "b": (1, heads)})
    x, y = result.models
    _assert_readable(figures.head_matches(result, "attn_js", x, y))
    _assert_readable(figures.head_matches(result, "attn_js", y, x))
    _assert_readable(figures.plot_heads(result, "attn_js", f"{x}/1", f"{y}/1"))


def test_undefined_heads_are_hatched() -> None:
    result = _attention_result()
    result.dataset["attn_js_heads"].values[0, 13] = np.nan
    pair = [str(result.attention_networks[k]) for k in (0, 13)]
    figure = figures.plot_heads(result, "attn_js", *pair)
    assert any("hatched: not defined" in t.get_text() for t in figure.texts)


def test_head_figures_refuse_what_they_cannot_draw() -> None:
    result = _attention_result()
    x = "facebook/wav2vec2-base-960h/1"
    with pytest.raises(UserError, match="no attention layer org/tiny/3"):
        figures.plot_heads(result, "attn_js", x, "org/tiny/3")
    with pytest.raises(UserError, match="no measure 'lincka'"):
        figures.plot_heads(result, "lincka", x, x)
    with pytest.raises(UserError, match="no similarities of heads"):
        figures.head_matches(_result(PAPER), "lincka", *tuple(PAPER)[:2])
    with pytest.raises(UserError, match="no model 'c'"):
        figures.head_matches(result, "attn_js", "org/tiny", "c")
    single = _attention_result({"a": (1, 2)})
    with pytest.raises(UserError, match="not matched with itself"):
        figures.head_matches(single, "attn_js", "a", "a")


def _result_with_facts(models: dict[str, int], *left_out: str) -> SimilarityResult:
    result = _result(models)
    size = len(result.networks)
    rng = np.random.default_rng(1)
    rho = np.sort(rng.uniform(0, 1, (size, size, 6)))[:, :, ::-1].copy()
    rho[:, ::2, 4:] = np.nan
    pairs = ("x", "y")
    extras = {
        "rank": (("x",), rng.integers(700, 768, size)),
        "svcca_directions": (("x",), rng.integers(300, 600, size)),
        "condition": (("x",), 10 ** rng.uniform(3, 6, size)),
        "dead_neurons": (("x",), rng.integers(0, 3, size)),
        "outlier_share": (("x",), rng.uniform(0.1, 0.9, size)),
        "mean_to_std": (("x",), 10 ** rng.uniform(0, 3, size)),
        "lincka_floor": (pairs, rng.uniform(0, 0.1, (size, size))),
        "linreg_r2_floor": (pairs, rng.uniform(0, 0.2, (size, size))),
        "svcca_rho2_floor": (pairs, rng.uniform(0, 0.1, (size, size))),
        "svcca_rho": ((*pairs, "k"), rho),
    }
    extras = {name: extra for name, extra in extras.items() if name not in left_out}
    matrices = {m: result.matrix(m).values for m in result.measures}
    matrices["linreg"] = np.sqrt(matrices["maxcorr"])
    return SimilarityResult.build(result.networks, matrices, extras, MEASURES, result.attributes)


@pytest.mark.parametrize("shape", ["four", "one-model", "paper", "unequal"])
def test_facts_text_is_readable(shape: str) -> None:
    _assert_readable(figures.facts(_result_with_facts(SHAPES[shape])))


def test_facts_are_those_of_the_networks() -> None:
    result = _result_with_facts(PAPER)
    panels = {axes.get_title(): axes for axes in figures.facts(result).axes}
    assert list(panels) == [
        "rank, svcca_directions",
        "condition",
        "dead_neurons",
        "outlier_share",
        "mean_to_std",
        "lincka, its floor",
        "linreg, root of the floor of r²",
        "mean squared svcca_rho, its floor",
    ]
    model, where = "facebook/hubert-large-ll60k", slice(13, 37)
    data = {
        title: [line for line in axes.lines if line.get_gid() == model]
        for title, axes in panels.items()
    }
    values = {title: [line.get_ydata() for line in lines] for title, lines in data.items()}
    own = result.dataset.isel(x=where)
    for name in ("condition", "dead_neurons", "outlier_share", "mean_to_std"):
        np.testing.assert_array_equal(values[name], [own[name]])
    directions = [own["rank"], own["svcca_directions"]]
    np.testing.assert_array_equal(values["rank, svcca_directions"], directions)
    others = np.r_[0:13, 37:74]
    score = result.matrix("lincka").values[where][:, others].mean(axis=1)
    floor = own["lincka_floor"].values[:, others].mean(axis=1)
    np.testing.assert_allclose(values["lincka, its floor"], [score, floor])
    root = np.sqrt(own["linreg_r2_floor"].values)[:, others].mean(axis=1)
    np.testing.assert_allclose(values["linreg, root of the floor of r²"][1], root)
    squares = np.nanmean(own["svcca_rho"].values ** 2, axis=2)[:, others].mean(axis=1)
    np.testing.assert_allclose(values["mean squared svcca_rho, its floor"][0], squares)
    assert panels["condition"].get_yscale() == "log" != panels["outlier_share"].get_yscale()
    first, second = data["lincka, its floor"]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")


def test_facts_of_one_model_leave_self_similarity_out() -> None:
    result = _result_with_facts({"a": 5})
    axes = next(a for a in figures.facts(result).axes if a.get_title() == "lincka, its floor")
    values = result.matrix("lincka").values
    expected = (values.sum(axis=1) - 1) / 4
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)


def test_facts_that_are_missing_are_left_out() -> None:
    result = _result_with_facts(PAPER, "mean_to_std", "rank", "svcca_rho", "lincka_floor")
    titles = [axes.get_title() for axes in figures.facts(result).axes]
    assert titles[:3] == ["condition", "dead_neurons", "outlier_share"] and len(titles) == 4
    with pytest.raises(UserError, match="no facts to draw"):
        figures.facts(_result(PAPER))
    with pytest.raises(UserError, match="no model has two layers"):
        figures.facts(_result_with_facts(SHAPES["two"]))


def test_save_figures_of_heads_and_facts(tmp_path: Path) -> None:
    models = {"org/a": (2, 3), "b": (1, 2)}
    names = [path.name for path in figures.save_figures(_attention_result(models), tmp_path)]
    assert names == [
        "heatmap_attn_js.png",
        "trend_attn_js.png",
        "matches_attn_js_a_b.png",
        "heads_attn_js_a_b.png",
    ]
    alone = figures.save_figures(_attention_result({"a": (2, 3)}), tmp_path)
    assert [path.name for path in alone][2:] == ["matches_attn_js_a_a.png", "heads_attn_js_a_a.png"]
    facts = figures.save_figures(_result_with_facts(SHAPES["four"]), tmp_path)
    assert facts[-1].name == "facts.png"
