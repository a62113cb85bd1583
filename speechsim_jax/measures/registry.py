"""The registry: the families' records together, and which of them a comparison is to compute."""

from collections.abc import Sequence
from typing import NamedTuple

from speechsim_jax.errors import UserError
from speechsim_jax.measures import (
    attention,
    cca,
    cka,
    kernel,
    neighbours,
    neuron,
    regression,
    shape,
)
from speechsim_jax.measures.attention import AttentionMeasure
from speechsim_jax.measures.base import Measure, Ranking

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for family in (neuron, regression, cka, cca, shape, kernel, neighbours)
    for measure in family.MEASURES
}
RANKINGS: dict[str, Ranking] = {ranking.name: ranking for ranking in neuron.RANKINGS}

ATTENTION: dict[str, AttentionMeasure] = {m.name: m for m in attention.MEASURES}

PAPER = ("maxcorr", "mincorr", "linreg", "lincka", "svcca", "pwcca")
"""The measures of El Kheir et al. 2024 on neurons and layers, for `measures="paper"`."""


class MeasureSelection(NamedTuple):
    """What a comparison is to compute, by the statistics it needs."""

    measures: tuple[Measure, ...]
    rankings: tuple[Ranking, ...]
    attention: tuple[AttentionMeasure, ...]


def register(measure: Measure) -> Measure:
    """Make a measure of your own known to every comparison that follows, by its name.

    `measure`: the record of one function (docs/extending.md has an example); it is returned, and
    belongs to "all" from now on. Its name becomes a variable of the result and a part of file
    names.

    Raises:
        UserError: a name that is no plain word of letters, digits and _, or is taken; no reference.
    """
    if not measure.name.isidentifier():
        raise UserError(
            f"measure {measure.name!r}: expected a name of letters, digits and underscores"
        )
    if measure.name in MEASURES | RANKINGS | ATTENTION or measure.name in ("paper", "all"):
        raise UserError(f"there is a measure {measure.name!r} already; choose another name")
    if not measure.reference.strip():
        raise UserError(f"measure {measure.name!r} has no reference; say where it comes from")
    MEASURES[measure.name] = measure
    return measure


def list_measures() -> tuple[Measure | Ranking | AttentionMeasure, ...]:
    """Every registered measure, and the rankings of neurons that have no map of their own.

    >>> [measure.name for measure in ss.list_measures() if measure.level == "mixed"]
    ['linreg', 'linreg_r2', 'linreg_r2_global']
    """
    rankings = (r for name, r in RANKINGS.items() if name not in MEASURES)
    return (*MEASURES.values(), *rankings, *ATTENTION.values())


def resolve(wanted: str | Sequence[str], levels: Sequence[str] | None = None) -> MeasureSelection:
    """The measures asked for: "paper", "all", or names.

    `levels` keeps those of "neuron", "mixed", "layer" or "attention". Attention is costly, so
    "paper" and "all" have it only if `levels` names it. A ranking needs the best correlations, so
    it brings `maxcorr` with it. Raises UserError that lists the names for one that is unknown.
    """
    known = {entry.name: entry for entry in list_measures()}
    every_level = sorted({entry.level for entry in known.values()})
    for level in levels or ():
        if level not in every_level:
            raise UserError(f"unknown level {level!r}; known: {', '.join(every_level)}")
    if isinstance(wanted, str):
        heads = "attention" in (levels or ())
        groups = {
            "paper": PAPER + attention.PAPER * heads,
            "all": tuple(name for name in known if heads or name not in ATTENTION),
        }
        names = groups.get(wanted, tuple(wanted.split(",")))
    else:
        names = tuple(wanted)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"unknown measure {unknown[0]!r}; known: paper, all, or any of {', '.join(known)}"
        )
    names = [name for name in names if levels is None or known[name].level in levels]
    if not names:
        raise UserError(f"no measure of level {', '.join(levels or ())} among those asked for")
    rankings = tuple(RANKINGS[name] for name in dict.fromkeys(names) if name in RANKINGS)
    if rankings and "maxcorr" not in names:
        names = ["maxcorr", *names]
    unique = tuple(dict.fromkeys(names))
    return MeasureSelection(
        tuple(MEASURES[name] for name in unique if name in MEASURES),
        rankings,
        tuple(ATTENTION[name] for name in unique if name in ATTENTION),
    )
