"""The rule of groups: from a statistic on all of them, and on all but one, to a verdict.

The rule that claims were first tested by, for comparison (--groups=8). Let t be a statistic on all
the audio and t_g the same without group g, which has the share w_g of the rows. The pseudo-value of
the group is

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
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from speechsim_jax.analyses.intervals import LEVEL
from speechsim_jax.analyses.replication.margins import Number, Scores
from speechsim_jax.analyses.replication.verdicts import Verdict
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import SimilarityResult


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


def votes(margin: Estimate) -> str:
    """How many groups have a positive margin, as "7/8"."""
    return f"{sum(value > 0 for value in margin.groups)}/{len(margin.groups)}"


class Groups:
    """Results of all the audio, and of all of it but one group of utterances.

    Args:
        full_results: Results of all the audio.
        without: For each group the results without it, in the order of `full_results`.

    Raises:
        UserError: Fewer than two groups, or groups that do not add up to all the audio.
    """

    def __init__(
        self,
        full_results: Sequence[SimilarityResult],
        without: Sequence[Sequence[SimilarityResult]],
    ):
        self._scores = Scores(full_results)
        self._left_out = [Scores(results) for results in without]
        first = [results[0] for results in without]
        self._weights = {
            heads: group_weights(full_results[0], first, heads)
            for heads in (False, "attention" in full_results[0].attributes)
        }

    def __len__(self) -> int:
        return len(self._left_out)

    def estimate(self, statistic: Callable[[Scores], Number], heads: bool) -> Estimate:
        """The jackknife estimate of a statistic; `heads`: of attention.

        Raises:
            LookupError: No result has what it is computed from.
        """
        without = [float(statistic(scores)) for scores in self._left_out]
        return jackknife_estimate(float(statistic(self._scores)), without, self._weights[heads])


def group_weights(
    full: SimilarityResult, without: Sequence[SimilarityResult], heads: bool = False
) -> Float[np.ndarray, " group"]:
    """The share of each group in the rows of a comparison.

    Args:
        full: Result of all the audio.
        without: Results without each group.
        heads: Shares of the frames that attention was compared on, instead of rows.

    Raises:
        UserError: Fewer than two groups, or groups that do not add up to all the audio.
    """
    if len(without) < 2:
        raise UserError(f"{len(without)} groups of utterances; at least 2 are needed, better 8")
    rows = _rows(full, heads)
    of_groups = np.array([rows - _rows(result, heads) for result in without], np.float64)
    if of_groups.sum() != rows or (of_groups <= 0).any():
        raise UserError(
            f"the groups have {[int(n) for n in of_groups]} rows of {rows}; they must be disjoint, "
            "and together the whole"
        )
    return of_groups / rows


def _rows(result: SimilarityResult, heads: bool) -> int:
    if heads:
        return result.attributes["attention"]["frames"]
    return result.attributes.get("rows", result.attributes["frames"])
