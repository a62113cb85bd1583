"""From a statistic on all groups, and on all but one of them, to an interval and a verdict.

The rule, written down before any run. Let t be a statistic on all the audio and t_g the same
without group g, which has the share w_g of the rows. The pseudo-value of the group is

    p_g = t / w_g - (1 / w_g - 1) t_g    (all weights equal: G t - (G - 1) t_g),

what the group by itself says of t once the bias of a small sample (in proportion to 1/rows, such as
the canonical correlations of few frames have) has been taken out. The jackknife estimate and its
variance are

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

LEVEL = 0.95


class Verdict(enum.StrEnum):
    """What groups of utterances say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic on all the audio (`whole`), the jackknife's estimate, its 95 % interval.

    `groups`: the pseudo-value of each group.
    """

    whole: float
    estimate: float
    low: float
    high: float
    groups: tuple[float, ...]


def jackknife(
    whole: float, without: Sequence[float], weights: Float[np.ndarray, " group"]
) -> Estimate:
    """The estimate from a statistic on everything, and without each group in turn.

    `weights`: the share of each group in the rows, adding up to 1. NaN anywhere makes everything
    but `whole` NaN, rather than fewer groups.
    """
    left = np.asarray(without, np.float64)
    inverse = 1 / weights
    pseudo = inverse * whole - (inverse - 1) * left
    estimate = len(left) * whole - float(np.sum((1 - weights) * left))
    variance = float(np.mean(np.square(pseudo - estimate) / (inverse - 1)))
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(left) - 1)) * variance**0.5
    return Estimate(whole, estimate, estimate - reach, estimate + reach, tuple(map(float, pseudo)))


def verdict(margin: Estimate) -> Verdict:
    """What the groups say of a margin, by the rule above."""
    everything = np.array([*margin.groups, margin.low, margin.high, margin.whole])
    if (everything > 0).all():
        return Verdict.HOLDS
    return Verdict.FAILS if (everything < 0).all() else Verdict.UNDECIDED


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim that several measures test: what all of them say, else undecided."""
    if not verdicts:
        return Verdict.UNTESTED
    return verdicts[0] if len(set(verdicts)) == 1 else Verdict.UNDECIDED


def votes(margin: Estimate) -> str:
    """How many groups are for the claim, as "7/8"."""
    return f"{sum(value > 0 for value in margin.groups)}/{len(margin.groups)}"
