"""Heat maps of representations: with all labels, or in the layout of the published maps.

Sizes are in points at the figure's own width; layouts are computed from text extents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from speechsim_jax.errors import UserError
from speechsim_jax.figures.map_labels import CROWD, Labels, draw_names, map_labels, model_spans
from speechsim_jax.figures.marks import Marks
from speechsim_jax.figures.style import (
    DIFFERENCES,
    DPI,
    PUBLISHED,
    StandaloneFigure,
    colour_bar_width,
    draw_bar,
    draw_cells,
    draw_dashes,
    draw_outlines,
)
from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    headline,
    key_of,
    wrapped,
)
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.settings import check_figure_style

# The published figures have 640 x 480 pixels at 100 per inch: the rectangles of map and bar in
# them, as fractions, and the size of the bar's numbers. It is the layout of seaborn.heatmap without
# ticks.
_PAPER_WIDTH, _PAPER_HEIGHT = 6.4, 4.8
_PAPER_MAP = (0.125, 0.11, 0.62, 0.77)
_PAPER_BAR = (0.78375, 0.11, 0.77 * 480 / 20 / 640, 0.77)
_PAPER_TEXT = 10.0
_SHORTEST_BAR = 72.0  # room for the lines of a bar's label, in points


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What a heat map shows.

    Attributes:
        matrix: a result's matrix, with its labels.
        limits: the ends of the colour scale.
        label: stands at the colour bar.
        directed: whether the score of (x, y) may differ from that of (y, x).
        signed: whether the values are differences around zero.
        marks: cells that are outlined.
    """

    matrix: xr.DataArray
    limits: tuple[float, float]
    label: str
    directed: bool = False
    signed: bool = False
    marks: Marks | None = None

    @property
    def values(self) -> Float[np.ndarray, "x y"]:
        """The matrix as numbers."""
        return np.asarray(self.matrix.values, dtype=np.float64)

    @property
    def dashes(self) -> bool:
        """Whether cells below zero carry a dash: where there are cells on both sides of it."""
        return self.signed and bool((self.values < 0).any() and (self.values > 0).any())

    @property
    def bar_label(self) -> str:
        """The text at the colour bar of a labelled map."""
        return f"{self.label}\nrow x accounted for by column y" if self.directed else self.label


def draw(
    heatmap: HeatMap,
    style: str,
    title: str,
    notes: Sequence[str],
    width: int | float | None,
    margin: float = 0.0,
) -> tuple[StandaloneFigure, Axes]:
    """Draw a heat map into a figure of its own.

    Args:
        heatmap: what to draw.
        style: one of `settings.FIGURE_STYLES`.
        title: "" for none.
        notes: parts of the caption; the paper style has none.
        width: of the figure in inches; default: what the map needs, up to 7.
        margin: inches on the right of the colour bar that stay free.

    Returns:
        The figure, and the axes of the map.

    Raises:
        UserError: an unknown style, limits that are not increasing, or a figure that is too narrow.
    """
    check_figure_style(style)
    low, high = heatmap.limits
    if not low < high:
        raise UserError(f"colour limits must increase, not {low} to {high}")
    needed = max(2.6 + 0.044 * heatmap.values.shape[1], 3.5)
    default = min((_PAPER_WIDTH if style == "paper" else needed) + margin, 7.0)
    inches = default if width is None else float(width)
    if inches < 3 + margin:
        raise UserError(f"a heat map needs a width of at least {3 + margin:g} in, not {inches:g}")
    if style == "paper":
        return _paper(heatmap, title, inches, margin)
    return _labelled(heatmap, title, notes, inches, margin)


def _labelled(
    heatmap: HeatMap, title: str, notes: Sequence[str], width: float, margin: float
) -> tuple[StandaloneFigure, Axes]:
    rows, columns = heatmap.values.shape
    axis_label = MEDIUM * LINE + 2 * GAP
    room = 72 * (width - margin) - axis_label
    bar_label, labels, cell = _fitted(heatmap, room, width)
    left = 72 * (width - margin) - colour_bar_width(*heatmap.limits, bar_label) - cell * columns
    key = key_of(labels.key, width)
    notes_of_map = ["dash: below zero"] if heatmap.dashes else []
    notes_of_map += [f"outlined: {heatmap.marks.text}"] if heatmap.marks else []
    notes_of_map += ["hatched: not defined"] if np.isnan(heatmap.values).any() else []
    head = headline(title, width, notes, notes_of_map)
    below = key.height + labels.y.extent + axis_label
    map_width, map_height = cell * columns, cell * rows
    points = np.array([72 * width, below + map_height + head.height])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    axes = figure.add_axes(tuple([left, below, map_width, map_height] * scale), label="map")
    image = _draw_values(axes, heatmap)
    _draw_separators(axes, heatmap)
    _draw_marks(image, heatmap)
    _draw_sides(axes, labels, heatmap.directed)
    draw_bar(image, bar_label, heatmap.values)
    key.draw(figure)
    head.draw(figure)
    return figure, axes


