"""Figures fit for print: a heat map per measure, and similarity against depth.

Every size is in points at the figure's own width (3.5 to 7 in), so nothing is smaller than 6 pt on
the page. Layouts are computed from text extents; nothing is left to a tight bounding box.
"""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speechsim_jax.curves import facts, has_facts, layer_trend
from speechsim_jax.drawing import DPI, PrintFigure, colour_limits, draw_bar, draw_cells, extend
from speechsim_jax.errors import UserError
from speechsim_jax.head_maps import head_matches, plot_heads
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
    headline,
    short_names,
    side_labels,
    title_of,
    unique,
)
from speechsim_jax.results import SimilarityResult


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
    head = headline(result, title_of(result, measure, title), width, notes)
    below, map_width, map_height = side_y.depth + axis_label, cell * columns, cell * rows
    points = np.array([72 * width, below + map_height + head.depth])
    figure = PrintFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    axes = figure.add_axes(tuple([left, below, map_width, map_height] * scale), label="map")
    image = draw_cells(axes, values, low, high)
    _draw_separators(axes, blocks(matrix, 0), blocks(matrix, 1))
    _draw_sides(axes, side_x, side_y, directed)
    bar_axes = figure.add_axes(
        tuple([left + map_width + 8, below, 8, map_height] * scale), label="bar"
    )
    label = f"{measure}\nrow x accounted for by column y" if directed else measure
    draw_bar(bar_axes, image, label, extend(values, low, high))
    head.draw(figure)
    return figure


def save_figures(result: SimilarityResult, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the figures that a result has as <kind>_<measure>.png and facts.png.

    heatmap; trend and facts where models have layers; of measures on attention heads, for every two
    models (or the only one), matches, and heads of the two layers that are most alike.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    for measure in result.measures:
        figures[f"heatmap_{measure}"] = heatmap(result, measure)
        models = unique(run.model for run in blocks(result.matrix(measure), 0))
        if any(len(result.block(measure, model, model)) > 1 for model in models):
            figures[f"trend_{measure}"] = layer_trend(result, measure)
        if f"{measure}_heads" in result.dataset:
            figures |= _figures_of_heads(result, measure, models)
    if has_facts(result):
        figures["facts"] = facts(result)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def _figures_of_heads(
    result: SimilarityResult, measure: str, models: Sequence[str]
) -> dict[str, Figure]:
    names = [name.replace("/", "_") for name in short_names(models)]
    found: dict[str, Figure] = {}
    for i, j in list(combinations(range(len(models)), 2)) or [(0, 0)]:
        block = result.block(measure, models[i], models[j])
        values = np.array(block.values, dtype=np.float64)
        if i == j:
            np.fill_diagonal(values, np.nan)
        if np.isnan(values).all():
            continue
        x, y = np.unravel_index(np.nanargmax(values), values.shape)
        pair = [str(block[dim].values[k]) for dim, k in zip(block.dims, (x, y), strict=True)]
        suffix = f"{measure}_{names[i]}_{names[j]}"
        found[f"matches_{suffix}"] = head_matches(result, measure, models[i], models[j])
        found[f"heads_{suffix}"] = plot_heads(result, measure, *pair)
    return found


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
