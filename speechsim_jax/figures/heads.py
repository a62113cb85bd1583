"""Figures of attention heads: the heads of two layers, and the best match of every head."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import (
    DPI,
    StandaloneFigure,
    colour_bar_width,
    colour_limits,
    draw_bar,
    draw_cells,
    text_colour,
)
from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    balanced,
    headline,
    short_names,
    text_width,
    title_or_summary,
    unique,
)
from speechsim_jax.results.result import RepresentationName, SimilarityResult

_NAMES = (90.0, 160.0)  # room for a name, in points: at least, and as long as it needs


def plot_heads(
    result: SimilarityResult,
    measure: str,
    x: RepresentationName | str,
    y: RepresentationName | str,
    *,
    title: str | None = None,
) -> Figure:
    """One square per pair of heads of two layers, the best of each row circled.

    Args:
        result: the result to draw.
        measure: a measure of attention heads.
        x: the layer of the rows, as a name or "model/3".
        y: the layer of the columns.
        title: default: the summary of the measure.

    Raises:
        UserError: a measure without heads, or an unknown layer.
    """
    _require_heads(result, measure)
    labels = list(map(str, result.attention_representations))
    for name in (x, y):
        if str(name) not in labels:
            known = ", ".join(labels)
            raise UserError(f"no attention layer {name} in this result; it has: {known}")
    i, j = labels.index(str(x)), labels.index(str(y))
    match = result.dataset[f"{measure}_match"].values
    best = match[i, j][match[i, j] >= 0]
    heads_y = int(np.sum(match[j, i] >= 0))
    values = result.dataset[f"{measure}_heads"].values[i, j, : len(best), :heads_y]
    cell = float(np.clip(200 / heads_y, 12, 24))
    names = [_layer_name(result, result.attention_representations[k]) for k in (i, j)]
    axis_labels = f"head of y: {names[1]}", f"head of x: {names[0]}"
    notes = ["circled: the head of y that is most like x's head"]
    page = _Page(result, measure, title, values, cell, axis_labels, notes)
    ring: dict[str, Any] = {"s": (0.6 * cell) ** 2, "facecolors": "none"}
    page.axes.scatter(best, range(len(best)), edgecolors="black", linewidths=2.2, **ring)
    page.axes.scatter(
        best, range(len(best)), edgecolors="white", linewidths=1.0, gid="best", **ring
    )
    return page.figure


def head_matches(
    result: SimilarityResult,
    measure: str,
    x_model: str,
    y_model: str,
    *,
    title: str | None = None,
) -> Figure:
    """For every head of `x_model`, the head of `y_model` that is most like it, over all layers.

    One square per head, a row per layer of x: its colour is the similarity, its text layer.head of
    the match. On the right, the layer of y whose heads together best account for the layer of x. In
    a model against itself, a layer is not matched with itself.

    Args:
        result: the result to draw.
        measure: a measure of attention heads.
        x_model: the model whose heads are matched.
        y_model: the model with the matches.
        title: default: the summary of the measure.

    Raises:
        UserError: a measure without heads, an unknown model, or one layer against itself.
    """
    _require_heads(result, measure)
    block = result.block(measure, x_model, y_model)
    rows, columns = (block[dim].values for dim in block.dims)
    same_model = x_model == y_model
    if same_model and len(rows) == 1:
        raise UserError(f"{x_model} has one layer, which is not matched with itself")
    labels_of_pair = dict(zip(block.dims, (rows, columns), strict=True))
    best = _values(result.dataset[f"{measure}_best"].sel(labels_of_pair), same_model)
    match = result.dataset[f"{measure}_match"].sel(labels_of_pair).values
    score = _values(block, same_model)
    heads = int(np.max(np.sum(match[:, 0] >= 0, axis=1)))
    best, match = best[:, :, :heads], match[:, :, :heads]
    layer = np.argmax(np.nan_to_num(best, nan=-np.inf), axis=1)
    values = np.take_along_axis(best, layer[:, None], axis=1)[:, 0]
    winner = np.take_along_axis(match, layer[:, None], axis=1)[:, 0]
    layers = block[f"{block.dims[1]}_layer"].values
    texts = [
        [f"{layers[l]}.{head}" for l, head in zip(*row, strict=True)]
        for row in zip(layer, winner, strict=True)
    ]
    widest = max(text_width(text, SMALL) for row in texts for text in row)
    cell = float(np.clip(200 / heads, widest + 4, 24))
    gap = 2 * MEDIUM * LINE
    notes = [
        "in a square: layer.head of y; right: the layer of y that is best for all of x's heads"
    ]
    x_name, y_name = _short(result, x_model), _short(result, y_model)
    labels = f"head of x, y: {y_name}", f"layer of x: {x_name}"
    page = _Page(result, measure, title, values, cell, labels, notes, gap)
    for (row, head), value in np.ndenumerate(values):
        if np.isfinite(value):
            page.write(head, row, texts[row][head], value)
    page.axes.set_yticks(range(len(rows)), block[f"{block.dims[0]}_layer"].values)
    right = page.axes.secondary_yaxis("right")
    together = np.argmax(np.nan_to_num(score, nan=-np.inf), axis=1)
    right.set_yticks(range(len(rows)), layers[together])
    right.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    right.spines[:].set_visible(False)
    return page.figure


class _Page:
    """A figure with cells of `cell` points, a colour bar, and `gap` points between them.

    A map of few cells is stretched, so that the `labels` below it and on its left can be read.
    """

    def __init__(
        self,
        result: SimilarityResult,
        measure: str,
        title: str | None,
        values: Float[np.ndarray, "x y"],
        cell: float,
        labels: tuple[str, str],
        notes: list[str],
        gap: float = 0.0,
    ):
        rows, columns = values.shape
        needed = [float(np.clip(text_width(label, MEDIUM), *_NAMES)) for label in labels]
        side = max(cell * columns, needed[0]), max(cell * rows, needed[1])
        broken = [balanced(label, room, MEDIUM) for label, room in zip(labels, side, strict=True)]
        below, left = (
            extent + 6 + len(lines) * MEDIUM * LINE + GAP + 2
            for extent, lines in zip((SMALL, text_width("00", SMALL)), broken, strict=True)
        )
        limits = colour_limits(values, result.definition(measure).get("range"))
        bar_space = colour_bar_width(*limits, measure)
        width = max(left + side[0] + gap + bar_space, 72 * 3.5) / 72
        if np.isnan(values).any():
            notes = [*notes, "hatched: not defined"]
        head = headline(title_or_summary(result, measure, title), width, result.notes(), notes)
        points = np.array([72 * width, below + side[1] + head.height])
        self.figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
        scale = 1 / np.tile(points, 2)
        self.axes = self.figure.add_axes(tuple([left, below, *side] * scale), label="map")
        self._image = draw_cells(self.axes, values, *limits)
        draw_bar(self._image, measure, values, gap)
        self.axes.set_xticks(range(columns))
        self.axes.set_yticks(range(rows))
        self.axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
        self.axes.spines[:].set_visible(False)
        for lines, label in zip(broken, (self.axes.set_xlabel, self.axes.set_ylabel), strict=True):
            label("\n".join(lines), fontsize=MEDIUM, linespacing=LINE, parse_math=False)
        head.draw(self.figure)

    def write(self, x: int, y: int, text: str, value: float) -> None:
        """Write into the cell at column x and row y, light on dark or dark on light."""
        self.axes.text(
            x, y, text, ha="center", va="center", fontsize=SMALL, gid="match",
            color=text_colour(self._image, value),
        )  # fmt: skip


def _require_heads(result: SimilarityResult, measure: str) -> None:
    result.matrix(measure)
    if f"{measure}_heads" not in result.dataset:
        of_heads = [name for name in result.measures if f"{name}_heads" in result.dataset]
        raise UserError(
            f"{measure} has no similarities of heads; with them: {', '.join(of_heads) or 'none'}"
        )


def _values(array: xr.DataArray, same_model: bool) -> np.ndarray:
    """The values of layers x and y; within one model NaN for those of a layer with itself."""
    values = np.array(array.values, dtype=np.float64)
    if same_model:
        values[np.arange(len(values)), np.arange(len(values))] = np.nan
    return values


def _short(result: SimilarityResult, model: str) -> str:
    models = unique(representation.model for representation in result.attention_representations)
    return short_names(models)[models.index(model)]


def _layer_name(result: SimilarityResult, representation: RepresentationName) -> str:
    return f"{_short(result, representation.model)}, layer {representation.layer}"
