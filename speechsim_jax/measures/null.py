"""Scores of rows that do not belong together, and what they say of the scores."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from speechsim_jax.measures.base import Measure, RepresentationPair
from speechsim_jax.statistics.null_moments import NullDraw

LEAST_DRAWS_FOR_P = 19
"""With fewer draws the smallest p-value is above 0.05, and there are none."""

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]


def null_scores(
    draws: Sequence[NullDraw], measures: Sequence[Measure], i: int, j: int
) -> list[dict[str, list[float]]]:
    """The scores of a pair in every draw, and those of the pair in the other order.

    Args:
      draws: the draws.
      measures: on moments.
      i, j: numbers of the representations; the order of their moments.

    Returns:
      measure -> score in each draw, for (i, j) and, if they differ, for (j, i).
    """
    found: list[dict[str, list[float]]] = [{m.name: [] for m in measures} for _ in {i, j}]
    for draw in draws:
        pair = RepresentationPair(draw.moments, draw.x[i], draw.y[j])
        live = pair.x.live.any() and pair.y.live.any()
        for view, scores in zip((pair, pair.swapped), found):
            for measure in measures:
                if not live:
                    score = math.nan
                elif measure.symmetric and view is not pair:
                    score = found[0][measure.name][-1]
                else:
                    score = measure.function(view)
                scores[measure.name].append(score)
    return found


def null_extras(
    measure: Measure,
    scores: Float[np.ndarray, "x y"],
    null: Float[np.ndarray, "draw x y"],
    models: Sequence[str],
) -> Extras:
    """Arrays next to the scores of a measure: NAME_null, NAME_null_std, NAME_calibrated, NAME_p.

        calibrated = (s - null) / (1 - null)
        p = (1 + draws at least as close) / (1 + draws)

    NAME_p_best [x, model] is that p of the layer of a model that is closest to x, among draws of
    which the closest layer is taken, too: the same statement about any layer at once. x itself is
    left out.

    Args:
      measure: the measure.
      scores: of the rows as they belong together.
      null: of each draw; NaN for undefined scores.
      models: the model of each representation.
    """
    null = np.clip(null, *measure.limits)
    null[:, np.isnan(scores)] = np.nan
    mean = null.mean(axis=0)
    extras: Extras = {f"{measure.name}_null": (("x", "y"), mean)}
    if len(null) > 1:
        extras[f"{measure.name}_null_std"] = ("x", "y"), null.std(axis=0, ddof=1)
    if measure.bounded_by_one:
        room = np.where(mean < 1, 1 - mean, np.nan)
        extras[f"{measure.name}_calibrated"] = ("x", "y"), (scores - mean) / room
    if len(null) < LEAST_DRAWS_FOR_P:
        return extras
    sign = 1 if measure.higher_is_closer else -1
    extras[f"{measure.name}_p"] = ("x", "y"), _p_values(sign * scores, sign * null)
    others = ~np.eye(len(scores), dtype=bool)
    columns = [others & (np.array(models) == model) for model in dict.fromkeys(models)]
    best, best_null = (
        np.stack([_largest(sign * values, used) for used in columns], axis=-1)
        for values in (scores, null)
    )
    extras[f"{measure.name}_p_best"] = ("x", "model"), _p_values(best, best_null)
    return extras


def _p_values(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Share of the draws, the score itself counted as one, that are at least as large."""
    p = (1 + np.sum(null >= scores, axis=0)) / (1 + len(null))
    return np.where(np.isnan(scores), np.nan, p)


def _largest(
    values: Float[np.ndarray, "*draw x y"], used: Bool[np.ndarray, "x y"]
) -> Float[np.ndarray, "*draw x"]:
    """The largest of the used values that are defined, over y; NaN where there are none."""
    known = used & np.isfinite(values)
    largest = np.where(known, values, -np.inf).max(axis=-1)
    return np.where(known.any(axis=-1), largest, np.nan)
