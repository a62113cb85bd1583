"""Canonical correlations between subspaces: SVCCA and PWCCA."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_rows import (
    Influence,
    RepresentationRows,
    forms,
    sums_of_products,
    weighted_squares,
)
from speechsim_jax.measures.base import Details, Measure, PairRows, RepresentationPair
from speechsim_jax.measures.heldout import HeldOutPair, correlations_of
from speechsim_jax.measures.regression import on_directions
from speechsim_jax.statistics.linalg import (
    Matrix,
    Vector,
    Whitening,
    singular_values_by_eigenvalues,
    svd_by_eigenvectors,
)
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


def zscored(representation: RepresentationMoments) -> Whitening:
    """Directions of the correlation matrix: every neuron weighs the same."""
    return representation.whitening


def centred(representation: RepresentationMoments) -> Whitening:
    """Directions of the covariance matrix: neurons weigh by their variance."""
    return representation.centred_whitening


def canonical(
    pair: RepresentationPair, cut: Cut = kept_directions, axes: Axes = zscored
) -> Canonical:
    """The SVD of Wx' R_xy Wy on leading directions, by default svcca's; once for both orders.

    Args:
      pair: the representations.
      cut: number of leading directions.
      axes: the directions.
    """
    return pair.once(_canonical, cut, axes)


def _canonical(pair: RepresentationPair, cut: Cut, axes: Axes) -> Canonical:
    x, y = (white.first(cut(white)) for white in (axes(pair.x), axes(pair.y)))
    if pair.same:
        left, rho, right = np.eye(x.rank), np.ones(x.rank), np.eye(x.rank)
    else:
        onto = on_directions(pair) if axes is zscored else pair.once(_on_axes, axes)
        left, rho, right = svd_by_eigenvectors(x.matrix.T @ onto[:, : y.rank])
    found = Canonical(x, y, left, rho, right.T)
    pair.swapped.tell(found.swapped, _canonical, cut, axes)
    return found


def _on_axes(pair: RepresentationPair, axes: Axes) -> Matrix:
    """R_xy W, W all directions of y."""
    return pair.live_correlation @ axes(pair.y).matrix


def correlations(
    pair: RepresentationPair, cut: Cut, axes: Axes = zscored
) -> Float[np.ndarray, " k"]:
    """The canonical correlations without the directions, which takes half an SVD.

    Args:
      pair: the representations.
      cut: number of leading directions.
      axes: the directions.
    """
    return pair.once(_correlations, cut, axes)


def _correlations(pair: RepresentationPair, cut: Cut, axes: Axes) -> Float[np.ndarray, " k"]:
    x, y = (white.first(cut(white)) for white in (axes(pair.x), axes(pair.y)))
    if pair.same:
        return np.ones(x.rank)
    return singular_values_by_eigenvalues(x.matrix.T @ pair.live_correlation @ y.matrix)


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


class _Turning(NamedTuple):
    """How a row moves the sum of the correlations by turning x's subspace.

    By a'M b of its values a on kept directions and b on dropped ones, and by the weighted sum of
    the squares of its z-scored neurons.

    Attributes:
      matrix: M.
      squares: the weights; None in the axes of the covariance.
    """

    matrix: Float[np.ndarray, "kept dropped"]
    squares: Vector | None


class _Variates(NamedTuple):
    """What the influence of rows is made of.

    Attributes:
      left: x's canonical variates, of its leading directions.
      right: y's.
      turning: of x and of y.
    """

    left: Float[np.ndarray, "rank_x k"]
    right: Float[np.ndarray, "rank_y k"]
    turning: tuple[_Turning, _Turning]


def _variates(pair: RepresentationPair, cut: Cut, axes: Axes, dtype: np.dtype) -> _Variates:
    parts = canonical(pair, cut, axes)
    turn = parts.left @ parts.right.T
    turning = (
        _turning(pair, cut, axes, turn, dtype),
        _turning(pair.swapped, cut, axes, turn.T, dtype),
    )
    return _Variates(parts.left.astype(dtype), parts.right.astype(dtype), turning)


def _influence(
    pair: RepresentationPair, rows: PairRows, cut: Cut, axes: Axes = zscored
) -> Influence:
    """Of the mean canonical correlation; 0 for a representation without directions.

    On fixed subspaces, mean over i of u_i v_i - rho_i / 2 (u_i^2 + v_i^2), u and v the canonical
    variates; and what turns the subspaces (`_turning`).
    """
    rho = canonical(pair, cut, axes).rho
    if not rho.size:
        return np.zeros(rows.x.count)
    of_pair = pair.once(_variates, cut, axes, rows.x.dtype)
    u, v = _variates_of(rows, of_pair, axes)
    total = sums_of_products(u, v) - (weighted_squares(u, rho) + weighted_squares(v, rho)) / 2
    for of_one, turning in zip((rows.x, rows.y), of_pair.turning):
        total += _turned(of_one, turning, axes)
    return total / len(rho)


def _variates_of(
    rows: PairRows, of_pair: _Variates, axes: Axes
) -> tuple[Float[np.ndarray, "row k"], Float[np.ndarray, "row k"]]:
    """The canonical variates of every row, each of variance 1."""
    x, y = rows.x.once(_on_directions, axes), rows.y.once(_on_directions, axes)
    return x[:, : len(of_pair.left)] @ of_pair.left, y[:, : len(of_pair.right)] @ of_pair.right


def _on_directions(rows: RepresentationRows, axes: Axes) -> Float[np.ndarray, "row rank"]:
    """The rows in the directions of a whitening."""
    return rows.white if axes is zscored else rows.zscored @ rows.cast(axes(rows.moments).matrix)


def _turned(rows: RepresentationRows, turning: _Turning, axes: Axes) -> Influence:
    """What rows move by turning the subspace."""
    x, kept = rows.once(_on_directions, axes), len(turning.matrix)
    total = forms(x[:, :kept], turning.matrix, x[:, kept:])
    if turning.squares is not None:
        total -= weighted_squares(rows.zscored, turning.squares)
    return total


def _turning(
    pair: RepresentationPair, cut: Cut, axes: Axes, across: Matrix, dtype: np.dtype
) -> _Turning:
    """Influence on the sum of the correlations through x's subspace, which a row turns.

    A row moves the matrix R whose eigenvectors span the subspace by dR, and so a kept direction a
    towards a dropped one b by v_a' dR v_b / (values_a - values_b). That moves the cross correlation
    of kept directions by those of dropped ones with y, M, and the sum of its singular values by
    U V' M'. Where R holds correlations, dR_ij = z_i z_j - R_ij / 2 (z_i^2 + z_j^2); and what the
    row does to the scale of neurons acts on directions that a subspace splits.

    Args:
      pair: of x and y.
      cut: number of leading directions.
      axes: the directions.
      across: U V'.
      dtype: of the rows.
    """
    white, parts = axes(pair.x), canonical(pair, cut, axes)
    kept = parts.x.rank
    on_y = _on_axes(pair, axes)[:, : parts.y.rank]
    kept_values, dropped_values = white.values[:kept, None], white.values[None, kept:]
    dropped = Whitening(white.vectors[:, kept:], white.values[kept:])
    crossed = across @ (dropped.matrix.T @ on_y).T
    with np.errstate(divide="ignore"):
        turn = np.sqrt(dropped_values / kept_values) * crossed / (kept_values - dropped_values)
    turn[~np.isfinite(turn)] = 0  # equal eigenvalues: the cut is arbitrary, and nothing is claimed
    matrix = (turn * np.sqrt(kept_values * dropped_values)).astype(dtype)
    if axes is not zscored:
        return _Turning(matrix, None)
    sums = turn * (kept_values + dropped_values)
    weight = ((white.vectors[:, :kept] @ sums) * dropped.vectors).sum(axis=1)
    # What is multiplied with squares of rows need not be known better than these.
    left, right = parts.left.astype(dtype), parts.right.astype(dtype)
    own = (pair.once(_loadings, cut, axes) * parts.rho).astype(dtype)
    of_variates = parts.x.matrix.astype(dtype) @ left
    weight += np.vecdot(of_variates, on_y.astype(dtype) @ right - own)
    return _Turning(matrix, weight / 2)


def svcca_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """On svcca's subspaces, and of what turns them."""
    return _influence(pair, rows, kept_directions)


