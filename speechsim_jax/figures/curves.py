"""Curves over the depth of models: how similar their layers are, and what their scores stand on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from speechsim_jax.errors import UserError
from speechsim_jax.figures.map_labels import model_spans
from speechsim_jax.figures.style import (
    DPI,
    GREY,
    LEGEND,
    StandaloneFigure,
    line_style,
    style_panel,
)
from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    Headline,
    balanced,
    headline,
    legend_layout,
    short_names,
    text_width,
    title_or_summary,
    unique,
)
from speechsim_jax.results.depth import (
    block_depths,
    floors,
    head_baselines,
    match_layers,
    matched_scores,
)
from speechsim_jax.results.result import SimilarityResult

_WIDTHS = {1: 3.5, 2: 5.5, 3: 7.0}  # inches, by the number of columns of panels
_PANEL = 100.0  # height of a panel in points


def layer_trend(result: SimilarityResult, measure: str, *, title: str | None = None) -> Figure:
    """How the similarity of a model's layers to another model changes with their depth.

    One panel per model x; for every other model y, against the relative depth of x's layer: the
    score with y's best layer, and with the layer of y at the nearest relative depth. A model alone
    is compared with itself: its best other layer, and its next layer. Scores of attention heads
    are drawn with their baselines in grey: each head against its own mean over equal distances, and
    against itself half an utterance away. Bands are 95 % intervals of the scores, where these have
    standard errors; that another layer might be the best one is not in them.

    Args:
        result: the result to draw.
        measure: the measure to draw.
        title: default: the summary of the measure.

    Raises:
        UserError: an unknown measure, or no model with two layers.
    """
    models = unique(span.model for span in model_spans(result.matrix(measure), 0))
    alone = False
    depths = {m: block_depths(result.block(measure, m, m))[0] for m in models}
    if max(map(len, depths.values())) < 2:
        raise UserError(f"{measure}: a trend over layers needs a model with at least two layers")
    others = {x: [y for y in models if y != x] for x in models}
    if not any(np.isfinite(result.block(measure, x, y)).any() for x in models for y in others[x]):
        alone, others = True, {x: [x] for x in models}
    columns = _columns(len(models))
    width = _WIDTHS[columns]
    short = dict(zip(models, short_names(models), strict=True))
    bands = result.interval_key(measure)
    head = headline(
        title_or_summary(result, measure, title), width, result.notes(), [bands] if bands else []
    )
    handles = _trend_handles([] if alone else list(short.values()))
    baselines = head_baselines(result.dataset, measure)
    greys = [_grey_style(index) for index in range(len(baselines))]
    for baseline, grey in zip(baselines, greys, strict=True):
        handles.append(Line2D([], [], label=baseline.name, **grey))
    figure, panels = _page(
        head,
        [f"x: {short[x]}" for x in models],
        columns,
        handles,
        "relative depth of x's layer",
        measure,
    )
    closer = result.definition(measure).get("higher_is_closer", True)
    for axes, x in zip(panels, models, strict=True):
        for y in others[x]:
            block = result.block(measure, x, y)
            best, same = trend(block, same_model=alone, higher_is_closer=closer)
            style = {"label": y, **line_style(models.index(y), len(depths[x]))}
            if bands:
                half = result.half_interval(measure).sel(x=block["x"], y=block["y"])
                of_best, of_same = _of_matches(block, half.values, alone, closer)
                for score, width_ in ((best, of_best), (same, of_same)):
                    ends = score - width_, score + width_
                    axes.fill_between(
                        depths[x], *ends, color=style["color"], alpha=0.15, linewidth=0, gid="band"
                    )
            axes.plot(depths[x], best, linestyle="-", gid="best", **style)
            axes.plot(depths[x], same, "--", gid="same", markerfacecolor="white", **style)
        for baseline, grey in zip(baselines, greys, strict=True):
            scores = baseline.scores[baseline.scores["x_attention_model"].values == x].values
            axes.plot(depths[x], scores, gid=baseline.name, **grey)
    # The numbers are known only now; the label on their left needs room next to the widest.
    numbers = [text.get_text() for text in panels[0].get_yticklabels()]
    room = 3 * GAP + MEDIUM * LINE + 4 + max(text_width(number, SMALL) for number in numbers)
    figure.subplots_adjust(left=max(room / (72 * width), figure.subplotpars.left))
    return figure


class DepthLine(NamedTuple):
    """Values of the layers of a model, for `depth_curves`.

    Attributes:
        name: of the model.
        depth: relative depth of each layer.
        values: of each layer, drawn as a line.
        half: half the width of an interval, drawn as a band; NaN for none.
        other: of each layer, drawn dashed; NaN for none.
    """

    name: str
    depth: Float[np.ndarray, " layer"]
    values: Float[np.ndarray, " layer"]
    half: Float[np.ndarray, " layer"]
    other: Float[np.ndarray, " layer"]


def depth_curves(
    panels: Mapping[str, Sequence[DepthLine]],
    label: str,
    title: str,
    notes: Sequence[str] = (),
    keys: Sequence[str] = (),
    one_scale: bool = True,
    models: Sequence[str] = (),
) -> Figure:
    """Values of layers against their relative depth, a panel for each of several things.

    Args:
        panels: lines by title.
        label: of the vertical axes.
        title: of the figure; "" for none.
        notes: of the data, under the title.
        keys: what bands and dashes mean.
        one_scale: whether all panels have one vertical scale.
        models: in whose order lines have their colours; default: as they come.
    """
    columns = _columns(len(panels))
    width = _WIDTHS[columns]
    names = unique([*models, *(line.name for lines in panels.values() for line in lines)])
    handles = [
        Line2D([], [], label=name, **line_style(k, 8)) for k, name in enumerate(short_names(names))
    ]
    head = headline(title, width, notes, keys)
    figure, axes_of = _page(
        head, list(panels), columns, handles, "relative depth of the layer", label, one_scale
    )
    for axes, lines in zip(axes_of, panels.values(), strict=True):
        for line in lines:
            style = line_style(names.index(line.name), len(line.depth))
            if np.isfinite(line.half).any():
                ends = line.values - line.half, line.values + line.half
                axes.fill_between(
                    line.depth, *ends, color=style["color"], alpha=0.15, linewidth=0, gid="band"
                )
            axes.plot(line.depth, line.values, "-", gid=line.name, **style)
            if np.isfinite(line.other).any():
                axes.plot(
                    line.depth, line.other, "--", gid=f"{line.name}, dashed",
                    **style | {"markerfacecolor": "white"},
                )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def has_facts(result: SimilarityResult) -> bool:
    """Whether `facts` has something to draw."""
    counts = [
        [representation.model for representation in result.representations].count(m)
        for m in result.models
    ]
    return max(counts) > 1 and bool(_facts(result))


def facts(result: SimilarityResult, *, title: str | None = None) -> Figure:
    """What to know of each representation before believing a score, against its relative depth.

    Of each representation by itself: directions above the tolerance, condition number, dead
    neurons, share of the outliers, largest mean. Scores with the floors of unrelated
    representations with independent rows (of linreg: the root of the floor of r²): means over the
    representations of other models (of other layers, if there is one model).

    Args:
        result: the result to draw.
        title: default: "What the scores stand on".

    Raises:
        UserError: the result holds none of these, or no model has two layers.
    """
    if not has_facts(result):
        raise UserError("no facts to draw: this result lacks them, or no model has two layers")
    panels_of_facts = _facts(result)
    names = np.array([representation.model for representation in result.representations])
    depths = result.relative_depths(result.representations)
    columns = _columns(len(panels_of_facts))
    width = _WIDTHS[columns]
    text = "What the scores stand on" if title is None else title
    paired = any(len(fact.values) > 1 for fact in panels_of_facts)
    key = ["dashed: the second of two"] if paired else []
    head = headline(text, width, result.notes(), key)
    labels = short_names(result.models)
    handles = [Line2D([], [], label=label, **line_style(i, 8)) for i, label in enumerate(labels)]
    titles = [fact.name for fact in panels_of_facts]
    figure, panels = _page(head, titles, columns, handles, "relative depth of the layer")
    for axes, fact in zip(panels, panels_of_facts, strict=True):
        for i, model in enumerate(result.models):
            of_model = names == model
            depth = depths[of_model]
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
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=fact.integer))
        if fact.integer:  # counts have no values below 0, also where all are 0
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0), max(high, 1))
            for line in axes.lines:
                line.set_clip_on(False)  # or markers at 0 would be cut in half
    return figure


def _columns(panels: int) -> int:
    return min(panels, 2 if panels in (2, 4) else 3)


def _page(
    head: Headline,
    titles: Sequence[str],
    columns: int,
    handles: list[Line2D],
    depth_label: str,
    shared_label: str | None = None,
    one_scale: bool = True,
) -> tuple[StandaloneFigure, np.ndarray]:
    """Panels between a headline and a legend; with `shared_label` they share a vertical axis.

    Without `one_scale` they share its label only.
    """
    one_scale = one_scale and shared_label is not None
    count, width = len(titles), _WIDTHS[columns]
    rows = -(-count // columns)
    labels, legend_columns, legend_height = legend_layout(
        [str(handle.get_label()) for handle in handles], width
    )
    left, right = 38.0 if shared_label else 30.0, 8.0
    apart = (0.08, 0.24)[not one_scale]  # of the width of a panel
    panel = (72 * width - left - right) / (columns + apart * (columns - 1))
    broken = [balanced(title, panel, MEDIUM) for title in titles]
    title_height = max(map(len, broken)) * MEDIUM * LINE
    foot, above = 27 + legend_height, head.height + title_height + 1
    between = title_height + 12
    height = foot + _PANEL * rows + between * (rows - 1) + above
    points = np.array([72 * width, height])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    ends = left / points[0], foot / height, 1 - right / points[0], 1 - above / height
    figure.subplots_adjust(*ends, wspace=apart, hspace=between / _PANEL)
    panels = figure.subplots(rows, columns, sharex=True, sharey=one_scale, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)  # also above the gap that an incomplete row leaves
    for axes, lines in zip(panels[:count], broken, strict=True):
        style_panel(axes, "\n".join(lines))
    if shared_label:
        middle = (ends[1] + ends[3]) / 2
        figure.supylabel(shared_label, fontsize=MEDIUM, x=4 / points[0], y=middle, ha="left")
    middle, label_top = (ends[0] + ends[2]) / 2, (foot - 13) / height
    figure.supxlabel(depth_label, fontsize=MEDIUM, x=middle, y=label_top, va="top")
    legend = figure.legend(handles, labels, loc="lower center", ncols=legend_columns, **LEGEND)
    for text in legend.get_texts():
        text.set(parse_math=False, linespacing=LINE)
    head.draw(figure)
    return figure, panels[:count]


class _Fact(NamedTuple):
    """A panel of `facts`: one or two values for every representation."""

    name: str
    values: list[Float[np.ndarray, " x"]]
    logarithmic: bool = False
    integer: bool = False


def _decades(fact: _Fact) -> float:
    """How many powers of ten the values span: with few of them their labels would be missing."""
    values = np.concatenate(fact.values)
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.log10(values.max() / values.min())) if values.size else 0.0


def _facts(result: SimilarityResult) -> list[_Fact]:
    data = result.dataset
    present = []
    if {"rank", "svcca_directions"} <= set(data):
        directions = [data[name].values for name in ("rank", "svcca_directions")]
        present.append(_Fact("rank, svcca_directions", directions, integer=True))
    for name in ("condition", "dead_neurons", "outlier_share", "mean_to_std"):
        if name in data:
            logarithmic = name in ("condition", "mean_to_std")
            present.append(_Fact(name, [data[name].values], logarithmic, name == "dead_neurons"))
    names = [representation.model for representation in result.representations]
    same = (
        np.equal.outer(names, names) if len(result.models) > 1 else np.eye(len(names), dtype=bool)
    )

    def over_others(values: xr.DataArray) -> Float[np.ndarray, " x"]:
        return values.where(~same).mean("y").values

    for name, floor, scores in floors(data):
        if scores is not None:
            present.append(_Fact(f"{name}, its floor", [over_others(scores), over_others(floor)]))
    return present


def trend(
    block: xr.DataArray, *, same_model: bool = False, higher_is_closer: bool = True
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]:
    """Each row's score with the best column, and with the column at the nearest relative depth.

    Args:
        block: the scores of a model's layers with another's, from `SimilarityResult.block`.
        same_model: x and y are one model: the best other layer, and the next layer.
        higher_is_closer: False for distances.

    Returns:
        The two scores of each row; NaN where there is no such column.
    """
    values = np.asarray(block.values, dtype=np.float64)
    return _of_matches(block, values, same_model, higher_is_closer)


def _of_matches(
    block: xr.DataArray,
    values: Float[np.ndarray, "x y"],
    same_model: bool,
    higher_is_closer: bool,
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]:
    """Values of each row of a block at the column that `trend` takes its scores from."""
    matches = match_layers(
        np.asarray(block.values, dtype=np.float64),
        *block_depths(block),
        same_model=same_model,
        higher_is_closer=higher_is_closer,
    )
    return matched_scores(values, matches.best), matched_scores(values, matches.same)


def _grey_style(index: int) -> dict[str, Any]:
    """The line of a baseline."""
    return {"color": GREY, "linewidth": 1, "linestyle": (":", "-.")[index % 2]}


def _trend_handles(names: Sequence[str]) -> list[Line2D]:
    """The legend: a line for each model y, then what solid and dashed lines mean."""
    best, same = "best other layer", "next layer"
    if names:
        best, same = "best layer of y", "layer of y at the same relative depth"
    handles = [
        Line2D([], [], label=f"y: {name}", **line_style(i, 8)) for i, name in enumerate(names)
    ]
    grey = {**line_style(0, 8), "color": GREY}
    handles.append(Line2D([], [], label=best, linestyle="-", **grey))
    handles.append(Line2D([], [], label=same, linestyle="--", markerfacecolor="white", **grey))
    return handles
