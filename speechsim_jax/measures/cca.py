"""Canonical correlations between subspaces: SVCCA and PWCCA."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from speechsim_jax.measures.base import Details, Measure, RepresentationPair
from speechsim_jax.measures.regression import on_directions
from speechsim_jax.statistics.linalg import Whitening, singular_values, svd
from speechsim_jax.statistics.moments_finished import RepresentationMoments

# Share of the variance below which directions are kept.
SVCCA_SHARE = 0.99


Cut = Callable[[Whitening], int]
"""Number of leading directions to keep."""

Axes = Callable[[RepresentationMoments], Whitening]
"""The directions of a representation: `zscored` or `centred`."""


class Canonical(NamedTuple):
    """Canonical correlations rho of the pairs of directions Wx u and Wy v.

    A representation with itself has correlations of exactly 1, and its directions are not unique.

    Attributes:
      x, y: the whitenings of the leading directions.
      left: u.
      rho: descending.
      right: v.
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


def directions_to_reach(white: Whitening, share: float = SVCCA_SHARE) -> int:
    """The fewest directions whose cumulative share of the variance is at least `share`."""
    if not white.rank:
        return 0
    cumulative = np.cumsum(white.values) / white.values.sum()
    return min(int(np.searchsorted(cumulative, share)) + 1, white.rank)


def all_directions(white: Whitening) -> int:
    """Every direction above the rank tolerance."""
    return white.rank


def canonical(pair: RepresentationPair) -> Canonical:
    """The SVD of Wx' R_xy Wy on `svcca`'s directions, computed once for both orders."""
    if canonical not in pair.cache:
        x, y = (white.first(kept_directions(white)) for white in (zscored(pair.x), zscored(pair.y)))
        if pair.same:
            left, rho, right = np.eye(x.rank), np.ones(x.rank), np.eye(x.rank)
        else:
            left, rho, right = svd(x.matrix.T @ on_directions(pair)[:, : y.rank])
        pair.cache[canonical] = Canonical(x, y, left, rho, right.T)
        pair.swapped.cache[canonical] = pair.cache[canonical].swapped
    return pair.cache[canonical]


def zscored(representation: RepresentationMoments) -> Whitening:
    """Directions of the correlation matrix: every neuron weighs the same."""
    return representation.whitening


def centred(representation: RepresentationMoments) -> Whitening:
    """Directions of the covariance matrix: neurons weigh by their variance."""
    return representation.centred_whitening


def correlations(
    pair: RepresentationPair, cut: Cut, axes: Axes = zscored
) -> Float[np.ndarray, " k"]:
    """The canonical correlations without the directions, which takes half an SVD.

    Args:
      pair: the representations.
      cut: number of leading directions.
      axes: the directions.
    """
    if (cut, axes) not in pair.cache:
        x, y = (white.first(cut(white)) for white in (axes(pair.x), axes(pair.y)))
        if pair.same:
            rho = np.ones(x.rank)
        else:
            product = x.matrix.T @ pair.live_correlation @ y.matrix
            rho = singular_values(product)
        pair.cache[cut, axes] = rho
    return pair.cache[cut, axes]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def svcca(pair: RepresentationPair) -> float:
    """Mean canonical correlation between the leading subspaces of z-scored x and y.

    Each subspace keeps the directions whose cumulative variance is strictly below 99 % (at least
    one). In [0, 1], symmetric. NaN if a representation has no variance. Source: Raghu et al. 2017
    (arXiv 1706.05806); the cut is that of Wu et al. 2020.
    """
    return _mean(canonical(pair).rho)


def svcca_ge(pair: RepresentationPair) -> float:
    """SVCCA of z-scored neurons, keeping directions until 99 % of the variance is reached.

    The cut of most other libraries, one direction more than `svcca`'s. In [0, 1], symmetric.
    Source: Raghu et al. 2017 (arXiv 1706.05806).
    """
    return _mean(correlations(pair, directions_to_reach))


def svcca_centred(pair: RepresentationPair) -> float:
    """SVCCA of centred neurons that are not z-scored, with `svcca`'s cut.

    Directions and cut are those of the covariance, so neurons of high variance decide which are
    kept: one that holds 99 % of it leaves no room for the others. That is why `svcca` z-scores, as
    Wu et al. 2020 do. In [0, 1], symmetric. Source: Raghu et al. 2017 (arXiv 1706.05806), section
    2.
    """
    return _mean(correlations(pair, kept_directions, centred))


