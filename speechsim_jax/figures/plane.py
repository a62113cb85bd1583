"""The layers of models as points of a plane, as near to each other as they are alike."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from speechsim_jax.errors import UserError
from speechsim_jax.figures.map_labels import model_spans
from speechsim_jax.figures.style import DPI, LEGEND, StandaloneFigure, line_style, style_panel
from speechsim_jax.figures.text_layout import (
    LINE,
    headline,
    legend_layout,
    short_names,
    title_or_summary,
)
from speechsim_jax.results.result import SimilarityResult

_WIDTH, _HEIGHT = 5.5, 3.4  # of the figure and of the plane, in inches
_FEWEST = 3  # points: two are on a line whatever they are


def plane(result: SimilarityResult, measure: str, *, title: str | None = None) -> StandaloneFigure:
    """All layers of all models in a plane, each model a line from its first layer to its last.

    Layers without scores, and tracks, are left out.

    Squared distances are s_xx + s_yy - s_xy - s_yx of similarities s (of `lincka` those of two
    centred and normed matrices of inner products), and the squares of measures that are distances
    already; of measures with a direction the mean of both. The plane is that of classical
    multidimensional scaling, and the caption says which share of the scatter about the centre it
    holds: of the sum of absolute eigenvalues, of which those of other measures than distances may
    be negative. Axes have no meaning but distance, and one scale.

    >>> from speechsim_jax import figures
    >>> figures.plane(result, "lincka").savefig("plane.pdf")

    Args:
        result: the result to draw.
        measure: the measure to draw.
        title: default: the summary of the measure.

    Raises:
        UserError: an unknown measure, fewer than three layers, or scores that are not known.

    Source: Torgerson 1952 (Psychometrika 17).
    """
    matrix = result.matrix(measure)
    known, values = _known(result, measure)
    if len(values) < _FEWEST:
        raise UserError(f"{measure}: a plane needs at least {_FEWEST} layers with scores")
    if not np.isfinite(values).all():
        raise UserError(f"{measure}: a plane needs the scores of all pairs of layers (pairs='all')")
    closer = result.definition(measure).get("higher_is_closer", True)
    points, share = scaled(squared_distances(values, closer))
    spans = [
        (span.model, np.arange(span.start, span.stop)) for span in model_spans(matrix, 0)
        if known[span.start : span.stop].any()
    ]  # fmt: skip
    number = np.cumsum(known) - 1
    head = headline(
        title_or_summary(result, measure, title),
        _WIDTH,
        result.notes(),
        [
            f"the plane holds {share:.0%} of the scatter",
            "large and hollow: the first layer",
        ],
    )
    names = [model for model, _ in spans]
    handles = [
        Line2D([], [], label=name, **line_style(k, 8)) for k, name in enumerate(short_names(names))
    ]
    labels, columns, legend_height = legend_layout([str(h.get_label()) for h in handles], _WIDTH)
    foot, height = 20 + legend_height, 72 * _HEIGHT
    whole = foot + height + head.height
    figure = StandaloneFigure(figsize=(_WIDTH, whole / 72), dpi=DPI, facecolor="white")
    left, right = 34.0, 10.0
    axes = figure.add_axes(
        (left / 72 / _WIDTH, foot / whole, 1 - (left + right) / 72 / _WIDTH, height / whole)
    )
    style_panel(axes, "")
    for k, (model, places) in enumerate(spans):
        of_model = points[number[places[known[places]]]]
        style: dict[str, Any] = line_style(k, len(of_model)) | {"markevery": 1}
        axes.plot(*of_model.T, "-", gid=model, **style)
        first: dict[str, Any] = style | {"markersize": 6.0, "markerfacecolor": "white"}
        axes.plot(*of_model[:1].T, gid=f"{model}, first", **first)
    axes.margins(0.08)
    axes.set_aspect("equal", adjustable="datalim")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    legend = figure.legend(handles, labels, loc="lower center", ncols=columns, **LEGEND)
    for text in legend.get_texts():
        text.set(parse_math=False, linespacing=LINE)
    head.draw(figure)
    return figure


def has_plane(result: SimilarityResult, measure: str) -> bool:
    """Whether `plane` has what it needs."""
    _, values = _known(result, measure)
    return len(values) >= _FEWEST and bool(np.isfinite(values).all())


def _known(
    result: SimilarityResult, measure: str
) -> tuple[Bool[np.ndarray, " x"], Float[np.ndarray, "known known"]]:
    """Which layers of models have scores, and these."""
    matrix = result.matrix(measure)
    values = np.asarray(matrix.values, dtype=np.float64)
    models = matrix[f"{matrix.dims[0]}_model"].values
    known = np.isfinite(np.diagonal(values)) & np.isin(models, list(result.compared_models))
    return known, values[np.ix_(known, known)]


def squared_distances(
    values: Float[np.ndarray, "x x"], higher_is_closer: bool
) -> Float[np.ndarray, "x x"]:
    """Squared distances of similarities or of distances, of both directions alike.

    Args:
        values: scores of all pairs.
        higher_is_closer: whether they are similarities.
    """
    both = (values + values.T) / 2
    if not higher_is_closer:
        return np.square(both)
    own = np.diagonal(both)
    return np.maximum(own[:, None] + own - 2 * both, 0)


def scaled(squared: Float[np.ndarray, "x x"]) -> tuple[Float[np.ndarray, "x two"], float]:
    """Points in a plane by classical multidimensional scaling.

    Args:
        squared: distances, squared.

    Returns:
        The points, each axis with its largest coordinate positive; the share of the sum of absolute
        eigenvalues that the two axes have, 1 if all points are one.
    """
    centred = squared - squared.mean(axis=0)
    centred = -(centred - centred.mean(axis=1, keepdims=True)) / 2
    eigenvalues, vectors = np.linalg.eigh((centred + centred.T) / 2)
    first = np.argsort(-eigenvalues)[:2]
    kept = np.maximum(eigenvalues[first], 0)
    points = vectors[:, first] * np.sqrt(kept)
    largest = points[np.abs(points).argmax(axis=0), np.arange(2)]
    points *= np.where(largest < 0, -1, 1)
    total = float(np.abs(eigenvalues).sum())
    return points, float(kept.sum()) / total if total > 0 else 1.0
