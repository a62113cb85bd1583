"""Partial moments: what is left of representations when given ones, z, are regressed out.

    S_ab|z = S_ab - S_az S_zz^+ S_zb

The pseudo-inverse keeps the directions of z's correlations above the rank tolerance, as all
whitening does. With W that whitening of the z-scored z, S_az S_zz^+ S_zb = L_a L_b', where
L_a = S_az D^-1 W / sqrt(n), D = diag(std(z)).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.linalg import Matrix, Whitening, map_in_threads, whiten
from speechsim_jax.statistics.moments_finished import (
    Energies,
    FinishedMoments,
    RepresentationMoments,
)


class PartialMoments(FinishedMoments):
    """Finished moments of the residuals of all representations on given ones, which leave.

    Means are those of the rows; residuals are centred. Directions that z explains up to the rank
    tolerance count as dead.

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
        self.representations = tuple(map_in_threads(self._residual, left))

    @property
    def rank(self) -> int:
        """Directions of z."""
        return self._white.rank

    @property
    def degrees(self) -> int:
        """Rows less the directions that were fitted to them."""
        return self._whole.degrees - self.rank

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

    def _residual(self, x: RepresentationMoments) -> RepresentationMoments:
        """The moments of the residuals of x."""
        scatter = self.scatter(x, x)
        variance = np.diagonal(scatter) / self.rows
        dead = variance <= self.rank_tolerance * np.square(x.std)
        std = np.where(dead, 0.0, np.sqrt(np.maximum(variance, 0)))
        return RepresentationMoments.of(
            x.index, x.mean, std, scatter, self.rows, self.rank_tolerance
        )

    def scatter(self, x: RepresentationMoments, y: RepresentationMoments) -> Matrix:
        """S_xy|z."""
        return self._whole.scatter(x, y) - self._loadings[x.index] @ self._loadings[y.index].T

    def energies(self, x: RepresentationMoments, y: RepresentationMoments) -> Energies:
        """Not known of residuals.

        Raises:
          UserError: always.
        """
        raise UserError("lincka_debiased has no partial form; leave it out, or nothing is given")

    def residuals(
        self, rows: Sequence[Float[np.ndarray, "row _neuron"]]
    ) -> list[Float[np.ndarray, "row _neuron"]]:
        """Rows of the representations that are left, less what z explains of them.

        Args:
          rows: of all representations, z among them.
        """
        numbers = {r.index: k for k, r in enumerate(self._whole.representations)}
        z = np.concatenate(
            [(rows[numbers[r.index]] - r.mean)[:, r.live] for r in self._given], axis=1
        )
        directions = z / self._scale @ self._white.matrix
        return [
            (
                rows[numbers[x.index]] - directions @ self._loadings[x.index].T / np.sqrt(self.rows)
            ).astype(rows[numbers[x.index]].dtype)
            for x in self.representations
        ]
