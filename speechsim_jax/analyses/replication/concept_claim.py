"""The claim about concepts: two objectives encode as much, but not in the same neurons.

Written down before any run. The labels are one track, the first that is not the speaker. Each layer
of a contrastive model stands with the layer of a predictive one of the same size at the nearest
relative depth, and the other way round; of these cells the mean is taken, over all such pairs.

- *readability*: the smaller over the larger of the two layers' readability, each the mean over the
  classes. Above 0.9 the two are about equally good: the margin is the value less 0.9. Held out, the
  same of held-out readability;
- *concept_kappa*: Cohen's kappa of the classes that neurons and their best matches in the other
  layer encode. Above 0.6 it would be substantial agreement (Landis & Koch 1977, Biometrics 33), so
  the margin is 0.6 less the value. There is no held-out kappa.

The standard error of a mean of cells is the mean of their standard errors, which is an upper bound:
how cells move together is not known. That of a ratio R = a / b is R (SE_a / a + SE_b / b), a bound
for the same reason, with SE_a the mean over the classes whose standard error is known, if these are
at least half of all. Where the standard error of a cell is not known, the test cannot decide.
Degrees of freedom are those of the sampled clusters, and fewer as the standard errors are known to
some per cent only, in the mean (`effective_degrees`). Verdicts follow the rule of all claims.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from speechsim_jax.analyses.replication import verdicts
from speechsim_jax.analyses.replication.claims import Claim, ModelPair, Roles
from speechsim_jax.analyses.replication.outcomes import ClaimTestResult, Finding
from speechsim_jax.analyses.replication.verdicts import Verdict
from speechsim_jax.audio.label_sources import SPEAKER
from speechsim_jax.inference.contrast import Contrast
from speechsim_jax.inference.standard_errors import effective_degrees
from speechsim_jax.results.concepts import of_classes
from speechsim_jax.results.depth import nearest_depth
from speechsim_jax.results.result import SimilarityResult

EQUALLY_READABLE = 0.9
"""Ratio of readabilities from which on two layers encode labels about equally well."""

SUBSTANTIAL = 0.6
"""Kappa from which on agreement is substantial."""

CLAIM = Claim(
    "concepts",
    "Models of two objectives encode the labels about equally well in all of their neurons, but "
    "their best-matched neurons do not encode the same ones.",
    "abstract",
    "at the same depth, the smaller over the larger readability, above 0.9, and kappa of the "
    "classes of best-matched neurons, below 0.6",
    "a contrastive and a predictive model, and labels other than the speaker",
)


class _Cell(NamedTuple):
    """A layer, the layer of the other model that it stands with, and the result that has both."""

    result: SimilarityResult
    x: str
    y: str


class _Known(NamedTuple):
    """A number of one layer or cell, its standard error, and the relative error of that."""

    value: float
    error: float
    relative: float


def evaluate(results: Sequence[SimilarityResult], roles: Roles) -> Finding:
    """Test the claim.

    Args:
        results: Results that together have the models of `roles`, with a label track.
        roles: Roles of the models.

    Returns:
        Its finding; not tested without a pair of models or labels.
    """
    labels = [
        str(track)
        for result in results
        if "track" in result.dataset
        for track in result.dataset["track"].values
        if str(track) != SPEAKER
    ]
    cells = _cells(results, roles.crossed)
    if not labels or not cells:
        return Finding(CLAIM, (), Verdict.UNTESTED, f"needs {CLAIM.needs}")
    track, others = labels[0], _cells(results, roles.seeds)
    text = CLAIM.text.replace("the labels", f"the labels ({track})", 1)
    tests = [_readability(cells, others, track), _kappa(cells, others, track)]
    return Finding.of(dataclasses.replace(CLAIM, text=text), tests)


def _cells(results: Sequence[SimilarityResult], pairs: Sequence[ModelPair]) -> list[_Cell]:
    """Layers at the same relative depth, both ways, of the pairs that a result with labels has."""
    cells = []
    for x, y in pairs:
        for result in results:
            if "track" in result.dataset and {x, y} <= set(result.models):
                cells += [*_same_depth(result, x, y), *_same_depth(result, y, x)]
                break
    return cells


def _same_depth(result: SimilarityResult, x: str, y: str) -> Iterator[_Cell]:
    of_x, of_y = (
        [name for name in result.representations if name.model == model] for model in (x, y)
    )
    depths = (result.relative_depths(names) for names in (of_x, of_y))
    for name, match in zip(of_x, nearest_depth(*depths)):
        yield _Cell(result, str(name), str(of_y[match]))


def _readability(cells: Sequence[_Cell], others: Sequence[_Cell], track: str) -> ClaimTestResult:
    ratios = [_ratio(cell, track) for cell in cells]
    heldout = [_ratio(cell, track, "_heldout").value for cell in cells]
    baselines = {"mean": _mean([_read(cell.result, cell.x, track).value for cell in cells])}
    if others:
        baselines["other seed"] = _mean([_ratio(cell, track).value for cell in others])
    value = _contrast(ratios, cells)
    margin = dataclasses.replace(value, difference=value.difference - EQUALLY_READABLE)
    return _outcome(
        "readability", f"> {EQUALLY_READABLE}", value, margin,
        _mean(heldout) - EQUALLY_READABLE, baselines,
    )  # fmt: skip


def _kappa(cells: Sequence[_Cell], others: Sequence[_Cell], track: str) -> ClaimTestResult:
    def mean(name: str, of: Sequence[_Cell]) -> float:
        return _mean([_agreement(cell, track, name).value for cell in of])

    baselines = {
        "agreement": mean("concept_agreement", cells),
        "chance": mean("concept_agreement_chance", cells),
    }
    name = "concept_agreement_kappa"
    if others:
        baselines["other seed"] = mean(name, others)
    value = _contrast([_agreement(cell, track, name) for cell in cells], cells)
    margin = dataclasses.replace(value, difference=SUBSTANTIAL - value.difference)
    return _outcome("concept_kappa", f"< {SUBSTANTIAL}", value, margin, math.nan, baselines)


def _outcome(
    name: str,
    threshold: str,
    value: Contrast,
    margin: Contrast,
    heldout: float,
    baselines: dict[str, float],
) -> ClaimTestResult:
    known = verdicts.is_known(margin)
    decided = verdicts.verdict(margin, heldout) if known else Verdict.UNTESTED
    return ClaimTestResult(name, threshold, value, margin, heldout, baselines, decided)


def _ratio(cell: _Cell, track: str, ending: str = "") -> _Known:
    """The smaller over the larger readability of two layers."""
    a, b = sorted(_read(cell.result, layer, track, ending) for layer in (cell.x, cell.y))
    if not a.value > 0:
        return _Known(math.nan, math.nan, math.nan)
    ratio = a.value / b.value
    error = ratio * (a.error / a.value + b.error / b.value)
    return _Known(ratio, error, (a.relative + b.relative) / 2)


def _read(result: SimilarityResult, layer: str, track: str, ending: str = "") -> _Known:
    """The mean readability of the classes of a label in a layer."""
    name = f"readability{ending}"
    values = of_classes(result, name, track).sel(x=layer).values if name in result.dataset else []
    values = np.asarray(values, np.float64)
    errors, relative = (
        of_classes(result, further, track).sel(x=layer).values
        if further in result.dataset
        else np.full(len(values), np.nan)
        for further in (f"{name}_se", f"{name}_se_error")
    )
    values = values[np.isfinite(values)]
    known = np.isfinite(errors)
    if 2 * known.sum() < max(len(values), 1):
        return _Known(_mean(values), math.nan, math.nan)
    return _Known(_mean(values), _mean(errors[known]), _mean(relative[known]))


def _agreement(cell: _Cell, track: str, name: str) -> _Known:
    numbers = (
        float(cell.result.dataset[f"{name}{ending}"].sel(x=cell.x, y=cell.y, track=track))
        if f"{name}{ending}" in cell.result.dataset
        else math.nan
        for ending in ("", "_se", "_se_error")
    )
    return _Known(*numbers)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean; NaN of none."""
    return float(np.mean(values)) if len(values) else math.nan


def _contrast(known: Sequence[_Known], cells: Sequence[_Cell]) -> Contrast:
    """The mean over cells, with the mean of their standard errors."""
    value, error, relative = (_mean(numbers) for numbers in zip(*known))
    sampled = min(cell.result.attributes.get("errors", {}).get("sampled", 0) for cell in cells)
    return Contrast(value, error, float(effective_degrees(sampled - 1, relative)))
