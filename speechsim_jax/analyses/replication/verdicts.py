"""From a statistic and its standard error to a verdict.

The rule, written down before any run. A statistic is computed from scores, and has a standard error
over speakers, or utterances: the influence of a row on it is its derivative along the row's
influences on the scores (`ss.compare(errors=...)`). With t its value, SE its standard error and q
Student's quantile, the 95 % interval is t -+ q SE. A margin is a statistic that is positive where a
claim is right. By one measure, the claim

    holds           if the interval of the margin lies above 0;
    does not hold   if the interval of the margin lies below 0;
    is undecided    otherwise.

An interval does not contain what few frames add to a score. So where there are held-out scores of
all measures that a margin reads, the margin of these must be on the same side of 0, too, or the
claim is undecided.

A claim that several measures test holds, or does not, if it is so by each of them, and is undecided
otherwise. A measure without standard errors cannot decide; if its margin is on the other side than
the others decide, the claim is undecided.

With at least 10 speakers or utterances there are intervals. By chance a margin of zero is decided
with a probability of 5 %, by all of several measures with less.
"""

import enum
import math
from collections.abc import Sequence

from speechsim_jax.analyses.intervals import LEVEL
from speechsim_jax.inference.contrast import Contrast


class Verdict(enum.StrEnum):
    """Whether a claim holds."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested"


def verdict(margin: Contrast, heldout: float) -> Verdict:
    """Verdict on a margin, by the rule at the head of this module.

    Args:
        margin: The margin; NaN for its standard error where there is none.
        heldout: The margin of held-out scores; NaN where there are none.
    """
    low, high = margin.interval(LEVEL)
    if low > 0 and not heldout <= 0:
        return Verdict.HOLDS
    return Verdict.FAILS if high < 0 and not heldout >= 0 else Verdict.UNDECIDED


def combine(verdicts: Sequence[Verdict], without_errors: Sequence[float] = ()) -> Verdict:
    """Verdict on a claim that several measures test, by the rule at the head of this module.

    Args:
        verdicts: Of each measure.
        without_errors: Margins of the measures without standard errors.
    """
    tested = {verdict for verdict in verdicts if verdict != Verdict.UNTESTED}
    if not tested:
        return Verdict.UNTESTED
    agreed = tested.pop() if len(tested) == 1 else Verdict.UNDECIDED
    against = {Verdict.HOLDS: -1, Verdict.FAILS: 1}.get(agreed, 0)
    if any(against * margin > 0 for margin in without_errors):
        return Verdict.UNDECIDED
    return agreed


def is_known(contrast: Contrast) -> bool:
    """Whether a statistic has a standard error."""
    return math.isfinite(contrast.standard_error)
