"""The claims of the paper against results: values, intervals, baselines, verdicts, as tables."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from speechsim_jax.analyses.replication import claims as statistics
from speechsim_jax.analyses.replication import jackknife as verdicts
from speechsim_jax.analyses.replication.claims import (
    ATTENTION,
    CLAIMS,
    Claim,
    Roles,
    Statistic,
    Test,
)
from speechsim_jax.analyses.replication.jackknife import Estimate, Verdict, jackknife
from speechsim_jax.analyses.replication.margins import Scores
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import SimilarityResult

_MARKS = {
    Verdict.HOLDS: "yes",
    Verdict.FAILS: "no",
    Verdict.UNDECIDED: "?",
    Verdict.UNTESTED: "-",
}


@dataclasses.dataclass(frozen=True)
class Tested:
    """One measure's test of a claim. `baselines`: on all the audio, with `published` among them."""

    measure: str
    threshold: str
    value: Estimate
    margin: Estimate
    baselines: Mapping[str, float]
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of a claim; without tests, `lacking` says why."""

    claim: Claim
    tests: tuple[Tested, ...]
    verdict: Verdict
    lacking: str = ""


def find(
    wholes: Sequence[SimilarityResult],
    without: Sequence[Sequence[SimilarityResult]],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None = None,
    claims: Sequence[Claim] = CLAIMS,
) -> list[Finding]:
    """Test the claims by results on all audio, and on all of it but one group of utterances.

    `wholes`: one or several results that together have the models of `roles`. `without`: for each
    group the results without it, in the same order. `published`: results to read the
    same statistics from, and who is who there. Raises UserError for fewer than two groups and for
    groups that do not add up to the whole.
    """
    weights = {
        heads: group_weights(wholes[0], [results[0] for results in without], heads)
        for heads in (False, "attention" in wholes[0].attributes)
    }
    scores, left = Scores(wholes), [Scores(results) for results in without]
    return [_finding(claim, scores, left, weights, roles, published) for claim in claims]


def group_weights(
    whole: SimilarityResult, without: Sequence[SimilarityResult], heads: bool = False
) -> Float[np.ndarray, " group"]:
    """The share of each group in the rows (`heads`: in the frames that attention was compared on).

    Raises UserError if they do not add up.
    """
    if len(without) < 2:
        raise UserError(f"{len(without)} groups of utterances; at least 2 are needed, better 8")
    rows = _rows(whole, heads)
    taken = np.array([rows - _rows(result, heads) for result in without], np.float64)
    if taken.sum() != rows or (taken <= 0).any():
        raise UserError(
            f"the groups have {[int(n) for n in taken]} rows of {rows}; they must be disjoint, and "
            "together the whole"
        )
    return taken / rows


def _rows(result: SimilarityResult, heads: bool) -> int:
    if heads:
        return result.attributes["attention"]["frames"]
    return result.attributes.get("rows", result.attributes["frames"])


def _finding(
    claim: Claim,
    scores: Scores,
    left: Sequence[Scores],
    weights: Mapping[bool, Float[np.ndarray, " group"]],
    roles: Roles,
    published: tuple[Sequence[SimilarityResult], Roles] | None,
) -> Finding:
    tests = claim.tests(roles)
    if not tests:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {claim.needs}")
    try:
        tested = [_tested(test, scores, left, weights) for test in tests]
    except LookupError as lacking:
        return Finding(claim, (), Verdict.UNTESTED, f"needs {lacking.args[0]}")
    if published is not None:
        told = _published_values(claim, *published)
        tested = [
            dataclasses.replace(one, baselines={**one.baselines, "published": told[one.measure]})
            if one.measure in told
            else one
            for one in tested
        ]
    return Finding(claim, tuple(tested), verdicts.together([one.verdict for one in tested]))


def _tested(
    test: Test,
    scores: Scores,
    left: Sequence[Scores],
    weights: Mapping[bool, Float[np.ndarray, " group"]],
) -> Tested:
    def estimate(statistic: Statistic) -> Estimate:
        whole, without = statistic(scores), [statistic(one) for one in left]
        return jackknife(whole, without, weights[test.measure in ATTENTION])

    value, margin = estimate(test.value), estimate(test.margin)
    baselines = {name: statistic(scores) for name, statistic in test.baselines.items()}
    return Tested(test.measure, test.threshold, value, margin, baselines, verdicts.verdict(margin))


def _published_values(
    claim: Claim, results: Sequence[SimilarityResult], roles: Roles
) -> dict[str, float]:
    """What the same statistics are on published maps, where these have all that they need."""
    scores, found = Scores(results), {}
    for test in claim.tests(roles):
        try:
            found[test.measure] = test.value(scores)
        except LookupError:
            continue
    return {measure: value for measure, value in found.items() if not math.isnan(value)}


# --- what people read ---


def table(findings: Sequence[Finding], width: int = 100) -> str:
    """The findings for a terminal: a claim and its verdict, below it a line for each measure."""
    lines = []
    for finding in findings:
        verdict = finding.verdict.upper() + (f" ({finding.lacking})" if finding.lacking else "")
        lines += textwrap.wrap(f"{finding.claim.text}", width - 2)
        lines.append(f"  => {verdict}")
        lines += [f"     {line}" for line in map(_line, finding.tests)]
        lines.append("")
    return "\n".join([*lines, tally(findings)])


def tally(findings: Sequence[Finding]) -> str:
    """How many claims there are of each verdict, and which."""
    parts = []
    for kind in Verdict:
        names = [finding.claim.name for finding in findings if finding.verdict == kind]
        if names:
            parts.append(f"{len(names)} {kind}: {', '.join(names)}")
    return "\n".join(parts)


def _line(tested: Tested) -> str:
    others = ", ".join(f"{name} {_number(v)}" for name, v in tested.baselines.items())
    return (
        f"{tested.measure:17} {_with_interval(tested.value):24} {tested.threshold:26} "
        f"{_MARKS[tested.verdict]:4} {verdicts.votes(tested.margin)} groups; {others}"
    )


def markdown(findings: Sequence[Finding], about: Sequence[str], figures: Sequence[str] = ()) -> str:
    """The findings as a page; `about`: how they were made. `figures`: paths to show."""
    groups = next((len(t.margin.groups) for f in findings for t in f.tests), 0)
    lines = ["# Findings", "", *(f"- {line}" for line in about), ""]
    lines += ["| claim | where | verdict |", "|---|---|---|"]
    for finding in findings:
        name = f"{finding.claim.text}"
        lines.append(f"| {name} | {finding.claim.source} | **{finding.verdict}** |")
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
    names = list(dict.fromkeys(name for one in finding.tests for name in one.baselines))
    head = ["measure", "value", "all audio", *names, "claimed", "margin", "groups", "verdict"]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in finding.tests:
        baselines = [_number(one.baselines.get(name, math.nan)) for name in names]
        cells = [
            one.measure, _with_interval(one.value), _number(one.value.whole), *baselines,
            one.threshold, _with_interval(one.margin), verdicts.votes(one.margin), one.verdict,
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
    """Everything, every group's value included, and how it was made."""

    def told(finding: Finding) -> dict[str, Any]:
        claim = {
            name: getattr(finding.claim, name) for name in ("name", "text", "source", "statistic")
        }
        tests = [dataclasses.asdict(one) for one in finding.tests]
        return {**claim, "verdict": finding.verdict, "lacking": finding.lacking, "tests": tests}

    whole = {"about": about, "findings": [told(finding) for finding in findings]}
    return json.dumps(_finite(whole), indent=2) + "\n"


def _finite(value: Any) -> Any:
    """NaN as null, which JSON has a word for."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain(claims: Sequence[Claim] = CLAIMS) -> str:
    """The page of `--help_findings`: the rule, the statistics, every claim."""
    lines = [str(verdicts.__doc__).strip(), "", str(statistics.__doc__).strip(), ""]
    for claim in claims:
        lines += [f"{claim.name} ({claim.source})", f"    {claim.text}", f"    {claim.statistic}"]
        lines += [f"    needs {claim.needs}", ""]
    return "\n".join(lines)
