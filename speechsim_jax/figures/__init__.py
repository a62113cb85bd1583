"""Figures fit for print: a heat map per measure, similarity against depth, layers in a plane.

Every size is in points at the figure's own width (3.5 to 7 in), so nothing is smaller than 6 pt on
the page. Layouts are computed from text extents; nothing is left to a tight bounding box.

Parameters that functions here have in common: `measure` is the name of one of the result's
measures; `title` stands above the figure together with a caption of the data, by default it is the
measure's summary, and an empty one leaves out both; `width` is the figure's width in inches;
`style` is that of heat maps, "labelled" or "paper" (as published); `formats` of files are png, and
pdf or svg, whose text stays text.
"""

import os
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from speechsim_jax.figures.curves import DepthLine, depth_curves, facts, has_facts, layer_trend
from speechsim_jax.figures.differences import difference, difference_from, finetuned
from speechsim_jax.figures.heads import head_matches, plot_heads
from speechsim_jax.figures.heatmap import HeatMap, draw, published_order
from speechsim_jax.figures.map_labels import model_spans
from speechsim_jax.figures.marks import AUTO, not_different
from speechsim_jax.figures.model_pairs import has_model_pairs, model_pairs
from speechsim_jax.figures.plane import has_plane, plane
from speechsim_jax.figures.style import (
    colour_limits,
    extremes,
    write_figures,
)
from speechsim_jax.figures.text_layout import short_names, title_or_summary, unique
from speechsim_jax.results.model_scores import lead_measures
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime.atomic_write import AnyPath
from speechsim_jax.settings import check_figure_formats, check_figure_style

__all__ = [
    "DepthLine",
    "colour_limits",
    "depth_curves",
    "difference",
    "difference_from",
    "facts",
    "finetuned",
    "has_facts",
    "head_matches",
    "layer_trend",
    "model_pairs",
    "plane",
    "plot",
    "plot_heads",
    "published_order",
    "save_figures",
    "write_figures",
]

_SEVERAL = 3  # models; of two a map says it all


def plot(
    result: SimilarityResult,
    measure: str,
    *,
    style: str = "labelled",
    limits: tuple[int | float, int | float] | None = None,
    title: str | None = None,
    width: int | float | None = None,
    reference: Any = AUTO,
) -> Figure:
    """The heat map of one measure: a square per pair of representations, row x and column y.

    Lines separate the blocks of two models. Undefined (NaN) cells are hatched. The cells that are
    not found to differ from a reference, by standard errors of their difference, are outlined.

    >>> ss.plot(result, "lincka").savefig("lincka.pdf")

    Args:
        result: the result to draw.
        measure: the measure to draw.
        style: "labelled", or "paper", the layout of the published maps (El Kheir et al. 2024), to
            be compared with them: their order of models (`published_order`) and colours, the scale
            from the least score to the greatest, no labels, and a title only if there is a `title`.
        limits: the ends of the colour scale; default: `colour_limits` of the scores.
        title: default: the summary of the measure.
        width: in inches; default: as wide as the labels need, up to 7.
        reference: what cells are compared with, as in `SimilarityResult.differences`; "auto": the
            closest layer of their model y to x, where the result has the influences that takes,
            and in no map in style "paper"; "none": no outlines.

    Returns:
        A figure that notebooks show; `savefig` writes it.

    Raises:
        UserError: an unknown measure, style or reference, limits that are not increasing, or a
            width below 3 in.
    """
    if style == "paper":
        result = result.select(published_order(result))
    matrix = result.matrix(measure)
    values = np.asarray(matrix.values, dtype=np.float64)
    definition = result.definition(measure)
    if limits is None and style == "paper":
        limits = extremes(values, definition.get("range"))
    low, high = map(float, limits or colour_limits(values, definition.get("range")))
    as_published = style == "paper" and isinstance(reference, str) and reference == AUTO
    marks = None if as_published else not_different(result, measure, reference)
    directed = definition.get("symmetric") is False
    heatmap = HeatMap(matrix, (low, high), measure, directed, marks=marks)
    text = (title or "") if style == "paper" else title_or_summary(result, measure, title)
    figure, _ = draw(heatmap, style, text, result.notes(), width)
    return figure


def save_figures(
    result: SimilarityResult,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
    reference: str = AUTO,
) -> list[AnyPath]:
    """Write the figures that a result has, as <kind>_<measure>.<format> and facts.<format>.

    Kinds: heatmap, in the `style`; trend, and facts, where models have several layers; of three
    models or more plane and, of the first measure of each level, pairs; of measures on attention
    heads, for every two models (or the only one), matches, and heads of the two layers that are
    most alike.

    >>> ss.save_figures(result, "figures", formats=("png", "pdf"))[0].name
    'heatmap_maxcorr.png'

    Args:
        result: the result to draw.
        folder: where the files go; made if needed.
        formats: of png, pdf and svg.
        style: "labelled" or "paper".
        reference: what cells of heat maps are compared with: "auto", "closest", "closest_of_row"
            or "none", as in `plot`; of measures without standard errors nothing is marked.

    Returns:
        The paths of the files.

    Raises:
        UserError: an unknown format or style.
    """
    check_figure_formats(formats)
    check_figure_style(style)
    figures: dict[str, Figure] = {}
    several = len(result.compared_models) >= _SEVERAL
    for measure in result.measures:
        compared = reference if f"{measure}_se" in result.dataset else "none"
        figures[f"heatmap_{measure}"] = plot(result, measure, style=style, reference=compared)
        models = unique(span.model for span in model_spans(result.matrix(measure), 0))
        if any(len(result.block(measure, model, model)) > 1 for model in models):
            figures[f"trend_{measure}"] = layer_trend(result, measure)
        if several and has_plane(result, measure):
            figures[f"plane_{measure}"] = plane(result, measure)
        lead = several and measure in lead_measures(result)
        if lead and has_model_pairs(result, measure):
            figures[f"pairs_{measure}"] = model_pairs(result, measure)
        if f"{measure}_heads" in result.dataset:
            figures |= _figures_of_heads(result, measure, models)
    if has_facts(result):
        figures["facts"] = facts(result)
    return write_figures(figures, folder, formats)


def _figures_of_heads(
    result: SimilarityResult, measure: str, models: Sequence[str]
) -> dict[str, Figure]:
    names = [name.replace("/", "_") for name in short_names(models)]
    figures: dict[str, Figure] = {}
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
        figures[f"matches_{suffix}"] = head_matches(result, measure, models[i], models[j])
        figures[f"heads_{suffix}"] = plot_heads(result, measure, *pair)
    return figures
