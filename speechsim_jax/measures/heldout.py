"""What held-out scores share: a pair fitted on one fold, and the moments of the other."""

import functools

import numpy as np
from jaxtyping import Float

from speechsim_jax.measures.base import RepresentationPair
from speechsim_jax.statistics.derived import DerivesOnce
from speechsim_jax.statistics.linalg import Matrix, Vector
from speechsim_jax.statistics.moments_finished import RepresentationMoments


class HeldOutPair(DerivesOnce):
    """Representations x and y in two folds.

    Means and covariances of the second fold are those of neurons that were z-scored by the first,
    without the neurons that are dead there.

    Args:
      fit: the pair in the fold that is fitted.
      evaluate: the pair in the other fold.
      mirrored: the pair (y, x), if it is scored, too.
    """

    def __init__(
        self,
        fit: RepresentationPair,
        evaluate: RepresentationPair,
        mirrored: "HeldOutPair | None" = None,
    ):
        super().__init__()
        self.fit, self.evaluate, self.mirrored = fit, evaluate, mirrored

    @property
    def swapped(self) -> "HeldOutPair":
        """The pair (y, x)."""
        return HeldOutPair(self.fit.swapped, self.evaluate.swapped, self)

    @functools.cached_property
    def cross(self) -> Matrix:
        """Covariance of x with y."""
        return self._scaled(self.evaluate.scatter, self.fit.x, self.fit.y)

    @functools.cached_property
    def own_x(self) -> Float[np.ndarray, "x x"]:
        """Covariance of x."""
        x = self.evaluate.x
        return self._scaled(self.evaluate.moments.scatter(x, x), self.fit.x, self.fit.x)

    @functools.cached_property
    def own_y(self) -> Float[np.ndarray, "y y"]:
        """Covariance of y."""
        y = self.evaluate.y
        return self._scaled(self.evaluate.moments.scatter(y, y), self.fit.y, self.fit.y)

    @property
    def offset_x(self) -> Vector:
        """Mean of x."""
        return _offset(self.fit.x, self.evaluate.x)

    @property
    def offset_y(self) -> Float[np.ndarray, " y"]:
        """Mean of y."""
        return _offset(self.fit.y, self.evaluate.y)

    def _scaled(
        self, scatter: np.ndarray, x: RepresentationMoments, y: RepresentationMoments
    ) -> np.ndarray:
        scale = np.outer(x.std[x.live], y.std[y.live]) * self.evaluate.rows
        return scatter[np.ix_(x.live, y.live)] / scale


def _offset(fit: RepresentationMoments, evaluate: RepresentationMoments) -> np.ndarray:
    return (evaluate.mean - fit.mean)[fit.live] / fit.std[fit.live]


def correlations_of(
    pair: HeldOutPair, a: Float[np.ndarray, "x k"], b: Float[np.ndarray, "y k"]
) -> Float[np.ndarray, " k"]:
    """Correlation of each pair of directions a'x and b'y on the other fold; 0 for a constant one.

    Args:
      pair: the folds.
      a: weights of x's live neurons, z-scored by the fitted fold.
      b: those of y.
    """
    covariance = np.einsum("xk,xk->k", a, pair.cross @ b)
    variances = [np.einsum("xk,xk->k", w, own @ w) for w, own in ((a, pair.own_x), (b, pair.own_y))]
    scale = np.sqrt(np.maximum(variances[0], 0) * np.maximum(variances[1], 0))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
