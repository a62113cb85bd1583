"""How much audio a target for standard errors takes, predicted from those of less audio.

Standard errors fall with the root of the number of clusters, so with as much audio of each the
minutes needed for a target are `minutes (error / target)^2`. What few rows add to a score falls
with their number: `minutes inflation / target`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Of = Literal["largest", "median"]
"""Which standard error of a measure is meant: of all pairs of different representations."""

# A step reads so many times the audio of those before it, at least and at most.
_LEAST_GROWTH, _MOST_GROWTH = 1.25, 4.0
# Read more than is predicted, as the prediction may be too small.
_MARGIN = 1.1


@dataclasses.dataclass(frozen=True)
class AudioNeeded:
    """What a target for the standard errors of one measure takes.

    Attributes:
        measure: its name.
        of: which standard error is meant, the "largest" or the "median" of all pairs.
        standard_error: with the audio that was read.
        minutes: of audio for the target; NaN where the standard error is not known.
        compute_hours: that the encoders need for it on the machine of the result; NaN where its
            speed was not recorded.
    """

    measure: str
    of: Of
    standard_error: float
    minutes: float
    compute_hours: float


def over_pairs(values: Float[np.ndarray, "x y"], scores: Float[np.ndarray, "x y"], of: Of) -> float:
    """The largest or median value of all pairs of different representations.

    Args:
        values: of each pair; NaN where it is not known.
        scores: of each pair; pairs whose score is NaN are left out.
        of: which.

    Returns:
        The largest or median of those known; NaN if these are less than half, or none.
    """
    pairs = np.isfinite(scores) & ~np.eye(len(scores), dtype=bool)
    known = values[pairs & np.isfinite(values)]
    if len(known) == 0 or 2 * len(known) < pairs.sum():
        return float("nan")
    return float(known.max() if of == "largest" else np.median(known))


def minutes_needed(
    minutes: float, standard_error: float, target: float, inflation: float = 0.0
) -> float:
    """Minutes of audio for a target.

    Args:
        minutes: that were read.
        standard_error: with these.
        target: for it, and for the inflation.
        inflation: that few rows add to scores; NaN where it is not known, and then left out.

    Returns:
        The minutes; NaN where the standard error is not known.
    """
    of_inflation = 0.0 if math.isnan(inflation) else inflation / target
    return minutes * float(np.maximum((standard_error / target) ** 2, of_inflation))


def inflation_by_few_rows(
    rows: Sequence[int],
    parts: Sequence[Float[np.ndarray, "x y"]],
    whole: Float[np.ndarray, "x y"],
) -> Float[np.ndarray, "x y"]:
    """What few rows add to each score, from the scores of two parts of the audio.

    A score of n rows is too high by about b / n. In the mean of the scores of both parts, weighted
    with their rows, that is 2 b / n, and to first order chance is the same as in the whole: the
    difference is b / n, with little noise.

    Args:
        rows: of each part.
        parts: the scores of each.
        whole: the scores of both together.
    """
    first, second = (n * scores for n, scores in zip(rows, parts, strict=True))
    return (first + second) / sum(rows) - whole


def growth_of_step(minutes: float, predicted: float, inflation_known: bool) -> float:
    """How many times the audio that was read will have been read after the next step.

    Args:
        minutes: that were read.
        predicted: from `minutes_needed`; NaN where nothing can be predicted.
        inflation_known: whether the inflation was part of the prediction.
    """
    growth = 2.0 if math.isnan(predicted) or minutes == 0 else _MARGIN * predicted / minutes
    if not inflation_known:  # which takes two parts of about the same length
        growth = max(growth, 2.0)
    return float(np.clip(growth, _LEAST_GROWTH, _MOST_GROWTH))
