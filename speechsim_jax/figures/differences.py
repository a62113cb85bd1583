"""Maps that compare: a model before and after fine-tuning, two results, scores and a reference."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from speechsim_jax.errors import UserError
from speechsim_jax.figures.heatmap import HeatMap, draw
from speechsim_jax.figures.map_labels import model_spans
from speechsim_jax.figures.marks import in_words, marks_of
from speechsim_jax.figures.style import colour_limits, difference_limits, extremes, style_panel
from speechsim_jax.figures.text_layout import MEDIUM, title_or_summary
from speechsim_jax.inference.differences import FALSE_DISCOVERY_RATE
from speechsim_jax.results.reference import CLOSEST
from speechsim_jax.results.result import SimilarityResult

_PANEL = 1.5  # room for the curve next to a map, in inches
_PAPER_MARGIN = 0.5  # what the published layout leaves free on the right of the bar's numbers


def finetuned(
    result: SimilarityResult,
    measure: str,
    tuned: str,
    pretrained: str,
    *,
    style: str = "labelled",
    title: str | None = None,
    width: int | float | None = None,
) -> Figure:
    """The layers of a pretrained model (rows) against those of its fine-tuned form (columns).

    Next to it, row by row, the score of each layer with the same layer: what fine-tuning changed.

    Args:
        result: the result to draw.
        measure: the measure to draw.
        tuned: the fine-tuned model.
        pretrained: the model that it was fine-tuned from.
        style: "labelled", or "paper", the layout of the published maps.
        title: default: the summary of the measure; in style "paper" none.
        width: in inches; default: what the map needs, up to 7.

    Raises:
        UserError: an unknown measure, model or style, one model given twice, models that have no
            layer in common, or a width that is too small.
    """
    if tuned == pretrained:
        raise UserError(f"{tuned} is given twice; name the fine-tuned and the pretrained model")
    matrix = result.block(measure, pretrained, tuned)
    values = np.asarray(matrix.values, dtype=np.float64)
    x_layers, y_layers = (list(matrix[f"{dim}_layer"].values) for dim in matrix.dims)
    rows = [row for row, layer in enumerate(x_layers) if layer in y_layers]
    if not rows:
        raise UserError(f"{tuned} and {pretrained} have no layer in common under {measure}")
    same = values[rows, [y_layers.index(x_layers[row]) for row in rows]]
    definition = result.definition(measure)
    scale = extremes if style == "paper" else colour_limits
    limits = scale(values, definition.get("range"))
    heatmap = HeatMap(matrix, limits, measure, definition.get("symmetric") is False)
    text = (title or "") if style == "paper" else title_or_summary(result, measure, title)
    margin = _PANEL - (_PAPER_MARGIN if style == "paper" else 0.0)
    figure, axes = draw(heatmap, style, text, result.notes(), width, margin)
    panel = _add_panel(figure, axes)
    if style == "paper":  # its map names no layers
        ticks = [int(tick) for tick in panel.get_yticks()]
        panel.set_yticks(ticks, [str(x_layers[tick]) for tick in ticks])
        panel.set_ylabel("layer", fontsize=MEDIUM, labelpad=1)
    panel.plot(same, rows, "o-", color="black", linewidth=1.0, markersize=3.0, gid="same layer")
    low, high = limits
    panel.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    panel.set_xlabel(measure, fontsize=MEDIUM)
    style_panel(panel, "same layer")
    return figure


def _add_panel(figure: Figure, axes: Axes) -> Axes:
    """Add axes on the right of the bar whose vertical axis is the rows of the map."""
    width = figure.get_figwidth()
    _, y, _, height = axes.get_position().bounds
    panel = figure.add_axes(
        ((width - _PANEL + 0.12) / width, y, (_PANEL - 0.24) / width, height), label="same layer"
    )
    top, bottom = axes.get_ylim()[::-1]
    ticks = [tick for tick in axes.get_yticks() if top <= tick <= bottom]
    panel.set_yticks(ticks, [""] * len(ticks))
    panel.set_ylim(bottom, top)
    return panel


def difference(
    first: SimilarityResult,
    second: SimilarityResult,
    measure: str,
    *,
    names: tuple[str, str] = ("first", "second"),
    limits: tuple[int | float, int | float] | None = None,
    title: str | None = None,
    width: int | float | None = None,
) -> Figure:
    """The scores of the first result minus those of the second, representation by representation.

    The representations are the same in any order, or those of other models with the same layers,
    which then correspond by their positions: `difference(r.select(trained), r.select(untrained),
    "lincka")` are two blocks of one result. Colours are centred at zero; cells clearly below it
    carry a dash.

    Args:
        first: a result.
        second: the result that is subtracted.
        measure: the measure to draw.
        names: what the results are called in the figure.
        limits: the ends of the colour scale; default: symmetric around zero.
        title: default: the summary of the measure, and the names.
        width: in inches; default: as wide as the labels need, up to 7.

    Raises:
        UserError: a measure that one of them lacks, representations that do not correspond, limits
            that are not increasing, or a width below 3 in.
    """
    minuend = first.matrix(measure)
    subtrahend, pairs = _aligned(minuend, second.matrix(measure), names)
    matrix = minuend.copy(data=np.asarray(minuend.values, np.float64) - subtrahend.values)
    low, high = map(float, limits or difference_limits(matrix.values))
    label = f"{measure}, {names[0]} minus {names[1]}"
    directed = first.definition(measure).get("symmetric") is False
    heatmap = HeatMap(matrix, (low, high), label, directed, signed=True)
    notes = [f"{name}: {', '.join(r.notes())}" for name, r in zip(names, (first, second))]
    notes = list(dict.fromkeys(notes)) if first.notes() or second.notes() else []
    if title is None:
        title = f"{title_or_summary(first, measure, None)}: {names[0]} minus {names[1]}"
    figure, _ = draw(heatmap, "labelled", title, [*notes, *pairs], width)
    return figure


def difference_from(
    result: SimilarityResult,
    measure: str,
    reference: Any = CLOSEST,
    *,
    limits: tuple[int | float, int | float] | None = None,
    title: str | None = None,
    width: int | float | None = None,
) -> Figure:
    """What `SimilarityResult.differences` finds: every score minus that of its reference.

    Colours are centred at zero. Cells that are not found to differ are outlined, with those that
    others are compared with, whose difference is zero.

    Args:
        result: with standard errors.
        measure: the measure to draw.
        reference: what cells are compared with, as in `SimilarityResult.differences`: "closest",
            a model, a cell, a number, "floor", a matrix.
        limits: the ends of the colour scale; default: symmetric around zero.
        title: default: the summary of the measure, and the reference.
        width: in inches; default: as wide as the labels need, up to 7.

    Raises:
        UserError: an unknown measure or reference, no standard errors, limits that are not
            increasing, or a width below 3 in.
    """
    found = result.differences(measure, reference, rate=FALSE_DISCOVERY_RATE)
    matrix = found["difference"].where(~found["reference"], 0.0)
    low, high = map(float, limits or difference_limits(matrix.values))
    label = f"{measure}, difference from {in_words(reference)}"
    directed = result.definition(measure).get("symmetric") is False
    marks = marks_of(found, reference)
    heatmap = HeatMap(matrix, (low, high), label, directed, signed=True, marks=marks)
    if title is None:
        title = f"{title_or_summary(result, measure, None)}: difference from {in_words(reference)}"
    figure, _ = draw(heatmap, "labelled", title, result.notes(), width)
    return figure


def _aligned(
    first: xr.DataArray, second: xr.DataArray, names: tuple[str, str]
) -> tuple[xr.DataArray, list[str]]:
    """The second matrix in the order of the first, and which model corresponds to which."""
    (x, y), labels = first.dims, [str(label) for label in first[first.dims[0]].values]
    if set(labels) == {str(label) for label in second[x].values}:
        return second.sel({x: labels, y: labels}), []
    spans = [model_spans(matrix, 0) for matrix in (first, second)]
    layers = [
        [list(matrix[f"{x}_layer"].values[span.start : span.stop]) for span in of_matrix]
        for matrix, of_matrix in zip((first, second), spans, strict=True)
    ]
    if layers[0] != layers[1]:
        models = [
            ", ".join(f"{span.model} ({span.stop - span.start} layers)" for span in of_matrix)
            for of_matrix in spans
        ]
        raise UserError(
            f"the representations do not correspond: {names[0]} has {models[0]}; {names[1]} has "
            f"{models[1]}; select the same models, or as many with the same layers"
        )
    return second, [f"{a.model} minus {b.model}" for a, b in zip(*spans, strict=True)]
