"""The similarity measures, one family a file; the registry is the families' records together."""

from collections.abc import Sequence

from speechsim_jax.errors import UserError
from speechsim_jax.measures import cca, cka, neuron, regression, shape
from speechsim_jax.measures.base import Measure, Pair, Ranking

__all__ = [
    "MEASURES",
    "PAPER",
    "RANKINGS",
    "Measure",
    "Pair",
    "Ranking",
    "list_measures",
    "resolve",
]

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for family in (neuron, regression, cka, cca, shape)
    for measure in family.MEASURES
}
RANKINGS: dict[str, Ranking] = {ranking.name: ranking for ranking in neuron.RANKINGS}

PAPER = ("maxcorr", "mincorr", "linreg", "lincka", "svcca", "pwcca")
"""The measures of El Kheir et al. 2024 on neurons and layers, for `measures="paper"`."""


def list_measures() -> tuple[Measure | Ranking, ...]:
    """Every registered measure, and the rankings of neurons that have no map of their own."""
    return (*MEASURES.values(), *(r for name, r in RANKINGS.items() if name not in MEASURES))


def resolve(
    wanted: str | Sequence[str], levels: Sequence[str] | None = None
) -> tuple[tuple[Measure, ...], tuple[Ranking, ...]]:
    """The measures and neuron rankings asked for: "paper", "all", or names.

    `levels` keeps those of "neuron", "mixed" or "layer". A ranking needs the best correlations, so
    it brings `maxcorr` with it. Raises UserError that lists the names for one that is unknown.
    """
    known = {entry.name: entry for entry in list_measures()}
    if isinstance(wanted, str):
        groups = {"paper": PAPER, "all": tuple(known)}
        names = groups.get(wanted, tuple(wanted.split(",")))
    else:
        names = tuple(wanted)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"unknown measure {unknown[0]!r}; known: paper, all, or any of {', '.join(known)}"
        )
    every_level = sorted({entry.level for entry in known.values()})
    for level in levels or ():
        if level not in every_level:
            raise UserError(f"unknown level {level!r}; known: {', '.join(every_level)}")
    names = [name for name in names if levels is None or known[name].level in levels]
    if not names:
        raise UserError(f"no measure of level {', '.join(levels or ())} among those asked for")
    rankings = tuple(RANKINGS[name] for name in dict.fromkeys(names) if name in RANKINGS)
    if rankings and "maxcorr" not in names:
        names = ["maxcorr", *names]
    measures = tuple(MEASURES[name] for name in dict.fromkeys(names) if name in MEASURES)
    return measures, rankings
