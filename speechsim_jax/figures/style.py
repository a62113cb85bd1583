"""What all figures share: the page, colours, cells, the colour bar, and writing to files."""

import functools
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from speechsim_jax.figures.text_layout import LINE, MEDIUM, SMALL, text_width
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, atomic_write
from speechsim_jax.settings import check_figure_formats

DPI = 200

# The colours of every map here and in the report.
# Scores: light to dark in one direction, so magma keeps its order in grey and to colour-blind eyes.
SCORES: Colormap = matplotlib.colormaps["magma"]
# Differences: two hues that colour-blind eyes tell apart, both darker away from zero.
DIFFERENCES: Colormap = matplotlib.colormaps["PuOr_r"]
# Every 15th colour of seaborn's rocket, which the published maps are drawn with; the colours
# interpolated between them are at most 2.3 of 255 from seaborn's.
PUBLISHED: Colormap = LinearSegmentedColormap.from_list(
    "rocket",
    [
        "#03051a", "#170f28", "#2d1738", "#431c46", "#5b1e51", "#731f58", "#8c1d5b", "#a6195a",
        "#bf1654", "#d5224a", "#e53940", "#ef5640", "#f3734e", "#f58d64", "#f6a67e", "#f6be9b",
        "#f8d4bc", "#faebdd",
    ],
)  # fmt: skip

# Okabe and Ito's colours, which colour-blind eyes tell apart, but those too light for white paper;
# markers repeat the distinction in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#595959"
LEGEND: dict[str, Any] = {
    "fontsize": SMALL,
    "frameon": False,
    "handlelength": 2.6,
    "columnspacing": 1.2,
    "borderaxespad": 0.1,
}
_BAR = 8.0  # gap before a colour bar, and its width, in points
_TICK = 4.0  # a tick of the bar and the gap to its number
_LABEL_GAP = 3.0
# Pixels per side of a cell in vector files: viewers that smooth images blur the outermost ones,
# not the whole cell.
_PIXELS_PER_CELL = 16
# Differences below this share of the greatest are nearly white; their sign is not marked.
_FAINT = 0.05


