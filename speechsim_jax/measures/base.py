"""A measure is a record with one function; a pair is what the function reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from speechsim_jax.statistics.finished import Energies, FinishedMoments, Matrix, Vector, Whitening

Level = Literal["neuron", "mixed", "layer"]


class Pair:
    """Networks x and y of finished moments. Pieces that several measures read are made once."""

    def __init__(self, moments: FinishedMoments, i: int, j: int):
        self.moments, self.i, self.j = moments, i, j

    @property
    def rows(self) -> int:
        """Frames."""
        return self.moments.rows

    @property
    def same(self) -> bool:
        """Whether x and y are one network."""
        return self.i == self.j

    @property
    def white_x(self) -> Whitening:
        """Whitening of x."""
        return self.moments.whitening(self.i)

    @property
    def white_y(self) -> Whitening:
        """Whitening of y."""
        return self.moments.whitening(self.j)

    @functools.cached_property
    def swapped(self) -> "Pair":
        """The pair (y, x), sharing what both directions need."""
        other = Pair(self.moments, self.j, self.i)
        other.__dict__["swapped"] = self
        return other

    @functools.cached_property
    def scatter(self) -> Matrix:
        """S_xy = Xc'Yc."""
        if "swapped" in self.__dict__ and "scatter" in self.swapped.__dict__:
            return self.swapped.scatter.T
        return self.moments.scatter(self.i, self.j)

    @functools.cached_property
    def correlation(self) -> Matrix:
        """R_xy, 0 for dead neurons."""
        if "swapped" in self.__dict__ and "correlation" in self.swapped.__dict__:
            return self.swapped.correlation.T
        return self.moments.correlate(self.scatter, self.i, self.j)

    @functools.cached_property
    def live_correlation(self) -> Matrix:
        """R_xy of the live neurons of both."""
        live_x, live_y = self.moments.live(self.i), self.moments.live(self.j)
        if live_x.all() and live_y.all():
            return self.correlation
        return self.correlation[np.ix_(live_x, live_y)]

    @functools.cached_property
    def energies(self) -> Energies:
        """Sums of squared norms."""
        return self.moments.energies(self.i, self.j)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One similarity (or distance) of a pair of networks.

    `function` gives the score of (x, y): how well y accounts for x where it is asymmetric.
    `details` gives named vectors beside the score, each with its dimension ("neuron" of x, or
    "k" for canonical correlations).
    """

    name: str
    level: Level
    summary: str
    function: Callable[[Pair], float]
    symmetric: bool
    limits: tuple[float, float]
    reference: str
    details: Callable[[Pair], Mapping[str, tuple[str, np.ndarray]]] | None = None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A score for every neuron of every network, made of its best correlations elsewhere.

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
