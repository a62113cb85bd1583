"""How close every two models are, and which pairs differ."""

from matplotlib.ticker import MaxNLocator

from speechsim_jax.errors import UserError
from speechsim_jax.figures.marks import AT_RATE
from speechsim_jax.figures.style import DPI, GREY, StandaloneFigure, style_panel
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
)
from speechsim_jax.results.model_scores import (
    ModelScores,
    ranked_pairs,
    trained_pairs,
    untrained_models,
)
from speechsim_jax.results.result import SimilarityResult

_WIDTH = 5.5  # inches
_ROW = 5.0  # between the names of two pairs, in points
_NAMES = 0.42  # of the width, at most
_MOST = 40  # pairs that are drawn
# Of whether a pair differs from the closest one: the point's name and its colour.
_POINTS = {True: ("differs", "white"), False: ("alike", "black"), None: ("not known", "#b5b5b5")}


def model_pairs(
    result: SimilarityResult, measure: str, *, title: str | None = None
) -> StandaloneFigure:
    """The mean score of every pair of models, closest first, with 95 % intervals.

    Of two models: the mean, over the layers of both, of the score of a layer with its closest of
    the other one. Pairs that are not found to differ from the closest pair are filled, as the
    closest pair is; the closest of trained models, where there are two. All pairs are tested
    together, at a false discovery rate of 5 %; without influences of rows each by the interval of
    its difference. Those of which it is not known are grey, unless it is of none. Of more than 40
    pairs the closest are drawn.

    >>> from speechsim_jax import figures
    >>> figures.model_pairs(result, "lincka").savefig("pairs.pdf")

    Args:
        result: the result to draw.
        measure: the measure to draw.
        title: default: the summary of the measure.

    Raises:
        UserError: an unknown measure, or no two models with scores.
    """
    scores = ModelScores(result, measure)
    pairs = [pair for pair in ranked_pairs(scores) if pair.x != pair.y]
    if not pairs:
        raise UserError(f"{measure}: no two models of this result have scores with each other")
    first = trained_pairs(pairs, untrained_models(result))[0]
    shown = pairs[:_MOST]
    others = [pair for pair in pairs if pair is not first]
    found = dict(zip(others, scores.distinguished(first, others), strict=True))
    differs = [found.get(pair, False) for pair in shown]
    is_known = any(found.get(pair) is not None for pair in shown)
    keys = ["every layer with its closest of the other model"]
    if any(pair.mean.is_sure for pair in shown):
        keys.append("lines: 95 % intervals")
    if is_known:
        trained = " of trained models" if first is not pairs[0] else ""
        rate = f" ({AT_RATE})" if scores.has_sums else ""
        keys.append(f"filled: not found to differ from the closest pair{trained}{rate}")
        if None in differs:
            keys.append("grey: not known")
    if len(pairs) > len(shown):
        keys.append(f"the closest {len(shown)} of {len(pairs)} pairs")
    head = headline(title_or_summary(result, measure, title), _WIDTH, result.notes(), keys)
    short = dict(zip(result.models, short_names(result.models), strict=True))
    names = [
        balanced(f"{short[pair.x]}, {short[pair.y]}", _NAMES * 72 * _WIDTH, SMALL) for pair in shown
    ]
    widest = max(text_width(line, SMALL) for lines in names for line in lines)
    left, right, foot = widest + 4 * GAP, 12.0, 28.0
    heights = [len(lines) * SMALL * LINE + _ROW for lines in names]
    whole = foot + sum(heights) + head.height + GAP
    figure = StandaloneFigure(figsize=(_WIDTH, whole / 72), dpi=DPI, facecolor="white")
    axes = figure.add_axes((
        left / 72 / _WIDTH, foot / whole, 1 - (left + right) / 72 / _WIDTH, sum(heights) / whole,
    ))  # fmt: skip
    style_panel(axes, "")
    top, places = 0.0, []
    for height in heights:
        places.append(top + height / 2)
        top += height
    axes.set_ylim(top, 0)
    for place, pair, other in zip(places, shown, differs, strict=True):
        value, half = pair.mean
        if pair.mean.is_sure:
            axes.plot([value - half, value + half], [place] * 2, color=GREY, lw=1, gid="interval")
        gid, face = _POINTS[other] if is_known else ("pair", "black")
        axes.plot([value], [place], "o", color="black", markersize=4, markerfacecolor=face, gid=gid)
    axes.set_yticks(places, ["\n".join(lines) for lines in names])
    axes.tick_params(axis="y", length=0)
    for text in axes.get_yticklabels():
        text.set(parse_math=False, linespacing=LINE)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.06)
    axes.set_xlabel(measure, fontsize=MEDIUM, labelpad=GAP)
    head.draw(figure)
    return figure


def has_model_pairs(result: SimilarityResult, measure: str) -> bool:
    """Whether there are two models with scores with each other."""
    scores = ModelScores(result, measure)
    return len(scores.models) > 1 and bool(scores.scored().any())