def svcca_ge_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `svcca`, with one direction more."""
    return _influence(pair, rows, directions_to_reach)


def svcca_centred_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `svcca`, in the axes of the covariance."""
    return _influence(pair, rows, kept_directions, centred)


def svcca_centred_ge_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `svcca_ge`, in the axes of the covariance."""
    return _influence(pair, rows, directions_to_reach, centred)


def mean_cca_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of u_i v_i - rho_i / 2 (u_i^2 + v_i^2), u and v the canonical variates."""
    return _influence(pair, rows, all_directions)


def mean_cca2_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of 2 rho_i times the influence on rho_i."""
    rho = canonical(pair, all_directions).rho
    if not rho.size:
        return np.zeros(rows.x.count)
    u, v = _variates_of(rows, pair.once(_variates, all_directions, zscored, rows.x.dtype), zscored)
    squares = np.square(rho)
    total = 2 * sums_of_products(u * rows.x.cast(rho), v)
    total -= weighted_squares(u, squares) + weighted_squares(v, squares)
    return total / len(rho)


def _heldout(pair: HeldOutPair, cut: Cut) -> Float[np.ndarray, " k"]:
    """The correlation of each pair of the fitted directions on the other fold."""
    if pair.mirrored is not None:
        return pair.mirrored.once(_heldout, cut)
    parts = canonical(pair.fit, cut)
    return correlations_of(pair, parts.x.matrix @ parts.left, parts.y.matrix @ parts.right)


def svcca_heldout(pair: HeldOutPair) -> float:
    """Mean correlation of the fitted fold's canonical directions on the other."""
    return _mean(pair.once(_heldout, kept_directions))


