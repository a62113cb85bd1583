"""Figures fit for print: a heat map per measure, and similarity against depth.

Every size is in points at the figure's own width (3.5 to 7 in), so nothing is smaller than 6 pt on
the page. Layouts are computed from text extents; nothing is left to a tight bounding box.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from speechsim_jax.errors import UserError
from speechsim_jax.labels import (
    CROWD,
    GAP,
    LINE,
    MEDIUM,
    NO_SIDE,
    SMALL,
    Block,
    Side,
    blocks,
    ellipsised,
    headline,
    short_names,
    side_labels,
    text_width,
    unique,
)
from speechsim_jax.results import SimilarityResult

DPI = 200
# Okabe and Ito's colours that stay apart from white paper; markers repeat the distinction in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LEGEND: dict[str, Any] = {
    "fontsize": SMALL,
    "frameon": False,
    "handlelength": 2.6,
    "columnspacing": 1.2,
    "borderaxespad": 0.1,
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class PrintFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def heatmap(
    result: SimilarityResult,
    measure: str,
    *,
    limits: tuple[int | float, int | float] | None = None,
    title: str | None = None,
    width: int | float | None = None,
) -> Figure:
    """One square per pair of networks, row x and column y, one block per pair of models.

    `limits` are the ends of the colour scale, `width` the figure's width in inches; an empty
    `title` leaves title and caption to the text of the paper. Undefined (NaN) cells are hatched.

    Raises:
        UserError: an unknown measure, limits that are not increasing, or a width below 3 in.
    """
    matrix = result.matrix(measure)
    values = np.asarray(matrix.values, dtype=np.float64)
    rows, columns = values.shape
    definition = result.definition(measure)
    width = float(np.clip(2.6 + 0.044 * columns, 3.5, 7.0) if width is None else width)
    if width < 3:
        raise UserError(f"a heat map needs a width of at least 3 in, not {width}")
    low, high = map(float, limits or colour_limits(values, definition.get("range")))
    if not low < high:
        raise UserError(f"colour limits must increase, not {low} to {high}")
    directed = definition.get("symmetric") is False
    bar_space = 38 + MEDIUM * LINE * (2 if directed else 1)
    axis_label = MEDIUM * LINE + GAP + 2
    left, needed = 0.0, 2 * axis_label
    cell, side_x, side_y = 0.0, NO_SIDE, NO_SIDE
    while left < needed:  # the depth of the labels depends on the size of the map, and the reverse
        left = needed
        cell = (72 * width - left - bar_space) / columns
        side_x, side_y = side_labels(matrix, 0, cell), side_labels(matrix, 1, cell)
        needed = side_x.depth + axis_label
    notes = [f"{letter}: {name}" for letter, name in side_x.key.items()]
    notes += ["hatched: not defined"] if np.isnan(values).any() else []
    head = headline(result, measure, title, width, notes)
    below, map_width, map_height = side_y.depth + axis_label, cell * columns, cell * rows
    points = np.array([72 * width, below + map_height + head.depth])
    figure = PrintFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    axes = figure.add_axes(tuple([left, below, map_width, map_height] * scale), label="map")
    image = _draw_cells(axes, values, low, high)
    _draw_separators(axes, blocks(matrix, 0), blocks(matrix, 1))
    _draw_sides(axes, side_x, side_y, directed)
    bar_axes = figure.add_axes(
        tuple([left + map_width + 8, below, 8, map_height] * scale), label="bar"
    )
    label = f"{measure}\nrow x accounted for by column y" if directed else measure
    _draw_bar(bar_axes, image, label, _extend(values, low, high))
    head.draw(figure)
    return figure


def layer_trend(result: SimilarityResult, measure: str, *, title: str | None = None) -> Figure:
    """How the similarity of a model's layers to another model moves with their depth.

    One panel per model x; for every other model y, against the relative depth of x's layer: the
    score with y's best layer, and with the layer of y at the nearest relative depth. A model alone
    is compared with itself: its best other layer, and its next layer.

    Raises:
        UserError: an unknown measure, or no model with two layers.
    """
    models = unique(run.model for run in blocks(result.matrix(measure), 0))
    alone = len(models) == 1
    depths = {m: relative_depth(result.block(measure, m, m)) for m in models}
    if max(map(len, depths.values())) < 2:
        raise UserError(f"{measure}: a trend over layers needs a model with at least two layers")
    columns = min(len(models), 2 if len(models) in (2, 4) else 3)
    width = (3.5, 5.5, 7.0)[columns - 1]
    short = dict(zip(models, short_names(models), strict=True))
    head = headline(result, measure, title, width)
    handles = _trend_handles([] if alone else list(short.values()), 72 * width - 60)
    widest = max(text_width(str(handle.get_label()), SMALL) for handle in handles)
    legend_columns = max(1, int((72 * width - 12) // (widest + 32)))
    foot = 27 + 1.7 * SMALL * -(-len(handles) // legend_columns)
    panel_rows = -(-len(models) // columns)
    points = np.array([72 * width, foot + 118 * panel_rows + head.depth + 8])
    figure = PrintFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    left, bottom = [38, foot] / points
    right, top = 1 - [8, head.depth + 10] / points
    figure.subplots_adjust(left, bottom, right, top, wspace=0.08, hspace=0.2)
    panels = figure.subplots(panel_rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, x in zip(panels, models, strict=False):
        for y in models if alone else [m for m in models if m != x]:
            best, same = trend(result.block(measure, x, y), depths[x], depths[y], own=alone)
            style = {"label": y, **_look(models.index(y), len(depths[x]))}
            axes.plot(depths[x], best, linestyle="-", gid="best", **style)
            axes.plot(depths[x], same, "--", gid="same", markerfacecolor="white", **style)
        _dress_panel(axes, ellipsised(f"x: {short[x]}", 72 * width / columns - 40, MEDIUM))
    for axes in panels[len(models) :]:
        axes.remove()
    for axes in panels[max(0, len(models) - columns) : len(models)]:
        axes.tick_params(labelbottom=True)  # also above the gap that an incomplete row leaves
    figure.supylabel(measure, fontsize=MEDIUM, x=4 / points[0], y=(bottom + top) / 2, ha="left")
    label, place = "relative depth of x's layer", (foot - 13) / points[1]
    figure.supxlabel(label, fontsize=MEDIUM, x=(left + right) / 2, y=place, va="top")
    legend = figure.legend(handles=handles, loc="lower center", ncols=legend_columns, **_LEGEND)
    for text in legend.get_texts():
        text.set_parse_math(False)
    head.draw(figure)
    return figure


def save_figures(result: SimilarityResult, folder: str | os.PathLike[str]) -> list[Path]:
    """Write heatmap_<measure>.png and, where models have layers, trend_<measure>.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for measure in result.measures:
        figures = {"heatmap": heatmap(result, measure)}
        models = [run.model for run in blocks(result.matrix(measure), 0)]
        if any(len(result.block(measure, model, model)) > 1 for model in models):
            figures["trend"] = layer_trend(result, measure)
        for kind, figure in figures.items():
            paths.append(folder / f"{kind}_{measure}.png")
            figure.savefig(paths[-1], dpi=DPI)
    return paths


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


