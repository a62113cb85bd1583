"""Figures as files: which are written, in what formats, and what all of them share."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import speechsim_jax
from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.figures import text_layout
from speechsim_jax.figures.text_layout import ellipsised, short_names, text_width
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


def test_a_long_name_is_measured_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version took half a minute for a figure with a name of 300 characters."""
    widths = []
    measure = text_layout.text_width
    monkeypatch.setattr(
        text_layout, "text_width", lambda text, *rest: widths.append(text) or measure(text, *rest)
    )
    line = text_layout.ellipsised("long name " * 30, 100, 7)
    assert len(widths) < 12 and measure(line, 7) <= 100 < measure(f"xx{line}", 7)


@pytest.mark.parametrize("limit", [12.0, 30.0, 60.0])
def test_ellipsised_fits_and_keeps_both_ends(limit: float) -> None:
    name = "wav2vec2-large-lv60"
    short = ellipsised(name, limit, 7)
    assert text_width(short, 7) <= max(limit, text_width("w…0", 7))
    assert short[0] == "w" and short[-1] == "0" and "…" in short
    assert ellipsised(name, 1000, 7) == name
