"""What every figure is drawn with: the page, its colours, cells and the bar beside them."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from speechsim_jax.labels import LINE, MEDIUM, SMALL

DPI = 200
# Okabe and Ito's colours that stay apart from white paper; markers repeat the distinction in grey.
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


class PrintFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def colour_limits(
    values: Float[np.ndarray, "x y"], declared: Sequence[int | float | None] | None
) -> tuple[float, float]:
    """The ends of the colour scale: what the data span, rounded outwards to readable numbers.

    A map that fills most of its measure's declared range gets the whole range, so that black is
    "nothing" and figures of one measure compare; a map in a narrow band is stretched over that
    band, or its structure could not be seen. The colour bar says which of the two it is.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    floor, ceiling = declared or (None, None)
    floor, ceiling = -np.inf if floor is None else floor, np.inf if ceiling is None else ceiling
    # Rounding errors put a self-similarity at 1 + 1e-7; the scale still ends at 1.
    low = floor if abs(low - floor) < 1e-4 else low
    high = ceiling if abs(high - ceiling) < 1e-4 else high
    if high - low >= 0.6 * (ceiling - floor):
        return float(min(low, floor)), float(max(high, ceiling))
    step = 10 ** np.floor(np.log10(max(high - low, 0.02))) / 2
    outer_low, outer_high = step * np.floor(low / step), step * np.ceil(high / step)
    if outer_low == outer_high:
        outer_low, outer_high = outer_low - step, outer_high + step
    # Rounding outwards must not cross the declared range unless the data do.
    return float(max(outer_low, min(low, floor))), float(min(outer_high, max(high, ceiling)))


def draw_cells(axes: Axes, values: Float[np.ndarray, "x y"], low: float, high: float) -> AxesImage:
    """The values as an image, with a hatch behind those that are not defined."""
    rows, columns = values.shape
    if np.isnan(values).any():
        below = Rectangle((-0.5, -0.5), columns, rows, facecolor="#d9d9d9", edgecolor="#8c8c8c")
        below.set(hatch="//////", linewidth=0, zorder=-1, gid="undefined")
        axes.add_patch(below)
    shown = np.ma.masked_invalid(values)
    # Light to dark in one direction: magma keeps its order in grey and to colour-blind readers.
    return axes.imshow(
        shown, cmap="magma", vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )


def draw_bar(axes: Axes, image: AxesImage, label: str, extend: str) -> None:
    """The colour scale in `axes`, pointed at the ends that values pass."""
    figure = image.get_figure()
    assert isinstance(figure, Figure)
    bar = figure.colorbar(image, cax=axes, extend=extend)
    bar.locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    bar.update_ticks()
    bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    bar.set_label(label, fontsize=MEDIUM, linespacing=LINE, labelpad=3)


def extend(values: Float[np.ndarray, "x y"], low: float, high: float) -> str:
    """Which ends of the colour scale values pass."""
    below, above = bool((values < low - 1e-4).any()), bool((values > high + 1e-4).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[(below, above)]


def dress_panel(axes: Axes, title: str) -> None:
    """Title, grid and spines of a panel with curves."""
    axes.set_title(title, fontsize=MEDIUM, pad=3, parse_math=False)
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    axes.grid(color="#e5e5e5", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.5)


def look(index: int, layers: int) -> dict[str, Any]:
    """Colour and marker of a model; markers on about eight of its layers."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 3.2,
        "linewidth": 1.0,
        "markeredgewidth": 0.8,
        "markevery": max(1, round(layers / 8)),
    }