def svcca_centred_ge(pair: RepresentationPair) -> float:
    """SVCCA of centred neurons, keeping directions until 99 % of the variance is reached.

    What most other libraries compute. In [0, 1], symmetric. Source: Raghu et al. 2017 (arXiv
    1706.05806), section 2.
    """
    return _mean(correlations(pair, directions_to_reach, centred))


def mean_cca(pair: RepresentationPair) -> float:
    """Mean canonical correlation of all directions above the rank tolerance.

    In [0, 1], symmetric; invariant to any invertible linear map. With few frames it is high for
    anything. Source: Hotelling 1936.
    """
    return _mean(correlations(pair, all_directions))


def mean_cca2(pair: RepresentationPair) -> float:
    """Mean squared canonical correlation (R^2_CCA). In [0, 1], symmetric.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), table 1.
    """
    return _mean(np.square(correlations(pair, all_directions)))


def canonical_correlations(pair: RepresentationPair) -> Details:
    """The canonical correlations, descending, and their mean square for unrelated rows.

    With independent rows that mean is max(kx, ky) / (n - 1) for kx and ky kept directions. Frames
    are correlated in time, so the floor of unrelated speech is higher.
    """
    parts = canonical(pair)
    floor = max(parts.x.rank, parts.y.rank) / (pair.rows - 1)
    return {
        "svcca_rho": ("k", parts.rho.astype(np.float32)),
        "svcca_rho2_floor": (None, np.array(floor)),
    }


def pwcca(pair: RepresentationPair) -> float:
    """SVCCA's correlations, weighted by how much of x their directions account for.

    sum a s / sum a with a_i = sum_j |<h_i, x_j>|, h = Xz Wx u the canonical variates and x_j the
    neurons on their raw scale: a = row sums of |(Wx u)' R_xx diag(std_x)|. In [0, 1], asymmetric;
    1 for a representation with itself by definition (its variates are not unique). Source: Morcos
    et al. 2018 (arXiv 1806.05759), equation 2, on the subspaces and scale of Wu et al. 2020.
    """
    return _projection_weighted(pair, pair.x.std[pair.x.live])


def pwcca_zscored(pair: RepresentationPair) -> float:
    """PWCCA whose weights read z-scored neurons, so that large neurons do not set them.

    a = row sums of |(Wx u)' R_xx|. In [0, 1], asymmetric; 1 for a representation with itself.
    Source: Morcos et al. 2018 (arXiv 1806.05759), equation 2, on z-scored data.
    """
    return _projection_weighted(pair, np.ones(int(pair.x.live.sum())))


def _projection_weighted(pair: RepresentationPair, scale: np.ndarray) -> float:
    """sum a s / sum a, a = row sums of |(Wx u)' R_xx diag(scale)|."""
    if pair.same:
        return 1.0 if pair.x.whitening.rank else float("nan")
    parts = canonical(pair)
    if not parts.rho.size:
        return float("nan")
    loadings = (parts.x.vectors * np.sqrt(parts.x.values)).T * scale
    weights = np.abs(parts.left.T @ loadings).sum(axis=1)
    return float(weights @ parts.rho / weights.sum())


_layer = functools.partial(Measure, level="layer", limits=(0.0, 1.0), inflated_by_few_rows=True)

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
    _layer(
        name="pwcca_zscored",
        summary="PWCCA with weights from z-scored neurons",
        function=pwcca_zscored,
        symmetric=False,
        reference="Morcos et al. 2018 (arXiv 1806.05759), equation 2",
    ),
    _layer(
        name="svcca_ge",
        summary="mean canonical correlation of the directions that reach 99 % of the variance",
        function=svcca_ge,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806)",
    ),
    _layer(
        name="svcca_centred",
        summary="svcca of neurons that are centred, not z-scored",
        function=svcca_centred,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806), section 2; cut of Wu et al. 2020",
    ),
    _layer(
        name="svcca_centred_ge",
        summary="svcca_ge of neurons that are centred, not z-scored",
        function=svcca_centred_ge,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806), section 2",
    ),
    _layer(
        name="mean_cca",
        summary="mean canonical correlation of all directions",
        function=mean_cca,
        symmetric=True,
        reference="Hotelling 1936",
    ),
    _layer(
        name="mean_cca2",
        summary="mean squared canonical correlation of all directions",
        function=mean_cca2,
        symmetric=True,
        reference="Kornblith et al. 2019 (arXiv 1905.00414), table 1",
    ),
)
