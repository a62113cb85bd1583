"""A measure is a record with one function; a pair is what the function reads."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from speechsim_jax.statistics.linalg import Matrix, Vector
from speechsim_jax.statistics.moments_finished import (
    Energies,
    FinishedMoments,
    RepresentationMoments,
)
from speechsim_jax.statistics.sample import SampledRepresentation

Level = Literal["neuron", "mixed", "layer"]
Statistic = Literal["moments", "sample"]


class RepresentationPair:
    """Representations x and y of finished moments. Pieces that several measures read are made once."""

    def __init__(
        self, moments: FinishedMoments, x: RepresentationMoments, y: RepresentationMoments
    ):
        self.moments, self.x, self.y = moments, x, y
        self.made: dict[Hashable, Any] = {}

    @property
    def rows(self) -> int:
        """Frames."""
        return self.moments.rows

    @property
    def same(self) -> bool:
        """Whether x and y are one representation."""
        return self.x is self.y

    @functools.cached_property
    def swapped(self) -> "RepresentationPair":
        """The pair (y, x), sharing what both directions need."""
        other = RepresentationPair(self.moments, self.y, self.x)
        for name in ("scatter", "correlation", "live_correlation"):
            other.__dict__[name] = getattr(self, name).T
        return other

    @functools.cached_property
    def scatter(self) -> Matrix:
        """S_xy = Xc'Yc."""
        return self.moments.scatter(self.x, self.y)

    @functools.cached_property
    def correlation(self) -> Matrix:
        """R_xy, 0 for dead neurons."""
        return self.moments.correlate(self.scatter, self.x, self.y)

    @functools.cached_property
    def live_correlation(self) -> Matrix:
        """R_xy of the live neurons of both."""
        if self.x.live.all() and self.y.live.all():
            return self.correlation
        return self.correlation[np.ix_(self.x.live, self.y.live)]

    @functools.cached_property
    def energies(self) -> Energies:
        """Sums of squared norms."""
        return self.moments.energies(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class SamplePair:
    """Representations x and y on one sample of rows. What is of one representation is kept there (`once`)."""

    x: SampledRepresentation
    y: SampledRepresentation

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return len(self.x.utterance)

    @property
    def same(self) -> bool:
        """Whether x and y are one representation."""
        return self.x is self.y

    @property
    def swapped(self) -> "SamplePair":
        """The pair (y, x)."""
        return SamplePair(self.y, self.x)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One similarity (or distance) of a pair of representations.

    `name` is that of the result's variable; a name that ends in `_distance` falls with likeness.
    `summary` and `reference` (author and year, equation) are what users are told, `limits` the
    least and the greatest score. `symmetric`: the score of (y, x) is that of (x, y) and is not
    worked out again. `function` gives the score of (x, y), how well y accounts for x where it is
    asymmetric; it reads a `RepresentationPair` if the `statistic` is "moments" (all rows), a `SamplePair` if it
    is "sample". `details` gives named arrays beside the score, each with its dimension ("neuron" of
    x, "k" for canonical correlations, None for a single number).
    """

    name: str
    level: Level
    summary: str
    function: Callable[[Any], float]
    symmetric: bool
    limits: tuple[float, float]
    reference: str
    details: Callable[[Any], Mapping[str, tuple[str | None, np.ndarray]]] | None = None
    statistic: Statistic = "moments"


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A score for every neuron of every representation, made of its best correlations elsewhere.

    `function` takes the best correlation of each neuron in each other model [neuron, model].
    """

    name: str
    level: Level
    summary: str
    function: Callable[[Float[np.ndarray, "neuron model"]], Vector]
    reference: str


def divide(numerator: float, denominator: float) -> float:
    """The ratio; NaN, without a warning, where the denominator is not positive."""
    return numerator / denominator if denominator > 0 else float("nan")
