"""Partial moments: what given representations, z, explain of others, and what they leave.

    S_ab = S_az S_zz^+ S_zb + S_ab|z

With a label track as z these are the parts between and within its classes. The pseudo-inverse
keeps the directions of z's correlations above the rank tolerance, as all whitening does. With W
that whitening of the z-scored z, S_az S_zz^+ S_zb = L_a L_b', where L_a = S_az D^-1 W / sqrt(n),
D = diag(std(z)).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.linalg import Matrix, Whitening, map_in_threads, whiten
from speechsim_jax.statistics.moments_finished import (
    Energies,
    FinishedMoments,
    RepresentationMoments,
)


class _GivenMoments(FinishedMoments):
    """Finished moments of a part of all representations but given ones.

    Neurons of which the part is nothing, up to the rank tolerance, count as dead.

    Args:
      whole: the moments.
      given: numbers of the given representations, z.

    Raises:
      UserError: nothing is given, or nothing is left.
    """

    def __init__(self, whole: FinishedMoments, given: Sequence[int]):
        self.states, self.rows, self.dtype = whole.states, whole.rows, whole.dtype
        self.rank_tolerance = whole.rank_tolerance
        self._whole = whole
        self._given = tuple(whole.representations[k] for k in given)
        left = [r for r in whole.representations if r not in self._given]
        if not self._given or not left:
            raise UserError("given: expected some of the representations, and not all")
        self._scale = np.concatenate([z.std[z.live] for z in self._given])
        self._white = self._whitened()
        self._loadings = {
            x.index: loadings for x, loadings in zip(left, map_in_threads(self._loading, left))
        }
        self.representations = tuple(map_in_threads(self._part, left))

    @property
    def rank(self) -> int:
        """Directions of z."""
        return self._white.rank

    def _whitened(self) -> Whitening:
        """The whitening of all of z together."""
        correlation = np.block(
            [[self._live_scatter(a, b) / self.rows for b in self._given] for a in self._given]
        ) / np.outer(self._scale, self._scale)
        return whiten(correlation, self.rank_tolerance)

    def _live_scatter(self, a: RepresentationMoments, b: RepresentationMoments) -> Matrix:
        return self._whole.scatter(a, b)[np.ix_(a.live, b.live)]

    def _loading(self, x: RepresentationMoments) -> Float[np.ndarray, "x rank"]:
        """Covariances of x with the directions of z, times sqrt(n)."""
        on_z = np.concatenate([self._whole.scatter(x, z)[:, z.live] for z in self._given], axis=1)
        return on_z / self._scale @ self._white.matrix / np.sqrt(self.rows)

    def _part(self, x: RepresentationMoments) -> RepresentationMoments:
        """The moments of the part of x."""
        scatter = self.scatter(x, x)
        variance = np.diagonal(scatter) / self.rows
        dead = variance <= self.rank_tolerance * np.square(x.std)
        std = np.where(dead, 0.0, np.sqrt(np.maximum(variance, 0)))
        return RepresentationMoments(
            index=x.index,
            mean=x.mean,
            std=std,
            live=std > 0,
            scatter_norm=float(np.linalg.norm(scatter)),
            rows=self.rows,
            rank_tolerance=self.rank_tolerance,
            scatter=lambda: scatter,  # not self: a cycle would keep the statistics
        )

    def _explained(self, x: RepresentationMoments, y: RepresentationMoments) -> Matrix:
        """S_xz S_zz^+ S_zy."""
        return self._loadings[x.index] @ self._loadings[y.index].T

    def energies(self, x: RepresentationMoments, y: RepresentationMoments) -> Energies:
        """Not known of parts.

        Raises:
          UserError: always.
        """
        raise UserError("lincka_debiased has no partial form; leave it out, or nothing is given")

    def has(self, x: RepresentationMoments, y: RepresentationMoments) -> bool:
        """Whether there are cross moments of a pair."""
        return self._whole.has(x, y)

    def _fits(
        self, rows: Sequence[Float[np.ndarray, "row _neuron"]]
    ) -> Iterator[tuple[Float[np.ndarray, "row _neuron"], Float[np.ndarray, "row _neuron"]]]:
        """Rows of each representation that is left, and what z explains of them, centred."""
        numbers = {r.index: k for k, r in enumerate(self._whole.representations)}
        z = np.concatenate(
            [(rows[numbers[r.index]] - r.mean)[:, r.live] for r in self._given], axis=1
        )
        directions = z / self._scale @ self._white.matrix
        for x in self.representations:
            fit = directions @ self._loadings[x.index].T / np.sqrt(self.rows)
            yield rows[numbers[x.index]], fit


class PartialMoments(_GivenMoments):
    """Finished moments of the residuals of all representations on given ones, which leave.

        S_xy|z = S_xy - S_xz S_zz^+ S_zy

    Means are those of the rows; residuals are centred.
    """

    @property
    def degrees(self) -> int:
        """Rows less the directions that were fitted to them."""
        return self._whole.degrees - self.rank

    def scatter(self, x: RepresentationMoments, y: RepresentationMoments) -> Matrix:
        """S_xy|z."""
        return self._whole.scatter(x, y) - self._explained(x, y)

    def residuals(
        self, rows: Sequence[Float[np.ndarray, "row _neuron"]]
    ) -> list[Float[np.ndarray, "row _neuron"]]:
        """Rows of the representations that are left, less what z explains of them.

        Args:
          rows: of all representations, z among them.
        """
        return [(of_x - fit).astype(of_x.dtype) for of_x, fit in self._fits(rows)]


class ExplainedMoments(_GivenMoments):
    """Finished moments of what given representations explain of all others; they leave.

        S_xz S_zz^+ S_zy

    With speakers as z this is the part between speakers, of the means of each. All parts lie in
    the directions of z, so measures that whiten are 1 as soon as both representations fill these.

    Raises:
      UserError: as `PartialMoments`; z is constant.
    """

    def __init__(self, whole: FinishedMoments, given: Sequence[int]):
        super().__init__(whole, given)
        if not self.rank:
            raise UserError("given: it is constant, and explains nothing; give another")

    @property
    def degrees(self) -> int:
        """The directions that explained rows can vary in."""
        return self.rank

    def scatter(self, x: RepresentationMoments, y: RepresentationMoments) -> Matrix:
        """S_xz S_zz^+ S_zy."""
        return self._explained(x, y)

    def explained(
        self, rows: Sequence[Float[np.ndarray, "row _neuron"]]
    ) -> list[Float[np.ndarray, "row _neuron"]]:
        """What z explains of the rows of the representations that are left, about their means.

        Args:
          rows: of all representations, z among them.
        """
        return [fit.astype(of_x.dtype) for of_x, fit in self._fits(rows)]
