"""Outcomes of the claims: values with intervals, baselines and verdicts, as tables and JSON."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from speechsim_jax.analyses.replication import claims as claim_definitions
from speechsim_jax.analyses.replication import jackknife
from speechsim_jax.analyses.replication.claims import (
    ATTENTION,
    CLAIMS,
    Claim,
    ClaimTest,
    Roles,
    Statistic,
)
from speechsim_jax.analyses.replication.jackknife import Estimate, Verdict
from speechsim_jax.analyses.replication.margins import Scores
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import SimilarityResult

_SYMBOLS = {
    Verdict.HOLDS: "yes",
    Verdict.FAILS: "no",
    Verdict.UNDECIDED: "?",
    Verdict.UNTESTED: "-",
}


@dataclasses.dataclass(frozen=True)
class ClaimTestResult:
    """Outcome of one measure's test of a claim.

    Attributes:
        measure: Name of the test.
        threshold: What `value` is compared with, in words.
        value: The statistic.
        margin: The margin that decides.
        baselines: Other statistics, on all the audio; "published" is `value` of published maps.
        verdict: Verdict on the margin.
    """

    measure: str
    threshold: str
    value: Estimate
    margin: Estimate
    baselines: Mapping[str, float]
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Finding:
    """Outcome of one claim.

    Attributes:
        claim: The claim.
        tests: Outcomes of its tests.
        verdict: What the tests agree on.
        lacking: Why there are no tests.
    """

    claim: Claim
    tests: tuple[ClaimTestResult, ...]
    verdict: Verdict
    lacking: str = ""


def evaluate_claims(
    full_results: Sequence[SimilarityResult],
    without: Sequence[Sequence[SimilarityResult]],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None = None,
    claims: Sequence[Claim] = CLAIMS,
) -> list[Finding]:
    """Test claims on results of all the audio, and of all of it but one group of utterances.

    Args:
        full_results: Results of all the audio that together have the models of `roles`.
        without: For each group the results without it, in the order of `full_results`.
        roles: Roles of the models.
        published: Published maps as results, and roles of their models; their statistics become
            baselines.
        claims: Claims to test.

    Returns:
        A finding for each claim.

    Raises:
        UserError: Fewer than two groups, or groups that do not add up to all the audio.
    """
    weights = {
        heads: group_weights(full_results[0], [results[0] for results in without], heads)
        for heads in (False, "attention" in full_results[0].attributes)
    }
    scores, left_out = Scores(full_results), [Scores(results) for results in without]
    return [_finding(claim, scores, left_out, weights, roles, published) for claim in claims]


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


def _finding(
    claim: Claim,
    scores: Scores,
    left_out: Sequence[Scores],
    weights: Mapping[bool, Float[np.ndarray, " group"]],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None,
) -> Finding:
    tests = claim.tests(roles)
    if not tests:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {claim.needs}")
    try:
        results = [_run_test(test, scores, left_out, weights) for test in tests]
    except LookupError as missing:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {missing.args[0]}")
    if published is not None:
        values = _published_values(claim, *published)
        results = [
            dataclasses.replace(
                result, baselines={**result.baselines, "published": values[result.measure]}
            )
            if result.measure in values
            else result
            for result in results
        ]
    verdict = jackknife.combine([result.verdict for result in results])
    return Finding(claim, tuple(results), verdict)


def _run_test(
    test: ClaimTest,
    scores: Scores,
    left_out: Sequence[Scores],
    weights: Mapping[bool, Float[np.ndarray, " group"]],
) -> ClaimTestResult:
    def estimate(statistic: Statistic) -> Estimate:
        without = [statistic(group) for group in left_out]
        return jackknife.jackknife_estimate(
            statistic(scores), without, weights[test.measure in ATTENTION]
        )

    value, margin = estimate(test.value), estimate(test.margin)
    baselines = {name: statistic(scores) for name, statistic in test.baselines.items()}
    return ClaimTestResult(
        test.measure, test.threshold, value, margin, baselines, jackknife.verdict(margin)
    )


def _published_values(
    claim: Claim, results: Sequence[SimilarityResult], roles: Roles
) -> dict[str, float]:
    """The same statistics of published maps, as far as these have what they need."""
    scores, values = Scores(results), {}
    for test in claim.tests(roles):
        try:
            values[test.measure] = test.value(scores)
        except LookupError:
            continue
    return {measure: value for measure, value in values.items() if not math.isnan(value)}


# --- tables and JSON ---


def table(findings: Sequence[Finding], width: int = 100) -> str:
    """The findings as text: each claim with its verdict, and a line for each measure.

    Args:
        findings: Outcomes of claims.
        width: Characters in a line of a claim's text.
    """
    lines = []
    for finding in findings:
        verdict = finding.verdict.upper() + (f" ({finding.lacking})" if finding.lacking else "")
        lines += textwrap.wrap(f"{finding.claim.text}", width - 2)
        lines.append(f"  => {verdict}")
        lines += [f"     {line}" for line in map(_line, finding.tests)]
        lines.append("")
    return "\n".join([*lines, tally(findings)])


def tally(findings: Sequence[Finding]) -> str:
    """Number and names of the claims of each verdict, as text."""
    parts = []
    for kind in Verdict:
        names = [finding.claim.name for finding in findings if finding.verdict == kind]
        if names:
            parts.append(f"{len(names)} {kind}: {', '.join(names)}")
    return "\n".join(parts)


def _line(result: ClaimTestResult) -> str:
    others = ", ".join(f"{name} {_number(v)}" for name, v in result.baselines.items())
    return (
        f"{result.measure:17} {_with_interval(result.value):24} {result.threshold:26} "
        f"{_SYMBOLS[result.verdict]:4} {jackknife.votes(result.margin)} groups; {others}"
    )


def markdown(findings: Sequence[Finding], about: Sequence[str], figures: Sequence[str] = ()) -> str:
    """The findings as a Markdown page.

    Args:
        findings: Outcomes of claims.
        about: Lines that describe how the findings were made.
        figures: Paths of figures to include.
    """
    groups = next((len(t.margin.groups) for f in findings for t in f.tests), 0)
    lines = ["# Findings", "", *(f"- {line}" for line in about), ""]
    lines += ["| claim | where | verdict |", "|---|---|---|"]
    for finding in findings:
        lines.append(f"| {finding.claim.text} | {finding.claim.source} | **{finding.verdict}** |")
    lines += ["", *_how_to_read(groups), ""]
    for finding in findings:
        lines += _section(finding)
    if figures:
        lines += ["## Figures", "", *(f"![{path}]({path})" for path in figures), ""]
    return "\n".join(lines)


def _how_to_read(groups: int) -> list[str]:
    return [
        f"Intervals are 95 %, of a jackknife over {groups} disjoint groups of utterances, which "
        "also takes out the bias of few frames; *all audio* is the plain score. A verdict needs "
        "every group, the interval and the plain score on one side of the threshold, for every "
        "measure of the claim; *undecided* is everything else. The rules are in "
        "`--help_findings`. Several claims are tested, each by itself, without correction."
    ]


def _section(finding: Finding) -> list[str]:
    claim = finding.claim
    lines = [
        f"## {claim.name}: {finding.verdict}",
        "",
        claim.text,
        "",
        f"Statistic: {claim.statistic}.",
    ]
    if finding.lacking:
        return [*lines, "", f"Not tested: {finding.lacking}.", ""]
    names = list(dict.fromkeys(name for test in finding.tests for name in test.baselines))
    head = ["measure", "value", "all audio", *names, "claimed", "margin", "groups", "verdict"]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for test in finding.tests:
        baselines = [_number(test.baselines.get(name, math.nan)) for name in names]
        cells = [
            test.measure, _with_interval(test.value), _number(test.value.whole), *baselines,
            test.threshold, _with_interval(test.margin), jackknife.votes(test.margin),
            test.verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _with_interval(estimate: Estimate) -> str:
    if math.isnan(estimate.estimate):
        return "not defined"
    return f"{estimate.estimate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def as_json(findings: Sequence[Finding], about: Mapping[str, Any]) -> str:
    """Everything, every group's value included, as JSON text; NaN becomes null.

    Args:
        findings: Outcomes of claims.
        about: Metadata: how the findings were made.
    """

    def as_dict(finding: Finding) -> dict[str, Any]:
        claim = {
            name: getattr(finding.claim, name) for name in ("name", "text", "source", "statistic")
        }
        tests = [dataclasses.asdict(test) for test in finding.tests]
        return {**claim, "verdict": finding.verdict, "lacking": finding.lacking, "tests": tests}

    content = {"about": about, "findings": [as_dict(finding) for finding in findings]}
    return json.dumps(_without_nan(content), indent=2) + "\n"


def _without_nan(value: Any) -> Any:
    """The value with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain() -> str:
    """The text of `--help_findings`: the rule, the statistics, every claim."""
    lines = [str(jackknife.__doc__).strip(), "", str(claim_definitions.__doc__).strip(), ""]
    for claim in CLAIMS:
        lines += [f"{claim.name} ({claim.source})", f"    {claim.text}", f"    {claim.statistic}"]
        lines += [f"    needs {claim.needs}", ""]
    return "\n".join(lines)