def mean_cca_heldout(pair: HeldOutPair) -> float:
    """As of `svcca`, with all directions."""
    return _mean(pair.once(_heldout, all_directions))


def pwcca_heldout(pair: HeldOutPair) -> float:
    """As of `svcca`, with the weights of the fitted fold."""
    rho = pair.once(_heldout, kept_directions)
    if not rho.size:
        return float("nan")
    weights = _projection_weights(pair.fit, pair.fit.x.std[pair.fit.x.live])
    return float(weights @ rho / weights.sum())


def canonical_correlations(pair: RepresentationPair) -> Details:
    """The canonical correlations, descending, and their mean square for unrelated rows.

    With independent rows that mean is max(kx, ky) / (n - 1) for kx and ky kept directions. Frames
    are correlated in time, so the floor of unrelated speech is higher.
    """
    parts = canonical(pair)
    floor = max(parts.x.rank, parts.y.rank) / pair.degrees
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
    weights = _projection_weights(pair, scale)
    return float(weights @ parts.rho / weights.sum())


def _projection_weights(pair: RepresentationPair, scale: np.ndarray) -> Float[np.ndarray, " k"]:
    """Row sums of |(Wx u)' R_xx diag(scale)|."""
    return scale @ np.abs(pair.once(_loadings, kept_directions, zscored))


def _loadings(pair: RepresentationPair, cut: Cut, axes: Axes) -> Float[np.ndarray, "live k"]:
    """R_xx Wx u, the correlations of x's neurons with its canonical variates."""
    parts = canonical(pair, cut, axes)
    return parts.x.loadings @ parts.left


_layer = functools.partial(
    Measure, level="layer", limits=(0.0, 1.0), inflated_by_few_rows=True, whitens=True
)

MEASURES = (
    _layer(
        name="svcca",
        summary="mean canonical correlation of the directions below 99 % of the variance",
        function=svcca,
        influence=svcca_influence,
        heldout={"svcca_heldout": svcca_heldout},
        details=canonical_correlations,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806); cut of Wu et al. 2020",
    ),
    _layer(
        name="pwcca",
        summary="the same correlations, weighted by how much of x they account for",
        function=pwcca,
        heldout={"pwcca_heldout": pwcca_heldout},
        symmetric=False,
        by_variance=True,
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
        influence=svcca_ge_influence,
        symmetric=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806)",
    ),
    _layer(
        name="svcca_centred",
        summary="svcca of neurons that are centred, not z-scored",
        function=svcca_centred,
        influence=svcca_centred_influence,
        symmetric=True,
        by_variance=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806), section 2; cut of Wu et al. 2020",
    ),
    _layer(
        name="svcca_centred_ge",
        summary="svcca_ge of neurons that are centred, not z-scored",
        function=svcca_centred_ge,
        influence=svcca_centred_ge_influence,
        symmetric=True,
        by_variance=True,
        reference="Raghu et al. 2017 (arXiv 1706.05806), section 2",
    ),
    _layer(
        name="mean_cca",
        summary="mean canonical correlation of all directions",
        function=mean_cca,
        influence=mean_cca_influence,
        heldout={"mean_cca_heldout": mean_cca_heldout},
        symmetric=True,
        reference="Hotelling 1936",
    ),
    _layer(
        name="mean_cca2",
        summary="mean squared canonical correlation of all directions",
        function=mean_cca2,
        influence=mean_cca2_influence,
        symmetric=True,
        reference="Kornblith et al. 2019 (arXiv 1905.00414), table 1",
    ),
)