def relative_depth(block: xr.DataArray) -> Float[np.ndarray, " x"]:
    """The layers of a block's rows over the last of them, 0 to 1."""
    layers = np.asarray(block[f"{block.dims[0]}_layer"].values, dtype=np.float64)
    return layers / max(layers.max(), 1.0)


def trend(
    block: xr.DataArray,
    x_depth: Float[np.ndarray, " x"],
    y_depth: Float[np.ndarray, " y"],
    own: bool = False,
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]:
    """Each row's score with the best column, and with the column at the nearest relative depth.

    With `own` (a model against itself): the best other layer, and the next layer.
    """
    values = np.array(block.values, dtype=np.float64)
    same = values[np.arange(len(values)), np.abs(x_depth[:, None] - y_depth).argmin(axis=1)]
    if own:
        same = np.append(np.diagonal(values, 1), np.nan)
        np.fill_diagonal(values, np.nan)
    nearest = np.fmin if str(block.name).endswith("_distance") else np.fmax
    return nearest.reduce(values, axis=1), same


def _draw_cells(axes: Axes, values: Float[np.ndarray, "x y"], low: float, high: float) -> AxesImage:
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


def _draw_separators(axes: Axes, rows: Sequence[Block], columns: Sequence[Block]) -> None:
    if len(rows) > CROWD and len(rows) == rows[-1].stop:
        return  # single networks: a grid would hide the cells
    for run in rows[:-1]:
        axes.axhline(run.stop - 0.5, color="white", linewidth=0.8, gid="separator")
    for run in columns[:-1]:
        axes.axvline(run.stop - 0.5, color="white", linewidth=0.8, gid="separator")


