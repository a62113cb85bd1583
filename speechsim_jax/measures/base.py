"""The record of a measure, and the pairs of representations that its function reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_rows import Influence, RepresentationRows
from speechsim_jax.statistics.attention_finished import FinishedAttention, MapMeans
from speechsim_jax.statistics.derived import DerivesOnce
from speechsim_jax.statistics.grams import FinishedGrams
from speechsim_jax.statistics.linalg import Matrix, Vector
from speechsim_jax.statistics.moments_finished import (
    FinishedMoments,
    RepresentationMoments,
)
from speechsim_jax.statistics.sample import SampledRepresentation

Level = Literal["neuron", "mixed", "layer", "attention"]

Details = Mapping[str, tuple[str | tuple[str, ...] | None, np.ndarray]]
"""Named arrays next to a score: name -> (dimensions after x and y, values)."""

T = TypeVar("T")


class _PairMatrices:
    """Matrices of x and y, each computed at its first use."""

    def __init__(
        self, moments: FinishedMoments, x: RepresentationMoments, y: RepresentationMoments
    ):
        self.moments, self.x, self.y = moments, x, y

    @functools.cached_property
    def scatter(self) -> Matrix:
        return self.moments.scatter(self.x, self.y)

    @functools.cached_property
    def correlation(self) -> Matrix:
        return self.moments.correlate(self.scatter, self.x, self.y)

    @functools.cached_property
    def live_correlation(self) -> Matrix:
        if self.x.live.all() and self.y.live.all():
            return self.correlation
        return self.correlation[np.ix_(self.x.live, self.y.live)]


class RepresentationPair(DerivesOnce):
    """Representations x and y of finished moments; what several measures read is derived once.

    Args:
      moments: the finished moments.
      x, y: the two representations.
      matrices: of the pair (x, y) or, to be transposed, of (y, x); by default new ones.

    Attributes:
      moments, x, y: as given.
    """

    def __init__(
        self,
        moments: FinishedMoments,
        x: RepresentationMoments,
        y: RepresentationMoments,
        matrices: _PairMatrices | None = None,
    ):
        super().__init__()
        self.moments, self.x, self.y = moments, x, y
        self._matrices = _PairMatrices(moments, x, y) if matrices is None else matrices

    @property
    def rows(self) -> int:
        """Frames, or pooled frames."""
        return self.moments.rows

    @property
    def degrees(self) -> int:
        """Rows less the number of directions that were fitted to them, the mean among these."""
        return self.moments.degrees

    @property
    def same(self) -> bool:
        """Whether x and y are one representation."""
        return self.x is self.y

    @functools.cached_property
    def swapped(self) -> "RepresentationPair":
        """The pair (y, x), sharing the matrices."""
        # It does not refer to this pair: a cycle would keep the matrices of every scored pair, and
        # the statistics on the devices, until the next garbage collection.
        return RepresentationPair(self.moments, self.y, self.x, self._matrices)

    @property
    def scatter(self) -> Matrix:
        """S_xy = Xc'Yc."""
        return self._oriented(self._matrices.scatter)

    @property
    def correlation(self) -> Matrix:
        """R_xy, 0 for dead neurons."""
        return self._oriented(self._matrices.correlation)

    @property
    def live_correlation(self) -> Matrix:
        """R_xy of the live neurons of both."""
        return self._oriented(self._matrices.live_correlation)

    @functools.cached_property
    def squared_norm(self) -> float:
        """||S_xy||_F^2."""
        return float(np.sum(np.square(self.scatter)))

    @functools.cached_property
    def unbiased_squared_norm(self) -> float:
        """An unbiased estimate of ||C_xy||_F^2, C = S / n."""
        return self.moments.unbiased_squared_norm(self.x, self.y)

    def _oriented(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self._matrices.x is self.x else matrix.T


class PairRows(DerivesOnce):
    """Sampled rows of x and y, which an influence is computed for.

    Args:
      x, y: the rows.
    """

    def __init__(self, x: RepresentationRows, y: RepresentationRows):
        super().__init__()
        self.x, self.y = x, y

    @property
    def parts(self) -> "list[PairRows]":
        """The same rows, a few at a time."""
        return [PairRows(x, y) for x, y in zip(self.x.parts, self.y.parts, strict=True)]


@dataclasses.dataclass(frozen=True)
class Pair(Generic[T]):
    """Representations x and y of a finished statistic with one value for each.

    Attributes:
      x, y: the values.
    """

    x: T
    y: T

    @property
    def same(self) -> bool:
        """Whether x and y are one representation."""
        return self.x is self.y

    @property
    def swapped(self) -> "Pair[T]":
        """The pair (y, x)."""
        return type(self)(self.y, self.x)


@dataclasses.dataclass(frozen=True)
class GramPair(Pair[RepresentationMoments]):
    """Representations x and y of which norms of moments are known, as of a `RepresentationPair`.

    Attributes:
      moments: the norms.
    """

    moments: FinishedGrams

    @property
    def swapped(self) -> "GramPair":
        """The pair (y, x)."""
        return GramPair(self.y, self.x, self.moments)

    @property
    def rows(self) -> int:
        """Rows of the representations."""
        return self.moments.rows

    @property
    def degrees(self) -> int:
        """Rows less the mean that was fitted to them."""
        return self.moments.degrees

    @property
    def squared_norm(self) -> float:
        """||S_xy||_F^2."""
        return self.moments.squared_norm(self.x, self.y)

    @property
    def unbiased_squared_norm(self) -> float:
        """An unbiased estimate of ||C_xy||_F^2, C = S / n."""
        return self.moments.unbiased_squared_norm(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class SamplePair(Pair[SampledRepresentation]):
    """Representations x and y on one sample of rows; each caches what derives from it alone."""

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return len(self.x.utterance)


@dataclasses.dataclass(frozen=True)
class AttentionPair:
    """The heads of two layers.

    Attributes:
      attention: the finished statistic.
      i, j: numbers of the layers among all whose attention is compared.
    """

    attention: FinishedAttention
    i: int
    j: int

    @property
    def same(self) -> bool:
        """Whether x and y are one layer."""
        return self.i == self.j

    @property
    def swapped(self) -> "AttentionPair":
        """The pair (y, x)."""
        return AttentionPair(self.attention, self.j, self.i)

    @property
    def means(self) -> MapMeans:
        """Means over the maps of the heads of x and y, [head_x, head_y]."""
        return self.attention.means.at(self.attention.heads[self.i], self.attention.heads[self.j])

    @property
    def baselines(self) -> MapMeans:
        """Means over the maps of the heads of x and their baselines, [baseline, head_x]."""
        return self.attention.baselines.at(slice(None), self.attention.heads[self.i])

    @property
    def moments(self) -> RepresentationPair:
        """Heads as neurons, all cells of all maps as rows."""
        moments = self.attention.moments
        x, y = moments.representations[self.i], moments.representations[self.j]
        return RepresentationPair(moments, x, y)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One similarity (or distance) of a pair of representations.

    Everything that depends on the kind of measure is a field; no code reads its name.

    Attributes:
      name: of the result's variable.
      level: what is matched: "neuron", "mixed", "layer" or "attention".
      summary: one line for users.
      function: the score of (x, y), how well y accounts for x where it is asymmetric. It reads a
        `RepresentationPair` if the statistic is "moments", a `SamplePair` if "sample", an
        `AttentionPair` if "attention", a `Pair` of its values for a registered statistic.
      symmetric: whether the score of (y, x) is that of (x, y); it is then computed once.
      limits: least and greatest score.
      reference: author and year, equation.
      statistic: kind of the statistic that it reads.
      needs: the sum of the attention statistic that it reads, if any.
      details: named arrays next to the score, by dimension ("neuron" of x, "k" for canonical
        correlations, "head_x", None for a number).
      facts: named arrays of x alone, from the pair (x, x).
      higher_is_closer: False for a distance.
      inflated_by_few_rows: whether it comes out high for any two representations where rows are
        not many times the neurons.
      by_variance: whether a neuron counts by its variance, so that a few large ones may decide it.
      partial: of measures on moments, whether there is a score of residuals on given
        representations.
      influence: of rows on the score of (x, y), x and y different, for its standard error. Of
        measures on moments, of the rows of a `ClusteredSample`, a few at a time: what does not
        depend on rows is computed `once` of the pair. On the sample, of all its rows.
      grouped: whether the standard error is over at most 20 groups of clusters: of measures on
        attention by leaving out each, on the sample by an influence that is one for all rows of a
        group.
      of_norms: of measures on moments, whether its function and details read norms of these only,
        so that a `GramPair` will do.
      whitens: whether it reads whitened representations.
      heldout: scores of (x, y) fitted on one fold and evaluated on another, by the name of their
        variable, each from a `heldout.HeldOutPair`; of measures on moments.
    """

    name: str
    level: Level
    summary: str
    function: Callable[[Any], float]
    symmetric: bool
    limits: tuple[float, float]
    reference: str
    statistic: str = "moments"
    needs: str | None = None
    details: Callable[[Any], Details] | None = None
    facts: Callable[[Any], Details] | None = None
    higher_is_closer: bool = True
    inflated_by_few_rows: bool = False
    by_variance: bool = False
    partial: bool = True
    influence: Callable[..., Influence] | None = None
    grouped: bool = False
    of_norms: bool = False
    whitens: bool = False
    heldout: Mapping[str, Callable[[Any], float]] = dataclasses.field(default_factory=dict)

    @property
    def bounded_by_one(self) -> bool:
        """Whether 1 is the score of what is the same: (s - null) / (1 - null) is then a score."""
        return self.higher_is_closer and self.limits[1] == 1

    def definition(self) -> dict[str, Any]:
        """The part of the record that is stored with a result."""
        return {
            "symmetric": self.symmetric,
            "range": self.limits,
            "level": self.level,
            "statistic": self.statistic,
            "summary": self.summary,
            "reference": self.reference,
            "higher_is_closer": self.higher_is_closer,
            "inflated_by_few_rows": self.inflated_by_few_rows,
            "by_variance": self.by_variance,
            "bounded_by_one": self.bounded_by_one,
        }


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A score for every neuron of every representation, from its best correlations elsewhere.

    Attributes:
      name: of the ranking.
      level: "neuron".
      summary: one line for users.
      function: best correlation of each neuron in each other model [neuron, model] -> score.
      reference: author and year, equation.
      reads: the measure whose details it reads, and the name of these.
    """

    name: str
    level: Level
    summary: str
    function: Callable[[Float[np.ndarray, "neuron model"]], Vector]
    reference: str
    reads: tuple[str, str] = ("maxcorr", "best_corr")


def divide(numerator: float, denominator: float) -> float:
    """The ratio; NaN, without a warning, where the denominator is not positive."""
    return numerator / denominator if denominator > 0 else float("nan")


def statistics_read(measures: Sequence[Measure]) -> tuple[str, ...]:
    """The statistics that these measures read, moments first.

    Moments are always among them but for attention alone: the facts of representations (rank,
    dead neurons, ...) that a reader needs next to any score come from them.
    """
    kinds = dict.fromkeys(measure.statistic for measure in measures)
    first = ["moments"] if set(kinds) - {"attention"} else []
    return tuple(dict.fromkeys([*first, *kinds]))