def _fitted(heatmap: HeatMap, room: float, width: float) -> tuple[str, Labels, float]:
    """The bar's label in lines no longer than the bar, the map's labels, the side of its cells.

    The map becomes smaller with the lines of the label, and these shorter with the map.
    """
    bar_label = heatmap.bar_label
    while True:
        bar_space = colour_bar_width(*heatmap.limits, bar_label)
        labels, cell = map_labels(heatmap.matrix, room - bar_space, 72 * width)
        height = max(cell * heatmap.values.shape[0], _SHORTEST_BAR)
        lines = [wrapped(line, height, MEDIUM) for line in heatmap.bar_label.split("\n")]
        broken = "\n".join(line for part in lines for line in part)
        if broken.count("\n") <= bar_label.count("\n"):
            return bar_label, labels, cell
        bar_label = broken


def _paper(
    heatmap: HeatMap, title: str, width: float, margin: float
) -> tuple[StandaloneFigure, Axes]:
    """Row 0 on top, no labels, no lines between models, cells that fill the frame."""
    map_width = width - margin
    size = map_width / _PAPER_WIDTH
    figure = StandaloneFigure(figsize=(width, _PAPER_HEIGHT * size), dpi=DPI, facecolor="white")
    scale = np.array([map_width / width, 1, map_width / width, 1])
    axes = figure.add_axes(tuple(scale * _PAPER_MAP), label="map")
    image = _draw_values(axes, heatmap, PUBLISHED)
    _draw_marks(image, heatmap)
    axes.set_axis_off()
    bar_axes = figure.add_axes(tuple(scale * _PAPER_BAR), label="bar")
    bar = figure.colorbar(image, cax=bar_axes)
    bar.outline.set_linewidth(0)  # pyright: ignore[reportCallIssue]
    bar_axes.tick_params(labelsize=max(SMALL, _PAPER_TEXT * size))
    if title:
        axes.set_title(title, fontsize=max(MEDIUM, 1.2 * _PAPER_TEXT * size), parse_math=False)
    return figure, axes


def _draw_values(axes: Axes, heatmap: HeatMap, *colours: Any) -> AxesImage:
    if heatmap.signed:
        colours = (DIFFERENCES,)
    image = draw_cells(axes, heatmap.values, *heatmap.limits, *colours)
    if heatmap.dashes:
        draw_dashes(image, heatmap.values)
    return image


def published_order(result: SimilarityResult) -> list[str]:
    """The models in the order of the published maps: predictive first, then small before large.

    A model is contrastive, not predictive, if it is a wav2vec2: by the model type in the result's
    provenance, without one by its name.
    """
    metadata = result.attributes.get("models", {})

    def sort_key(model: str) -> tuple[bool, int, int]:
        family = metadata.get(model, {}).get("model_type") or model
        first = next(k for k, name in enumerate(result.representations) if name.model == model)
        width = result.dataset["width"].values[first] if "width" in result.dataset else 0
        return "wav2vec2" in family, result.transformer_layers[model], int(width)

    return sorted(result.models, key=sort_key)


def _draw_marks(image: AxesImage, heatmap: HeatMap) -> None:
    if heatmap.marks:
        borders = [
            [span.start for span in model_spans(heatmap.matrix, axis)[1:]] for axis in (0, 1)
        ]
        draw_outlines(image, heatmap.marks.cells, *borders)


def _draw_separators(axes: Axes, heatmap: HeatMap) -> None:
    rows, columns = model_spans(heatmap.matrix, 0), model_spans(heatmap.matrix, 1)
    if len(rows) > CROWD and len(rows) == rows[-1].stop:
        return  # models of one layer: a grid would hide the cells
    colour = "black" if heatmap.signed else "white"
    style: dict[str, Any] = {"color": colour, "linewidth": 0.8, "gid": "separator"}
    for span in rows[:-1]:
        axes.axhline(span.stop - 0.5, **style)
    for span in columns[:-1]:
        axes.axvline(span.stop - 0.5, **style)


def _draw_sides(axes: Axes, labels: Labels, directed: bool) -> None:
    """Layers and names of the rows (representation x, on the left) and the columns (y, below)."""
    x, y = labels.x, labels.y
    axes.set_yticks([i for i, _ in x.ticks], [label for _, label in x.ticks])
    axes.set_xticks([i for i, _ in y.ticks], [label for _, label in y.ticks])
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    axes.spines[:].set_visible(False)
    draw_names(axes, x, 0)
    draw_names(axes, y, 1)
    kind = " (layer)" if x.ticks else ""
    row, column = ("row x", "column y") if directed else ("representation x", "representation y")
    axes.set_ylabel(f"{row}{kind}", fontsize=MEDIUM, labelpad=x.name_extent + GAP)
    axes.set_xlabel(f"{column}{kind}", fontsize=MEDIUM, labelpad=y.name_extent + GAP)
