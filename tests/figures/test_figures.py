"""Figures as files: which are written, in what formats, and what all of them share."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

import speechsim_jax
from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.figures import style, text_layout
from speechsim_jax.figures.style import line_style
from speechsim_jax.figures.text_layout import balanced, pieces, short_names, text_width, wrapped
from speechsim_jax.settings import FIGURE_FORMATS
from tests.support.drawn import (
    PAPER,
    SHAPES,
    UNEQUAL,
    attention_result,
    axes_of,
    result_of,
    result_with_facts,
)
from tests.support.paths import ROOT


def test_save_figures(tmp_path: Path) -> None:
    paths = speechsim_jax.save_figures(result_of(SHAPES["four"]), tmp_path / "figures")
    names = [f"{kind}_{m}.png" for m in ("lincka", "maxcorr") for kind in ("heatmap", "trend")]
    assert [path.name for path in paths] == names
    pixels = matplotlib.image.imread(paths[0])
    assert pixels.shape[1] == 3.5 * 200
    single = figures.save_figures(result_of(SHAPES["two"]), tmp_path)
    assert [path.name for path in single] == ["heatmap_lincka.png", "heatmap_maxcorr.png"]


def test_save_figures_of_heads_and_facts(tmp_path: Path) -> None:
    models = {"org/a": (2, 3), "b": (1, 2)}
    names = [path.name for path in figures.save_figures(attention_result(models), tmp_path)]
    assert names == [
        "heatmap_attn_js.png",
        "trend_attn_js.png",
        "matches_attn_js_a_b.png",
        "heads_attn_js_a_b.png",
    ]
    alone = figures.save_figures(attention_result({"a": (2, 3)}), tmp_path)
    assert [path.name for path in alone][2:] == ["matches_attn_js_a_a.png", "heads_attn_js_a_a.png"]
    facts = figures.save_figures(result_with_facts(SHAPES["four"]), tmp_path)
    assert facts[-1].name == "facts.png"


def test_save_figures_in_the_paper_style(tmp_path: Path) -> None:
    result = result_of({"wav2vec2": 3, "hubert": 3})
    first, *_ = figures.save_figures(result, tmp_path / "1", style="paper")
    assert matplotlib.image.imread(first).shape == (960, 1280, 4)


@pytest.mark.slow
def test_save_figures_in_several_formats(tmp_path: Path) -> None:
    result = result_of(SHAPES["four"])
    paths = figures.save_figures(result, tmp_path, formats=("png", "pdf", "svg"))
    assert len(paths) == 3 * 4 and all(path.exists() for path in paths)
    assert [path.name for path in paths][:3] == [f"heatmap_lincka.{k}" for k in FIGURE_FORMATS]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert "Linear CKA" in paths[2].read_text()  # text, no outlines
    for wrong in (("jpg",), ("png", "jpg"), ()):
        with pytest.raises(UserError, match="png, pdf, svg, not as"):
            figures.save_figures(result, tmp_path / "none", formats=wrong)
    assert not (tmp_path / "none").exists()


def test_pdf_keeps_text_and_sharp_cells(tmp_path: Path) -> None:
    path = tmp_path / "map.pdf"
    figures.plot(result_of(PAPER), "lincka").savefig(path)
    content = path.read_bytes()
    assert b"/Subtype /Type0" in content and b"/CIDFontType2" in content  # TrueType
    assert b"/Type3" not in content and b"CreationDate" not in content
    sides = {
        tuple(map(int, m)) for m in re.findall(rb"/Width (\d+)\s+/Height (\d+)", content, re.S)
    }
    # A viewer that smooths images blurs a sixteenth of a cell, and no cell has another's size.
    assert (74 * 16, 74 * 16) in sides
    assert len(content) < 100_000


@pytest.mark.parametrize("name", ["wav2vec2-base-960h", "hubert-large-ll60k"])
def test_names_can_be_found_in_a_pdf(tmp_path: Path, name: str) -> None:
    """Text is shown as characters of two bytes, in strings between which letters are moved."""
    result = result_of({f"facebook/{name}": 12, "a_$b$": 3})
    for draw in (figures.plot, figures.layer_trend):
        path = tmp_path / "figure.pdf"
        draw(result, "maxcorr").savefig(path)
        text = _text_of(path.read_bytes())
        assert name in text and "a_$b$" in text and "2,703,511 frames" in text


def _text_of(pdf: bytes) -> str:
    """All that a PDF of matplotlib shows as text."""
    shown = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        for operand in re.findall(rb"BT(.*?)ET", content, re.S):
            for line in re.findall(rb"(\[.*?\]|\(.*?\))\s+T[jJ]", operand, re.S):
                parts = re.findall(rb"\(((?:\\.|[^\\)])*)\)", line, re.S)
                raw = re.sub(rb"\\([\\()])", rb"\1", b"".join(parts))
                shown.append(raw.decode("utf-16be"))
    return "\n".join(shown)


@pytest.mark.parametrize("dpi", [50, 72, 110])
def test_nothing_is_cut_at_a_low_resolution(tmp_path: Path, dpi: int) -> None:
    """Hinting would make text wider than it was measured."""
    result = result_of({f"model-of-a-name-{k}-of-some-length": 4 for k in range(8)})
    result.attributes["note"] = " ".join(["a remark that takes lines"] * 12)
    figures.plot(result, "maxcorr", width=3.5).savefig(tmp_path / "map.png", dpi=dpi)
    pixels = matplotlib.image.imread(tmp_path / "map.png")
    for edge in (pixels[:, :2], pixels[:, -2:], pixels[:2], pixels[-2:]):
        assert edge.min() == 1


def test_vector_cells_are_those_of_the_screen(tmp_path: Path) -> None:
    """The image in a vector file is the matrix, cell by cell, at its position."""
    figure = figures.plot(result_of(UNEQUAL), "maxcorr")
    axes = axes_of(figure, "map")
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


@pytest.mark.slow
def test_figures_are_the_same_bytes(tmp_path: Path) -> None:
    """In another process and at another time, with another seed of Python's hashes."""
    code = (
        "import sys; from speechsim_jax import figures\n"
        "from tests.support.drawn import SHAPES, result_of\n"
        "result = result_of(SHAPES['four'])\n"
        "figures.save_figures(result, sys.argv[1], ('png', 'pdf', 'svg'))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    names = [path.name for path in (tmp_path / "1").iterdir()]
    assert len(names) == 12
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


# --- colours and names ---


def test_one_place_for_colours() -> None:
    """Figures and report name no colour map but those of `style`."""
    package = Path(speechsim_jax.__file__).parent
    named = re.compile(r"colormaps|cmap=|set_cmap|colorscale: *[\"']|magma|viridis|PuOr|rocket")
    using = {p.name for p in package.rglob("*.[pj][ys]") if named.search(p.read_text())}
    assert using == {"style.py"}
    assert '"colours": [to_hex(c) for c in SCORES' in (package / "report/content.py").read_text()


def test_short_names_stay_apart() -> None:
    assert short_names(["org/a", "b", "runs/c/"]) == ["a", "b", "c"]
    assert short_names(["one/a", "two/a", "b"]) == ["one/a", "two/a", "b"]


def test_a_very_long_name_is_soon_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure with a name of 300 characters must not take half a minute."""
    widths = []
    measure = text_layout.text_width
    monkeypatch.setattr(
        text_layout, "text_width", lambda text, *rest: widths.append(text) or measure(text, *rest)
    )
    name = "/".join(["long-name_of-a-model"] * 15)
    assert "".join(balanced(name, 150.5, 7)) == name
    assert len(widths) < 1500


@pytest.mark.parametrize("limit", [20.0, 40.0, 90.0, 1000.0])
@pytest.mark.parametrize("name", [*PAPER, *UNEQUAL, "x" * 60, "a-b-c-d", "_", "runs/my model"])
def test_a_broken_name_is_whole_and_fits(name: str, limit: float) -> None:
    for lines in (wrapped(name, limit, 7), balanced(name, limit, 7)):
        assert "".join(lines).replace(" ", "") == name.replace(" ", "")
        assert all(text_width(line, 7) <= limit for line in lines)
        assert len(lines) == 1 or text_width(name, 7) > limit


def test_names_are_broken_where_they_allow_it() -> None:
    assert pieces("contrastive_s") == ["contrastive_s"]  # no line with a single letter
    assert pieces("predictive_s_ctc") == ["predictive_s_", "ctc"]
    for name in (*PAPER, *UNEQUAL):
        assert "".join(pieces(name)) == name
    assert wrapped("facebook/wav2vec2-large-lv60", 75, 7) == ("facebook/wav2vec2-", "large-lv60")
    # Lines of about the same width, where one would otherwise be short.
    assert balanced("wav2vec2-large-robust-ft-swbd-300h", 100, 7) == (
        "wav2vec2-large-",
        "robust-ft-swbd-300h",
    )


# --- colour-blind eyes: Machado et al. 2009 (doi 10.1109/TVCG.2009.113), severity 1 ---

_EYES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def _seen(colours: np.ndarray, eyes: str) -> np.ndarray:
    """Colours [.., 3] of sRGB, as colour-blind eyes see them, in CIELAB."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(_EYES[eyes]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    x, y, z = np.moveaxis(
        np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("eyes", _EYES)
def test_colours_are_told_apart_by_colour_blind_eyes(eyes: str) -> None:
    scores = _seen(style.SCORES(np.linspace(0, 1, 65))[:, :3], eyes)
    assert np.diff(scores[:, 0]).min() > 0  # lighter all the way
    differences = _seen(style.DIFFERENCES(np.linspace(0, 1, 65))[:, :3], eyes)
    light = differences[:, 0]
    assert np.diff(light[:32]).min() > 0 > np.diff(light[33:]).max()
    mirrored = np.linalg.norm(differences - differences[::-1], axis=1)[:16]
    assert mirrored.min() > 20  # of one size, but of two signs
    lines = _seen(np.array([to_rgb(line_style(k, 8)["color"]) for k in range(7)]), eyes)
    apart = np.linalg.norm(lines[:, None] - lines, axis=-1) + 1e3 * np.eye(7)
    assert apart.min() > 8


def test_no_two_of_many_models_have_one_line() -> None:
    styles = {(line_style(k, 8)["color"], line_style(k, 8)["marker"]) for k in range(49)}
    assert len(styles) == 49