class StandaloneFigure(Figure):
    """A figure that notebooks show without pyplot, and whose files are always the same bytes."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """As in matplotlib, with text as text (TrueType in PDF) and no date.

        Args:
            fname: the path, or a binary file.
            options: matplotlib's.
        """
        kind = options.get("format") or Path(str(fname)).suffix[1:]
        dates = {"pdf": "CreationDate", "svg": "Date"}
        if kind in dates:
            options["metadata"] = {dates[kind]: None} | options.get("metadata", {})
        # Without hinting a text is as wide as it was measured, whatever the resolution.
        # A salt makes the ids in SVG, which are random by default, those of the content.
        rc: Any = {
            "text.hinting": "none",
            "pdf.fonttype": 42,
            "svg.fonttype": "none",
            "svg.hashsalt": "speechsim_jax",
        }
        with matplotlib.rc_context(rc):
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def write_figures(
    figures: Mapping[str, Figure],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("png",),
) -> list[AnyPath]:
    """Write every figure as <name>.<format>; a reader sees the old file or the new one, never half.

    Args:
        figures: by name.
        folder: where the files go; made if needed.
        formats: of png, pdf and svg.

    Returns:
        The paths of the files.

    Raises:
        UserError: another format, or none.
    """
    check_figure_formats(formats)
    folder = as_path(folder)
    paths = []
    for name, figure in figures.items():
        for kind in dict.fromkeys(formats):
            save = functools.partial(figure.savefig, format=kind)
            paths.append(atomic_write(folder / f"{name}.{kind}", save))
    return paths


def colour_limits(
    values: Float[np.ndarray, "x y"], declared: Sequence[int | float | None] | None
) -> tuple[float, float]:
    """The ends of the colour scale: what the data span, rounded outwards to readable numbers.

    A map that fills most of its measure's declared range gets the whole range, so that black is
    "nothing" and figures of one measure compare; a map in a narrow band is stretched over that
    band, or its structure could not be seen. The colour bar shows which of the two it is.

    Args:
        values: the scores; those that are not finite are left out.
        declared: the least and the greatest score that the measure can have; None where unknown.

    Returns:
        The least and the greatest score of the scale.
    """
    if not np.isfinite(values).any():
        return 0.0, 1.0
    (low, high), (floor, ceiling) = _span(values, declared)
    if high - low >= 0.6 * (ceiling - floor):
        return float(min(low, floor)), float(max(high, ceiling))
    step = 10 ** np.floor(np.log10(max(high - low, 0.02))) / 2
    outer_low, outer_high = step * np.floor(low / step), step * np.ceil(high / step)
    if outer_low == outer_high:
        outer_low, outer_high = outer_low - step, outer_high + step
    # Rounding outwards must not cross the declared range unless the data do.
    return float(max(outer_low, min(low, floor))), float(min(outer_high, max(high, ceiling)))


def extremes(
    values: Float[np.ndarray, "x y"], declared: Sequence[int | float | None] | None
) -> tuple[float, float]:
    """The ends of a colour scale from the least value to the greatest, as in the published maps.

    Args:
        values: the scores; those that are not finite are left out.
        declared: as in `colour_limits`.
    """
    if not np.isfinite(values).any():
        return 0.0, 1.0
    (low, high), _ = _span(values, declared)
    return (low, high) if low < high else (low - 0.005, high + 0.005)


def _span(
    values: Float[np.ndarray, "x y"], declared: Sequence[int | float | None] | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest value, and the declared ends, infinite where None."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    floor, ceiling = declared or (None, None)
    floor = -np.inf if floor is None else float(floor)
    ceiling = np.inf if ceiling is None else float(ceiling)
    # Rounding errors put a self-similarity at 1 + 1e-7; the scale still ends at 1.
    low = floor if abs(low - floor) < 1e-4 else low
    high = ceiling if abs(high - ceiling) < 1e-4 else high
    return (low, high), (floor, ceiling)


def difference_limits(values: Float[np.ndarray, "x y"]) -> tuple[float, float]:
    """A colour scale centred at zero: -d to d, the greatest difference rounded outwards."""
    finite = np.abs(values[np.isfinite(values)])
    far = max(float(finite.max(initial=0.0)), 0.01)
    step = 10 ** np.floor(np.log10(far)) / 2
    far = float(step * np.ceil(far / step - 1e-9))
    return -far, far


class _CellImage(AxesImage):
    """An image whose cells stay squares with sharp edges in vector files."""

    def make_image(
        self, renderer: Any, magnification: float | int = 1.0, unsampled: bool = False
    ) -> tuple[Any, Any, Any, Any]:
        image, x, y, transform = super().make_image(renderer, magnification, unsampled)
        if unsampled and image is not None:
            image = np.repeat(np.repeat(image, _PIXELS_PER_CELL, axis=0), _PIXELS_PER_CELL, axis=1)
            transform = Affine2D().scale(1 / _PIXELS_PER_CELL) + transform
        return image, x, y, transform


def draw_cells(
    axes: Axes,
    values: Float[np.ndarray, "x y"],
    low: float,
    high: float,
    colours: Colormap = SCORES,
) -> AxesImage:
    """Draw the values as an image, row 0 on top, with a hatch behind those that are not defined.

    Args:
        axes: where; its limits become those of the cells.
        values: NaN where not defined.
        low: the value of the first colour.
        high: the value of the last colour.
        colours: default: those of scores.
    """
    rows, columns = values.shape
    if np.isnan(values).any():
        below = Rectangle((-0.5, -0.5), columns, rows, facecolor="#d9d9d9", edgecolor="#8c8c8c")
        below.set(hatch="//////", linewidth=0, zorder=-1, gid="undefined")
        axes.add_patch(below)
    image = _CellImage(axes, cmap=colours, norm=Normalize(low, high), interpolation="none")
    image.set_data(np.ma.masked_invalid(values))
    image.set_extent((-0.5, columns - 0.5, rows - 0.5, -0.5))
    image.set_clip_path(axes.patch)
    axes.add_image(image)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="auto")
    return image


def draw_dashes(image: AxesImage, values: Float[np.ndarray, "x y"]) -> None:
    """Draw a dash in every cell that is clearly below zero: both hues are one grey in a copy.

    Args:
        image: a map of differences.
        values: of its cells.
    """
    axes = image.axes
    assert axes is not None
    rows, columns = np.nonzero(values < -_FAINT * image.get_clim()[1])
    side = _cell_side(image, values.shape[1])
    axes.scatter(
        columns,
        rows,
        marker="_",
        s=(0.5 * side) ** 2,
        c=[text_colour(image, values[cell]) for cell in zip(rows, columns, strict=True)],
        linewidths=min(0.6, 0.15 * side),
        gid="below zero",
    )


def draw_outlines(
    image: AxesImage,
    marked: Bool[np.ndarray, "x y"],
    row_borders: Sequence[int],
    column_borders: Sequence[int],
) -> None:
    """Draw a line around the marked cells of a map, black in white, to be seen on every colour.

    Args:
        image: the map.
        marked: the cells; neighbours share one outline.
        row_borders: the first rows of blocks, which end an outline.
        column_borders: the first columns of blocks.
    """
    axes = image.axes
    assert axes is not None
    # An edge where one of its two cells is marked, and at a border where either is.
    above, below = np.pad(marked, ((1, 0), (0, 0))), np.pad(marked, ((0, 1), (0, 0)))
    horizontal = above != below
    horizontal[row_borders] |= (above | below)[row_borders]
    left, right = np.pad(marked, ((0, 0), (1, 0))), np.pad(marked, ((0, 0), (0, 1)))
    vertical = left != right
    vertical[:, column_borders] |= (left | right)[:, column_borders]
    edges = [((x, y), (x + 1, y)) for y, x in np.argwhere(horizontal)]
    edges += [((x, y), (x, y + 1)) for y, x in np.argwhere(vertical)]
    segments = np.reshape(edges, (-1, 2, 2)) - 0.5
    black = float(np.clip(0.08 * _cell_side(image, marked.shape[1]), 0.4, 0.8))
    for colour, width in (("white", 2.4 * black), ("black", black)):
        lines = LineCollection(
            list(segments), colors=colour, linewidths=width, capstyle="projecting", clip_on=False,
            gid=f"not different, {colour}", zorder=3,
        )  # fmt: skip
        axes.add_collection(lines, autolim=False)


def _cell_side(image: AxesImage, columns: int) -> float:
    """The width of a cell in points."""
    figure, axes = image.get_figure(), image.axes
    assert isinstance(figure, Figure) and axes is not None
    return axes.get_window_extent().width / figure.dpi * 72 / columns


def text_colour(image: AxesImage, value: float) -> str:
    """Black or white, whichever can be read on the colour of a value."""
    red, green, blue, _ = image.to_rgba(np.array([value]))[0]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _bar_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers on a colour scale, all with as many decimals as one of them needs."""
    candidates = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    tolerance = 1e-9 * (high - low)
    ticks = [float(tick) for tick in candidates if low - tolerance <= tick <= high + tolerance]
    texts = [np.format_float_positional(tick, 10, trim="-") for tick in ticks]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return ticks, [f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def colour_bar_width(low: float, high: float, label: str) -> float:
    """The room that a colour bar takes next to its map, in points: gap, bar, numbers and label.

    Args:
        low: the lower end of its scale.
        high: the upper end of its scale.
        label: may have several lines; "" for none.
    """
    widest = max((text_width(text, SMALL) for text in _bar_ticks(low, high)[1]), default=0.0)
    lines = label.count("\n") + 1 if label else 0
    return 2 * _BAR + _TICK + widest + (_LABEL_GAP + lines * MEDIUM * LINE) * bool(label) + 3


def draw_bar(
    image: AxesImage, label: str, values: Float[np.ndarray, "x y"], gap: float = 0.0
) -> Axes:
    """Draw the colour scale on the right of its map, pointed at the ends that the values pass.

    Args:
        image: the map.
        label: stands next to the bar.
        values: the values of the map.
        gap: points between map and bar that stay free for more.
    """
    figure, axes = image.get_figure(), image.axes
    assert isinstance(figure, Figure) and axes is not None
    x, y, width, height = axes.get_position().bounds
    point = 1 / (72 * figure.get_figwidth())
    left = x + width + (gap + _BAR) * point
    bar_axes = figure.add_axes((left, y, _BAR * point, height), label="bar")
    low, high = map(float, image.get_clim())
    bar = figure.colorbar(image, cax=bar_axes, extend=_extend(values, low, high))
    ticks, texts = _bar_ticks(low, high)
    bar.set_ticks(ticks, labels=texts)
    bar.minorticks_off()
    bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    bar_axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    bar.set_label(label, fontsize=MEDIUM, linespacing=LINE, labelpad=_LABEL_GAP)
    return bar_axes


def _extend(values: Float[np.ndarray, "x y"], low: float, high: float) -> str:
    """Which ends of the colour scale the values pass."""
    below, above = bool((values < low - 1e-4).any()), bool((values > high + 1e-4).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[(below, above)]


def style_panel(axes: Axes, title: str) -> None:
    """Set title, grid and spines of a panel with curves."""
    axes.set_title(title, fontsize=MEDIUM, pad=3, parse_math=False)
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    axes.grid(color="#e5e5e5", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.5)


def line_style(index: int, layers: int) -> dict[str, Any]:
    """Colour and marker of the curve of a model.

    The first 49 models have different pairs of colour and marker.

    Args:
        index: the position of the model.
        layers: how many points the curve has; about eight of them get a marker.

    Returns:
        Keyword arguments of matplotlib's `plot`.
    """
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)],
        "markersize": 3.2,
        "linewidth": 1.0,
        "markeredgewidth": 0.8,
        "markevery": max(1, round(layers / 8)),
    }
