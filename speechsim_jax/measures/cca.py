"""Canonical correlations between subspaces: SVCCA and PWCCA."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from speechsim_jax.measures.base import Measure, Pair
from speechsim_jax.statistics.finished import Whitening

# Share of the variance of z-scored neurons below which directions are kept.
SVCCA_SHARE = 0.99


class Canonical(NamedTuple):
    """Correlations rho (falling) of the pairs of canonical directions Wx u and Wy v.

    `x`, `y`: the whitenings, cut to the kept directions; u is `left`, v is `right`.
    """

    x: Whitening
    y: Whitening
    left: Float[np.ndarray, "rank_x k"]
    rho: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "rank_y k"]

    @property
    def swapped(self) -> "Canonical":
        """The same with x and y exchanged."""
        return Canonical(self.y, self.x, self.right, self.rho, self.left)


def kept_directions(white: Whitening, share: float = SVCCA_SHARE) -> int:
    """Directions whose cumulative share of the variance is strictly below `share`, at least one.

    The eigenvalues of a correlation matrix are the squared singular values of z-scored neurons.
    """
    if not white.rank:
        return 0
    cumulative = np.cumsum(white.values) / white.values.sum()
    return max(1, int(np.sum(cumulative < share)))


def canonical(pair: Pair) -> Canonical:
    """The SVD of Wx' R_xy Wy on the directions that SVCCA keeps; made once for both directions."""
    made = pair.__dict__
    if "canonical" not in made:
        whole = pair.x.whitening, pair.y.whitening
        x, y = (white.first(kept_directions(white)) for white in whole)
        product = x.matrix.T @ pair.live_correlation @ y.matrix
        left, rho, right = scipy.linalg.svd(product, full_matrices=False, check_finite=False)
        made["canonical"] = Canonical(x, y, left, rho, right.T)
        pair.swapped.__dict__["canonical"] = made["canonical"].swapped
    return made["canonical"]


def svcca(pair: Pair) -> float:
    """Mean canonical correlation between the leading subspaces of z-scored x and y.

    Each subspace keeps the directions whose cumulative variance is strictly below 99 % (at least
    one). In [0, 1], symmetric. NaN if a network has no variance. Source: Raghu et al. 2017
    (arXiv 1706.05806); the cut is that of Wu et al. 2020.
    """
    rho = canonical(pair).rho
    return float(rho.mean()) if rho.size else float("nan")


def canonical_correlations(pair: Pair) -> Mapping[str, tuple[str, np.ndarray]]:
    """The canonical correlations themselves, falling."""
    return {"svcca_rho": ("k", canonical(pair).rho.astype(np.float32))}


def pwcca(pair: Pair) -> float:
    """SVCCA's correlations, weighted by how much of x their directions account for.

    sum a s / sum a with a_i = sum_j |<h_i, x_j>|, h = Xz Wx u the canonical variates and x_j the
    neurons on their raw scale: a = row sums of |(Wx u)' R_xx diag(std_x)|. In [0, 1], asymmetric;
    1 for a network with itself by definition (its variates are not unique). Source: Morcos et al.
    2018 (arXiv 1806.05759), equation 2, on the subspaces and scale of Wu et al. 2020.
    """
    if pair.same:
        return 1.0 if pair.x.whitening.rank else float("nan")
    parts = canonical(pair)
    if not parts.rho.size:
        return float("nan")
    std = pair.x.std[pair.x.live]
    loadings = (parts.x.vectors * np.sqrt(parts.x.values)).T * std
    weights = np.abs(parts.left.T @ loadings).sum(axis=1)
    return float(weights @ parts.rho / weights.sum())


_layer = functools.partial(Measure, level="layer", limits=(0.0, 1.0))

MEASURES = (
    _layer(
        name="svcca",
        summary="mean canonical correlation of the directions below 99 % of the variance",
        function=svcca,
        details=canonical_correlations,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806); cut of Wu et al. 2020",
    ),
    _layer(
        name="pwcca",
        summary="the same correlations, weighted by how much of x they account for",
        function=pwcca,
        symmetric=False,
        reference="Morcos et al. 2018 (arXiv 1806.05759), equation 2; scale of Wu et al. 2020",
    ),
)
