"""Outcomes of the claims: values with errors, baselines and verdicts, as tables and JSON."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from speechsim_jax.analyses.intervals import LEVEL
from speechsim_jax.analyses.replication import claims as claim_definitions
from speechsim_jax.analyses.replication import concept_claim, jackknife, verdicts
from speechsim_jax.analyses.replication.claims import (
    ATTENTION,
    CLAIMS,
    ClaimTest,
    Roles,
    ScoreClaim,
)
from speechsim_jax.analyses.replication.jackknife import Groups
from speechsim_jax.analyses.replication.margins import Scores, with_error
from speechsim_jax.analyses.replication.outcomes import (
    ClaimTestResult,
    Finding,
    GroupedTestResult,
)
from speechsim_jax.analyses.replication.verdicts import Verdict, is_known
from speechsim_jax.inference.contrast import Contrast
from speechsim_jax.results.result import SimilarityResult

_SYMBOLS = {
    Verdict.HOLDS: "yes",
    Verdict.FAILS: "no",
    Verdict.UNDECIDED: "?",
    Verdict.UNTESTED: "-",
}


def evaluate_claims(
    results: Sequence[SimilarityResult],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None = None,
    claims: Sequence[ScoreClaim] = CLAIMS,
    groups: Groups | None = None,
) -> list[Finding]:
    """Test claims on results with standard errors.

    Args:
        results: Results that together have the models of `roles`.
        roles: Roles of the models.
        published: Published maps as results, and roles of their models; their statistics become
            baselines.
        claims: Claims to test.
        groups: Results of groups of utterances, for the verdicts by their rule, too.

    Returns:
        A finding for each claim.
    """
    return [_finding(claim, results, roles, published, groups) for claim in claims]


def _finding(
    claim: ScoreClaim,
    results: Sequence[SimilarityResult],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None,
    groups: Groups | None,
) -> Finding:
    tests = claim.tests(roles)
    if not tests:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {claim.needs}")
    try:
        outcomes = [_run_test(test, results, groups) for test in tests]
    except LookupError as missing:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {missing.args[0]}")
    if published is not None:
        values = _published_values(claim, *published)
        outcomes = [
            dataclasses.replace(
                outcome, baselines={**outcome.baselines, "published": values[outcome.measure]}
            )
            if outcome.measure in values
            else outcome
            for outcome in outcomes
        ]
    return Finding.of(claim, outcomes)


def _run_test(
    test: ClaimTest, results: Sequence[SimilarityResult], groups: Groups | None
) -> ClaimTestResult:
    scores = Scores(results)
    value, margin = with_error(test.value, results), with_error(test.margin, results)
    try:
        heldout = float(test.margin(Scores(results, heldout=True)))
    except LookupError:
        heldout = math.nan
    decided = verdicts.verdict(margin, heldout) if is_known(margin) else Verdict.UNTESTED
    baselines = {name: float(statistic(scores)) for name, statistic in test.baselines.items()}
    grouped = _grouped(test, groups) if groups is not None else None
    return ClaimTestResult(
        test.measure, test.threshold, value, margin, heldout, baselines, decided, grouped
    )


def _grouped(test: ClaimTest, groups: Groups) -> GroupedTestResult:
    heads = test.measure in ATTENTION
    value, margin = groups.estimate(test.value, heads), groups.estimate(test.margin, heads)
    return GroupedTestResult(value, margin, jackknife.verdict(margin))


def _published_values(
    claim: ScoreClaim, results: Sequence[SimilarityResult], roles: Roles
) -> dict[str, float]:
    """The same statistics of published maps, as far as these have what they need."""
    scores, values = Scores(results), {}
    for test in claim.tests(roles):
        try:
            values[test.measure] = float(test.value(scores))
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
        if finding.grouped is not None:
            verdict += f"; by groups: {finding.grouped}"
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
        f"{result.measure:17} {_with_error(result.value):14} {result.threshold:26} "
        f"{_SYMBOLS[result.verdict]:4} {others}"
    )


def markdown(
    findings: Sequence[Finding],
    about: Sequence[str],
    figures: Sequence[str] = (),
    errors: str = "",
    groups: int = 0,
) -> str:
    """The findings as a Markdown page.

    Args:
        findings: Outcomes of claims.
        about: Lines that describe how the findings were made.
        figures: Paths of figures to include.
        errors: What the standard errors are over.
        groups: Number of groups, for the verdicts by their rule.
    """
    lines = ["# Findings", "", *(f"- {line}" for line in about), ""]
    head = ["claim", "where", "verdict", *(["by groups"] if groups else [])]
    lines += _row(head), "|---" * len(head) + "|"
    for finding in findings:
        cells = [finding.claim.text, finding.claim.source, f"**{finding.verdict}**"]
        lines.append(_row([*cells, *([finding.grouped or ""] if groups else [])]))
    lines += ["", *_how_to_read(errors, groups), ""]
    for finding in findings:
        lines += _section(finding)
    if figures:
        lines += ["## Figures", "", *(f"![{path}]({path})" for path in figures), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _how_to_read(errors: str, groups: int) -> list[str]:
    lines = [
        "Values stand with their standard error, margins with their 95 % interval. A claim holds "
        "where the interval of the margin is above 0 by every measure, does not hold where it is "
        "below 0 by every measure; a margin of held-out scores on the other side of 0 leaves it "
        "*undecided*, and so does everything else. What has no standard error cannot decide, but "
        "leaves a claim undecided if its margin is on the other side. The rules are in "
        "`--help_findings`. Several claims are tested, each by itself, without correction."
    ]
    lines += ["", f"{errors}."] if errors else []
    if groups:
        lines += [
            "",
            f"*By groups*: the verdict of the rule used before, a jackknife over {groups} disjoint "
            "groups of utterances, of which every one must agree.",
        ]
    return lines


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
        lines += ["", f"Not tested: {finding.lacking}."]
    if not finding.tests:
        return [*lines, ""]
    names = list(dict.fromkeys(name for test in finding.tests for name in test.baselines))
    head = ["measure", "value", *names, "claimed", "margin", "margin, held out", "verdict"]
    head += ["margin by groups", "groups", "by groups"] if finding.grouped else []
    lines += ["", _row(head), "|---" * len(head) + "|"]
    for test in finding.tests:
        baselines = [_number(test.baselines.get(name, math.nan)) for name in names]
        cells = [
            test.measure, _with_error(test.value), *baselines, test.threshold,
            _with_interval(test.margin.difference, *test.margin.interval(LEVEL)),
            _number(test.heldout), test.verdict,
        ]  # fmt: skip
        if test.grouped:
            margin = test.grouped.margin
            cells += [
                _with_interval(margin.estimate, margin.low, margin.high),
                jackknife.votes(margin), test.grouped.verdict,
            ]  # fmt: skip
        lines.append(_row(cells))
    return [*lines, ""]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _with_error(value: Contrast) -> str:
    error = f" ± {value.standard_error:.3f}" if is_known(value) else ""
    return f"{_number(value.difference) or 'not defined'}{error}"


def _with_interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "not defined"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


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
        outcome = {name: getattr(finding, name) for name in ("verdict", "lacking", "grouped")}
        return {**claim, **outcome, "tests": [_test_as_dict(test) for test in finding.tests]}

    content = {"about": about, "findings": [as_dict(finding) for finding in findings]}
    return json.dumps(_without_nan(content), indent=2) + "\n"


def _test_as_dict(test: ClaimTestResult) -> dict[str, Any]:
    intervals = {
        name: dataclasses.asdict(value)
        | dict(zip(("low", "high"), value.interval(LEVEL), strict=True))
        | {"p": value.p}
        for name, value in (("value", test.value), ("margin", test.margin))
    }
    return dataclasses.asdict(test) | intervals


def _without_nan(value: Any) -> Any:
    """The value with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain() -> str:
    """The text of `--help_findings`: the rule, the statistics, every claim."""
    lines = [str(verdicts.__doc__).strip(), "", str(claim_definitions.__doc__).strip(), ""]
    lines += [str(concept_claim.__doc__).strip(), ""]
    for claim in (*CLAIMS, concept_claim.CLAIM):
        lines += [f"{claim.name} ({claim.source})", f"    {claim.text}", f"    {claim.statistic}"]
        lines += [f"    needs {claim.needs}", ""]
    lines += [str(jackknife.__doc__).strip()]
    return "\n".join(lines)
