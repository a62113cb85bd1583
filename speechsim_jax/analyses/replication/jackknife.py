"""From a statistic on all groups, and on all but one of them, to an interval and a verdict.

The rule, written down before any run. Let t be a statistic on all the audio and t_g the same
without group g, which has the share w_g of the rows. The pseudo-value of the group is

    p_g = t / w_g - (1 / w_g - 1) t_g    (all weights equal: G t - (G - 1) t_g),

the contribution of the group to t, free of the bias of a small sample (in proportion to 1/rows, as
the canonical correlations of few frames have). The jackknife estimate and its variance are

    e = G t - sum_g (1 - w_g) t_g,    v = 1/G sum_g (p_g - e)^2 / (1 / w_g - 1),

and the 95 % interval is e -+ q sqrt(v) with Student's quantile q of G - 1 degrees of freedom. A
margin is a statistic that is positive where a claim is right. The claim

    holds           if every p_g > 0, the interval lies above 0, and t > 0;
    does not hold   if every p_g < 0, the interval lies below 0, and t < 0;
    is undecided    otherwise: where the groups disagree, nothing is claimed.

With 8 groups, agreement by chance has the probability 2 / 2^8 = 0.8 % for a margin of zero.
Sources: Tukey 1958; Busing, Meijer & van der Leeden 1999 (delete-m_j jackknife), equations 3 and 6.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from speechsim_jax.analyses.intervals import LEVEL


class Verdict(enum.StrEnum):
    """Whether a claim holds, by the rule of this module."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with its jackknife estimate and interval.

    Attributes:
        whole: The statistic on all the audio.
        estimate: The jackknife estimate.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        groups: The pseudo-value of each group.
    """

    whole: float
    estimate: float
    low: float
    high: float
    groups: tuple[float, ...]


def jackknife_estimate(
    whole: float, without: Sequence[float], weights: Float[np.ndarray, " group"]
) -> Estimate:
    """Estimate and interval of a statistic from its values without each group in turn.

    Args:
        whole: The statistic on all the audio.
        without: The statistic without each group.
        weights: The share of each group in the rows; they add up to 1.

    Returns:
        The estimate. NaN anywhere makes everything but `whole` NaN, rather than leaving out groups.

    Source: Busing, Meijer & van der Leeden 1999, equations 3 and 6.
    """
    left_out = np.asarray(without, np.float64)
    inverse = 1 / weights
    pseudo = inverse * whole - (inverse - 1) * left_out
    estimate = len(left_out) * whole - float(np.sum((1 - weights) * left_out))
    variance = float(np.mean(np.square(pseudo - estimate) / (inverse - 1)))
    quantile = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(left_out) - 1))
    half_width = quantile * variance**0.5
    groups = tuple(map(float, pseudo))
    return Estimate(whole, estimate, estimate - half_width, estimate + half_width, groups)


def verdict(margin: Estimate) -> Verdict:
    """Verdict on a margin, by the rule at the head of this module."""
    values = np.array([*margin.groups, margin.low, margin.high, margin.whole])
    if (values > 0).all():
        return Verdict.HOLDS
    return Verdict.FAILS if (values < 0).all() else Verdict.UNDECIDED


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdict on a claim that several measures test: theirs if they agree, else undecided."""
    if not verdicts:
        return Verdict.UNTESTED
    return verdicts[0] if len(set(verdicts)) == 1 else Verdict.UNDECIDED


def votes(margin: Estimate) -> str:
    """How many groups have a positive margin, as "7/8"."""
    return f"{sum(value > 0 for value in margin.groups)}/{len(margin.groups)}"
