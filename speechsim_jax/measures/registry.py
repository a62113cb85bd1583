"""The registry of measures, and the selection that a comparison computes."""

from collections.abc import Sequence
from typing import NamedTuple

from speechsim_jax.errors import UserError, did_you_mean
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
from speechsim_jax.measures.base import Measure, Ranking, statistics_read
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.exemplars import Exemplars
from speechsim_jax.statistics.folded_moments import FoldedMoments, UtteranceFolds
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.null_moments import NullMoments

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for family in (neuron, regression, cka, cca, shape, kernel, neighbours, attention)
    for measure in family.MEASURES
}
RANKINGS: dict[str, Ranking] = {ranking.name: ranking for ranking in neuron.RANKINGS}

PAPER = ("maxcorr", "mincorr", "linreg", "lincka", "svcca", "pwcca", *attention.PAPER)
"""The measures of El Kheir et al. 2024, for `measures="paper"`."""


class MeasureSelection(NamedTuple):
    """The measures and rankings that a comparison computes.

    Attributes:
      measures: in the order of the result.
      rankings: of neurons.
      errors: whether they have standard errors, where these are known.
      heldout: whether they have held-out scores, where these are defined.
      null: whether they have scores of rows that do not belong together; of measures on moments.
      labels: whether there are label tracks, and what is known of them.
      speaker_labels: whether classes of some are in one fold only, as speakers are.
      exemplars: whether the frames that excite each neuron most are kept, too.
    """

    measures: tuple[Measure, ...]
    rankings: tuple[Ranking, ...] = ()
    errors: bool = False
    heldout: bool = False
    null: bool = False
    labels: bool = False
    speaker_labels: bool = False
    exemplars: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """The kinds of statistics that they read."""
        return statistics_read(self.measures)

    @property
    def accumulated(self) -> tuple[str, ...]:
        """The kinds of statistics that are accumulated for them."""
        kinds = list(self.statistics)
        if self.labels and MomentsState.kind not in kinds:
            kinds.insert(0, MomentsState.kind)
        if self.heldout and (self.with_heldout or self.labels):
            # From which the moments of all rows come, too.
            kinds[kinds.index(MomentsState.kind)] = FoldedMoments.kind
        if self.heldout and self.speaker_labels:
            kinds.append(UtteranceFolds.kind)
        if self.errors and (self.with_influence or self.labels):
            kinds.append(ClusteredSample.kind)
        if self.null and self.on(MomentsState.kind):
            kinds.append(NullMoments.kind)
        if self.exemplars:
            kinds.append(Exemplars.kind)
        return tuple(kinds)

    @property
    def whitens(self) -> bool:
        """Whether something reads whitened representations."""
        return self.labels or any(m.whitens for m in self.measures)

    @property
    def of_norms(self) -> bool:
        """Whether nothing is read but norms of moments."""
        further = self.errors or self.heldout or self.null or self.labels or self.rankings
        return not further and all(m.of_norms for m in self.measures)

    @property
    def with_heldout(self) -> tuple[Measure, ...]:
        """The measures that held-out scores are defined of."""
        return tuple(m for m in self.measures if m.heldout)

    @property
    def with_errors(self) -> tuple[Measure, ...]:
        """The measures that standard errors are known of."""
        return tuple(m for m in self.measures if m.grouped or m.influence is not None)

    @property
    def with_influence(self) -> tuple[Measure, ...]:
        """Those on moments, whose standard errors are of rows that are kept for them."""
        return tuple(m for m in self.on(MomentsState.kind) if m.influence is not None)

    @property
    def attention(self) -> "MeasureSelection":
        """Those on attention maps alone."""
        return MeasureSelection(self.on("attention"))

    @property
    def without_attention(self) -> "MeasureSelection":
        """All but those on attention maps."""
        others = tuple(m for m in self.measures if m.statistic != "attention")
        return self._replace(measures=others)

    def on(self, statistic: str) -> tuple[Measure, ...]:
        """The measures that read this statistic."""
        return tuple(m for m in self.measures if m.statistic == statistic)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of measures and rankings, each once."""
        return tuple(dict.fromkeys(m.name for m in (*self.measures, *self.rankings)))


def register(measure: Measure) -> Measure:
    """Add a measure of your own, of any statistic, to every comparison that follows.

    Args:
      measure: the record of one function (docs/extending.md has an example). It belongs to "all"
        from now on; its name becomes a variable of the result and a part of file names.

    Returns:
      The measure.

    Raises:
      UserError: a name that is not a plain word of letters, digits and _, or is taken; no
        reference.
    """
    if not measure.name.isidentifier():
        raise UserError(
            f"measure {measure.name!r}: expected a name of letters, digits and underscores"
        )
    if measure.name in MEASURES | RANKINGS or measure.name in ("paper", "all"):
        raise UserError(f"there is a measure {measure.name!r} already; choose another name")
    if not measure.reference.strip():
        raise UserError(f"measure {measure.name!r} has no reference; state where it comes from")
    MEASURES[measure.name] = measure
    return measure


def list_measures() -> tuple[Measure | Ranking, ...]:
    """Every registered measure, and the rankings of neurons that have no map of their own.

    >>> [measure.name for measure in ss.list_measures() if measure.level == "mixed"]
    ['linreg', 'linreg_r2', 'linreg_r2_global']
    """
    rankings = (r for name, r in RANKINGS.items() if name not in MEASURES)
    return (*MEASURES.values(), *rankings)


def resolve(names: str | Sequence[str], levels: Sequence[str] | None = None) -> MeasureSelection:
    """The measures of these names.

    Args:
      names: "paper", "all", or names (a list, or separated by commas). A ranking brings the measure
        that it reads.
      levels: keep those of "neuron", "mixed", "layer" or "attention". Attention is costly, so
        "paper" and "all" include it only if `levels` names it.

    Raises:
      UserError: an unknown name or level, with those there are; nothing is left.
    """
    known = {entry.name: entry for entry in list_measures()}
    every_level = sorted({entry.level for entry in known.values()})
    for level in levels or ():
        if level not in every_level:
            close = did_you_mean(level, every_level)
            raise UserError(f"unknown level {level!r}{close}; known: {', '.join(every_level)}")
    if isinstance(names, str):
        groups = {"paper": list(PAPER), "all": list(known)}
        chosen = groups.get(names, names.split(","))
        if names in groups and "attention" not in (levels or ()):
            chosen = [name for name in chosen if known[name].level != "attention"]
    else:
        chosen = list(names)
    if unknown := [name for name in chosen if name not in known]:
        close = did_you_mean(unknown[0], [*known, "paper", "all"])
        raise UserError(
            f"unknown measure {unknown[0]!r}{close}; known: paper, all, or any of "
            f"{', '.join(known)}"
        )
    chosen = [name for name in chosen if levels is None or known[name].level in levels]
    if not chosen:
        raise UserError(f"no measure of level {', '.join(levels or ())} among those asked for")
    rankings = tuple(RANKINGS[name] for name in dict.fromkeys(chosen) if name in RANKINGS)
    for ranking in reversed(rankings):
        measure, _ = ranking.reads
        if measure not in chosen:
            chosen = [measure, *chosen]
    unique = tuple(dict.fromkeys(chosen))
    return MeasureSelection(tuple(MEASURES[n] for n in unique if n in MEASURES), rankings)
