"""Curves over the depth of models: how similar their layers are, and what to know about them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import DPI, GREY, LEGEND, StandaloneFigure, line_style, style_panel
from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    Headline,
    blocks,
    ellipsised,
    headline,
    short_names,
    text_width,
    title_of,
    unique,
)
from speechsim_jax.results.result import SimilarityResult

_WIDTHS = {1: 3.5, 2: 5.5, 3: 7.0}  # of a page with so many columns, in inches
_BASELINE_NAMES = {
    "diagonal": "x's head and its mean over equal distances",
    "shift": "x's head and itself half an utterance away",
}
_Line = Literal[":", "-."]
_BASELINE_LINES: tuple[_Line, _Line] = (":", "-.")


def layer_trend(result: SimilarityResult, measure: str, *, title: str | None = None) -> Figure:
    """How the similarity of a model's layers to another model moves with their depth.

    One panel per model x; for every other model y, against the relative depth of x's layer: the
    score with y's best layer, and with the layer of y at the nearest relative depth. A model alone
    is compared with itself: its best other layer, and its next layer. Scores of attention heads
    stand beside their baselines in grey: each head against its own mean over equal distances, and
    against itself half an utterance away.

    Raises:
        UserError: an unknown measure, or no model with two layers.
    """
    models = unique(run.model for run in blocks(result.matrix(measure), 0))
    alone = len(models) == 1
    depths = {m: relative_depth(result.block(measure, m, m)) for m in models}
    if max(map(len, depths.values())) < 2:
        raise UserError(f"{measure}: a trend over layers needs a model with at least two layers")
    columns = min(len(models), 2 if len(models) in (2, 4) else 3)
    width = _WIDTHS[columns]
    short = dict(zip(models, short_names(models), strict=True))
    head = headline(title_of(result, measure, title), width, result.notes())
    handles = _trend_handles([] if alone else list(short.values()), 72 * width - 60)
    for name, _, line in _baselines(result, measure, models[0]):
        handles.append(Line2D([], [], label=name, color=GREY, linewidth=1, linestyle=line))
    figure, panels = _page(
        head, len(models), columns, handles, "relative depth of x's layer", measure
    )
    for axes, x in zip(panels, models, strict=True):
        for y in models if alone else [m for m in models if m != x]:
            best, same = trend(result.block(measure, x, y), depths[x], depths[y], own=alone)
            style = {"label": y, **line_style(models.index(y), len(depths[x]))}
            axes.plot(depths[x], best, linestyle="-", gid="best", **style)
            axes.plot(depths[x], same, "--", gid="same", markerfacecolor="white", **style)
        for name, values, line in _baselines(result, measure, x):
            axes.plot(depths[x], values, color=GREY, linewidth=1, linestyle=line, gid=name)
        style_panel(axes, ellipsised(f"x: {short[x]}", 72 * width / columns - 40, MEDIUM))
    # The numbers are known only now; the label on their left needs room beside the widest.
    numbers = [text.get_text() for text in panels[0].get_yticklabels()]
    room = 3 * GAP + MEDIUM * LINE + 4 + max(text_width(number, SMALL) for number in numbers)
    figure.subplots_adjust(left=max(room / (72 * width), figure.subplotpars.left))
    return figure


def has_facts(result: SimilarityResult) -> bool:
    """Whether `facts` has something to draw."""
    depths = [
        [representation.model for representation in result.representations].count(m)
        for m in result.models
    ]
    return max(depths) > 1 and bool(_facts(result))


def facts(result: SimilarityResult, *, title: str | None = None) -> Figure:
    """What to know of each representation before believing a score, against its depth in its model.

    Directions kept, condition number, dead neurons, share of the outliers, largest mean: of each
    representation by itself. Scores beside the floors of unrelated representations with independent
    rows: means over the representations of other models (of other layers, if there is one model).

    Raises:
        UserError: the result holds none of these, or no model has two layers.
    """
    if not has_facts(result):
        raise UserError("no facts to draw: this result lacks them, or no model has two layers")
    found = _facts(result)
    names = np.array([representation.model for representation in result.representations])
    layers = np.array([representation.layer for representation in result.representations])
    columns = min(3, len(found))
    width = _WIDTHS[columns]
    text = "What the scores stand on" if title is None else title
    two = any(len(fact.values) > 1 for fact in found)
    key = ["dashed: the second of two"] if two else []
    head = headline(text, width, result.notes(), key)
    labels = [ellipsised(name, 72 * width - 60, SMALL) for name in short_names(result.models)]
    handles = [Line2D([], [], label=label, **line_style(i, 8)) for i, label in enumerate(labels)]
    figure, panels = _page(head, len(found), columns, handles, "relative depth of the layer")
    for axes, fact in zip(panels, found, strict=True):
        for i, model in enumerate(result.models):
            of_model = names == model
            depth = layers[of_model] / max(layers[of_model].max(), 1)
            style = line_style(i, len(depth))
            first, *second = fact.values
            axes.plot(depth, first[of_model], "-", gid=model, **style)
            for values in second:
                axes.plot(
                    depth, values[of_model], "--", gid=model, markerfacecolor="white", **style
                )
        if fact.logarithmic and _decades(fact) > 1.5:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=fact.whole))
        if fact.whole:  # nothing is counted below 0, also where all are 0
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0), max(high, 1))
            for line in axes.lines:
                line.set_clip_on(False)  # markers at 0 are whole
        style_panel(axes, ellipsised(fact.name, 72 * width / columns - 30, MEDIUM))
    return figure


def _page(
    head: Headline,
    count: int,
    columns: int,
    handles: list[Line2D],
    depth_label: str,
    shared_label: str | None = None,
) -> tuple[StandaloneFigure, np.ndarray]:
    """Panels between a headline and a legend; their vertical axes are one if it has a label."""
    width = _WIDTHS[columns]
    widest = max(text_width(str(handle.get_label()), SMALL) for handle in handles)
    legend_columns = max(1, int((72 * width - 12) // (widest + 32)))
    foot = 27 + 1.7 * SMALL * -(-len(handles) // legend_columns)
    rows = -(-count // columns)
    points = np.array([72 * width, foot + 118 * rows + head.depth + 8])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    left, bottom = [38 if shared_label else 30, foot] / points
    right, top = 1 - [8, head.depth + 10] / points
    wspace, hspace = (0.08, 0.2) if shared_label else (0.24, 0.25)
    figure.subplots_adjust(left, bottom, right, top, wspace=wspace, hspace=hspace)
    panels = figure.subplots(
        rows, columns, sharex=True, sharey=shared_label is not None, squeeze=False
    ).ravel()
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)  # also above the gap that an incomplete row leaves
    if shared_label:
        middle = (bottom + top) / 2
        figure.supylabel(shared_label, fontsize=MEDIUM, x=4 / points[0], y=middle, ha="left")
    middle, place = (left + right) / 2, (foot - 13) / points[1]
    figure.supxlabel(depth_label, fontsize=MEDIUM, x=middle, y=place, va="top")
    legend = figure.legend(handles=handles, loc="lower center", ncols=legend_columns, **LEGEND)
    for text in legend.get_texts():
        text.set_parse_math(False)
    head.draw(figure)
    return figure, panels[:count]


class _Fact(NamedTuple):
    """A panel of `facts`: one or two values for every representation."""

    name: str
    values: list[Float[np.ndarray, " x"]]
    logarithmic: bool = False
    whole: bool = False


def _decades(fact: _Fact) -> float:
    """How many powers of ten the values span: with few of them their labels would be missing."""
    values = np.concatenate(fact.values)
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.log10(values.max() / values.min())) if values.size else 0.0


def _facts(result: SimilarityResult) -> list[_Fact]:
    data = result.dataset
    found = []
    if {"rank", "svcca_directions"} <= set(data):
        directions = [data[name].values for name in ("rank", "svcca_directions")]
        found.append(_Fact("rank, svcca_directions", directions, whole=True))
    for name in ("condition", "dead_neurons", "outlier_share", "mean_to_std"):
        if name in data:
            logarithmic = name in ("condition", "mean_to_std")
            found.append(_Fact(name, [data[name].values], logarithmic, name == "dead_neurons"))
    names = [representation.model for representation in result.representations]
    same = (
        np.equal.outer(names, names) if len(result.models) > 1 else np.eye(len(names), dtype=bool)
    )

    def over_others(values: xr.DataArray) -> Float[np.ndarray, " x"]:
        return values.where(~same).mean("y").values

    if "lincka_floor" in data and "lincka" in data:
        values = [over_others(data[name]) for name in ("lincka", "lincka_floor")]
        found.append(_Fact("lincka, its floor", values))
    if "linreg_r2_floor" in data and "linreg_r2" in data:
        values = [over_others(data[name]) for name in ("linreg_r2", "linreg_r2_floor")]
        found.append(_Fact("linreg_r2, its floor", values))
    elif "linreg_r2_floor" in data and "linreg" in data:
        values = [over_others(data["linreg"]), over_others(data["linreg_r2_floor"] ** 0.5)]
        found.append(_Fact("linreg, root of the floor of r²", values))
    if "svcca_rho2_floor" in data and "svcca_rho" in data:
        squares = (data["svcca_rho"] ** 2).mean("k")
        values = [over_others(squares), over_others(data["svcca_rho2_floor"])]
        found.append(_Fact("mean squared svcca_rho, its floor", values))
    return found


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


def _baselines(
    result: SimilarityResult, measure: str, model: str
) -> list[tuple[str, Float[np.ndarray, " x"], _Line]]:
    """What a model's attention heads are held against: name, mean over each layer's heads, line."""
    name = f"{measure}_baseline"
    if name not in result.dataset:
        return []
    of_model = result.dataset["x_attention_model"].values == model
    values = result.dataset[name].transpose("baseline", "x_attention", "head_x")[:, of_model]
    kinds = [str(kind) for kind in values["baseline"].values]
    return [
        (_BASELINE_NAMES.get(kind, kind), of.mean("head_x").values, line)
        for kind, of, line in zip(kinds, values, _BASELINE_LINES, strict=True)
    ]


def _trend_handles(names: Sequence[str], room: float) -> list[Line2D]:
    """The legend: a line for each model y, then what solid and dashed lines mean."""
    best, same = "best other layer", "next layer"
    if names:
        best, same = "best layer of y", "layer of y at the same relative depth"
    labels = [ellipsised(f"y: {name}", room, SMALL) for name in names]
    handles = [Line2D([], [], label=label, **line_style(i, 8)) for i, label in enumerate(labels)]
    grey = {**line_style(0, 8), "color": GREY}
    handles.append(Line2D([], [], label=best, linestyle="-", **grey))
    handles.append(Line2D([], [], label=same, linestyle="--", markerfacecolor="white", **grey))
    return handles