def _draw_sides(axes: Axes, x: Side, y: Side, directed: bool) -> None:
    """Layers and names of the rows (network x, on the left) and the columns (y, below)."""
    axes.set_yticks([i for i, _ in x.ticks], [label for _, label in x.ticks])
    axes.set_xticks([i for i, _ in y.ticks], [label for _, label in y.ticks])
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    axes.spines[:].set_visible(False)
    _draw_names(axes, x, "x name", rotation=90, ha="right", va="center")
    _draw_names(axes, y, "y name", rotation=0, ha="center", va="top")
    kind = " (layer)" if x.ticks else ""
    row, column = ("row x", "column y") if directed else ("network x", "network y")
    axes.set_ylabel(f"{row}{kind}", fontsize=MEDIUM, labelpad=x.name_depth + 1)
    axes.set_xlabel(f"{column}{kind}", fontsize=MEDIUM, labelpad=y.name_depth + 1)


def _draw_names(axes: Axes, side: Side, gid: str, **style: Any) -> None:
    upright = gid == "x name"
    transform = axes.get_yaxis_transform() if upright else axes.get_xaxis_transform()
    offset = -side.tick_depth - 1
    for position, name in side.names:
        axes.annotate(
            name,
            xy=(0, position) if upright else (position, 0),
            xytext=(offset, 0) if upright else (0, offset),
            xycoords=transform,
            textcoords="offset points",
            annotation_clip=False,
            fontsize=MEDIUM,
            linespacing=LINE,
            multialignment="center",
            parse_math=False,
            gid=gid,
            **style,
        )


def _draw_bar(axes: Axes, image: AxesImage, label: str, extend: str) -> None:
    figure = image.get_figure()
    assert isinstance(figure, Figure)
    bar = figure.colorbar(image, cax=axes, extend=extend)
    bar.locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    bar.update_ticks()
    bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    bar.set_label(label, fontsize=MEDIUM, linespacing=LINE, labelpad=3)


def _extend(values: Float[np.ndarray, "x y"], low: float, high: float) -> str:
    below, above = bool((values < low - 1e-4).any()), bool((values > high + 1e-4).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[(below, above)]


def _dress_panel(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=MEDIUM, pad=3, parse_math=False)
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    axes.grid(color="#e5e5e5", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.5)


def _look(index: int, layers: int) -> dict[str, Any]:
    """Colour and marker of a model; markers on about eight of its layers."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 3.2,
        "linewidth": 1.0,
        "markeredgewidth": 0.8,
        "markevery": max(1, round(layers / 8)),
    }


def _trend_handles(names: Sequence[str], room: float) -> list[Line2D]:
    """The legend: a line for each model y, then what solid and dashed lines mean."""
    best, same = "best other layer", "next layer"
    if names:
        best, same = "best layer of y", "layer of y at the same relative depth"
    labels = [ellipsised(f"y: {name}", room, SMALL) for name in names]
    handles = [Line2D([], [], label=label, **_look(i, 8)) for i, label in enumerate(labels)]
    grey = {**_look(0, 8), "color": "#595959"}
    handles.append(Line2D([], [], label=best, linestyle="-", **grey))
    handles.append(Line2D([], [], label=same, linestyle="--", markerfacecolor="white", **grey))
    return handles
