"""Maps that hold two things against each other: a model before and after tuning, or two results."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from speechsim_jax.errors import UserError
from speechsim_jax.figures.heatmap import Map, draw
from speechsim_jax.figures.style import colour_limits, difference_limits, extremes, style_panel
from speechsim_jax.figures.text_layout import MEDIUM, blocks, title_of
from speechsim_jax.results.result import SimilarityResult

_PANEL = 1.5  # room for the curve beside a map, in inches
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

    Beside it, row by row, the score of each layer with the same layer: what fine-tuning changed.
    Style "paper" has the layout of the published maps.

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
    shown = Map(matrix, limits, measure, definition.get("symmetric") is False)
    told = (title or "") if style == "paper" else title_of(result, measure, title)
    beside = _PANEL - (_PAPER_MARGIN if style == "paper" else 0.0)
    figure, axes = draw(shown, style, told, result.notes(), width, beside)
    panel = _panel_beside(figure, axes)
    if style == "paper":  # whose map names no layers
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


def _panel_beside(figure: Figure, axes: Axes) -> Axes:
    """Axes on the right of the bar whose vertical axis are the rows of the map."""
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
    which then correspond by their place: `difference(r.select(trained), r.select(untrained),
    "lincka")` are two blocks of one result. `names` are what the results are called in the figure.
    Colours are centred at zero; cells clearly below it carry a dash.

    Raises:
        UserError: a measure that one of them lacks, representations that do not correspond, limits
        that
            are not increasing, or a width below 3 in.
    """
    one, other = first.matrix(measure), second.matrix(measure)
    other, pairs = _aligned(one, other, names)
    matrix = one.copy(data=np.asarray(one.values, np.float64) - other.values)
    low, high = map(float, limits or difference_limits(matrix.values))
    label = f"{measure}, {names[0]} minus {names[1]}"
    directed = first.definition(measure).get("symmetric") is False
    shown = Map(matrix, (low, high), label, directed, signed=True)
    notes = [f"{name}: {', '.join(of.notes())}" for name, of in zip(names, (first, second))]
    notes = list(dict.fromkeys(notes)) if first.notes() or second.notes() else []
    if title is None:
        title = f"{title_of(first, measure, None)}: {names[0]} minus {names[1]}"
    figure, _ = draw(shown, "labelled", title, [*notes, *pairs], width)
    return figure


def _aligned(
    one: xr.DataArray, other: xr.DataArray, names: tuple[str, str]
) -> tuple[xr.DataArray, list[str]]:
    """The other matrix in the order of the one, and which model was taken for which."""
    (x, y), labels = one.dims, [str(label) for label in one[one.dims[0]].values]
    if set(labels) == {str(label) for label in other[x].values}:
        return other.sel({x: labels, y: labels}), []
    runs = [blocks(matrix, 0) for matrix in (one, other)]
    layers = [
        [list(matrix[f"{x}_layer"].values[run.start : run.stop]) for run in of]
        for matrix, of in zip((one, other), runs, strict=True)
    ]
    if layers[0] != layers[1]:
        told = [
            ", ".join(f"{run.model} ({run.stop - run.start} layers)" for run in of) for of in runs
        ]
        raise UserError(
            f"the representations do not correspond: {names[0]} has {told[0]}; {names[1]} has {told[1]}; "
            "select the same models, or as many with the same layers"
        )
    return other, [f"{a.model} minus {b.model}" for a, b in zip(*runs, strict=True)]
