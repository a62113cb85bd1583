"""What tests of claims come to: values with errors, baselines and verdicts."""

import dataclasses
from collections.abc import Mapping, Sequence

from speechsim_jax.analyses.replication.claims import Claim
from speechsim_jax.analyses.replication.jackknife import Estimate
from speechsim_jax.analyses.replication.verdicts import Verdict, combine
from speechsim_jax.inference.contrast import Contrast


@dataclasses.dataclass(frozen=True)
class GroupedTestResult:
    """Outcome of one measure's test of a claim by the rule of groups.

    Attributes:
        value: The statistic.
        margin: The margin that decides.
        verdict: Verdict on the margin.
    """

    value: Estimate
    margin: Estimate
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class ClaimTestResult:
    """Outcome of one measure's test of a claim.

    Attributes:
        measure: Name of the test.
        threshold: What `value` is compared with, in words.
        value: The statistic.
        margin: The margin that decides.
        heldout: The margin of held-out scores; NaN where there are none.
        baselines: Other statistics, on all the audio; "published" is `value` of published maps.
        verdict: Verdict on the margin.
        grouped: Outcome by the rule of groups, if there are any.
    """

    measure: str
    threshold: str
    value: Contrast
    margin: Contrast
    heldout: float
    baselines: Mapping[str, float]
    verdict: Verdict
    grouped: GroupedTestResult | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """Outcome of one claim.

    Attributes:
        claim: The claim.
        tests: Outcomes of its tests.
        verdict: What the tests agree on.
        lacking: Why there are no tests.
        grouped: Verdict by the rule of groups, if there are any.
    """

    claim: Claim
    tests: tuple[ClaimTestResult, ...]
    verdict: Verdict
    lacking: str = ""
    grouped: Verdict | None = None

    @classmethod
    def of(cls, claim: Claim, tests: Sequence[ClaimTestResult]) -> "Finding":
        """What tests of a claim, at least one, agree on."""
        undecided = [test.margin.difference for test in tests if test.verdict == Verdict.UNTESTED]
        verdict = combine([test.verdict for test in tests], undecided)
        lacking = "no standard errors" if verdict == Verdict.UNTESTED else ""
        by_groups = [test.grouped.verdict for test in tests if test.grouped]
        grouped = combine(by_groups) if by_groups else None
        return cls(claim, tuple(tests), verdict, lacking, grouped)
