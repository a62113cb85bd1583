"""Centred kernel alignment with a linear kernel."""

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_rows import (
    Influence,
    RepresentationRows,
    forms,
    weighted_squares,
)
from speechsim_jax.measures.base import (
    Details,
    GramPair,
    Measure,
    PairRows,
    RepresentationPair,
    divide,
)
from speechsim_jax.statistics.linalg import Matrix
from speechsim_jax.statistics.moments_finished import FinishedMoments, RepresentationMoments


def lincka(pair: RepresentationPair | GramPair) -> float:
    """||S_xy||_F^2 / (||S_xx||_F ||S_yy||_F); centred, not z-scored.

    In [0, 1], symmetric; invariant to rotation, scale and shift. NaN if a representation has no
    variance.
    Source: Kornblith et al. 2019 (arXiv 1905.00414), equation 4; Wu et al. 2020.
    """
    return divide(pair.squared_norm, pair.x.scatter_norm * pair.y.scatter_norm)


def lincka_floor(pair: RepresentationPair | GramPair) -> Details:
    """The lincka to expect of unrelated representations with as many independent rows.

    tr(S_xx) tr(S_yy) / ((n - 1) ||S_xx||_F ||S_yy||_F), the mean over permutations of the rows.
    Frames are correlated in time, so the floor of unrelated speech is higher.
    """
    traces = [
        representation.std @ representation.std * pair.rows for representation in (pair.x, pair.y)
    ]
    norms = pair.x.scatter_norm * pair.y.scatter_norm
    floor = divide(float(traces[0] * traces[1]), pair.degrees * norms)
    return {"lincka_floor": (None, np.array(floor))}


def lincka_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """s [2 x'C_xy y / ||C_xy||^2 - x'C_xx x / ||C_xx||^2 - y'C_yy y / ||C_yy||^2], C = S / n."""
    own = [r.once(_own_share, pair.moments) for r in (rows.x, rows.y)]
    squared = pair.squared_norm / pair.rows
    cross = forms(rows.x.zscored, pair.once(_of_zscored, rows.x.dtype), rows.y.zscored)
    return lincka(pair) * (2 * cross / squared - own[0] - own[1])


def _of_zscored(pair: RepresentationPair, dtype: np.dtype) -> Matrix:
    """The matrix M with z_x' M z_y = x'S_xy y, of z-scored live neurons and centred ones."""
    return _scaled(pair.scatter, pair.x, pair.y, dtype)


def _scaled(
    scatter: Matrix, x: RepresentationMoments, y: RepresentationMoments, dtype: np.dtype
) -> Float[np.ndarray, "live_x live_y"]:
    live = scatter[np.ix_(x.live, y.live)]
    return (live * x.std[x.live][:, None] * y.std[y.live]).astype(dtype)


def _own_share(rows: RepresentationRows, moments: FinishedMoments) -> Influence:
    """x'C_xx x / ||C_xx||^2."""
    return _own_form(rows, moments) * moments.rows / np.square(rows.moments.scatter_norm)


def _own_form(rows: RepresentationRows, moments: FinishedMoments) -> Influence:
    """x'S_xx x."""
    return forms(rows.zscored, rows.shared(_own_matrix, moments), rows.zscored)


def _own_matrix(rows: RepresentationRows, moments: FinishedMoments) -> Matrix:
    x = rows.moments
    return _scaled(moments.scatter(x, x), x, x, rows.dtype)


def lincka_zscored(pair: RepresentationPair) -> float:
    """Linear CKA of z-scored neurons: ||R_xy||_F^2 / (||R_xx||_F ||R_yy||_F).

    In [0, 1], symmetric. The difference from `lincka` is due to neurons of high variance.
    Source: Kornblith et al. 2019, equation 4, on correlation matrices.
    """
    numerator = float(np.sum(np.square(pair.correlation)))
    return divide(numerator, pair.x.correlation_norm * pair.y.correlation_norm)


def lincka_zscored_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `lincka`, each r_ij with the influence x_i y_j - r_ij / 2 (x_i^2 + y_j^2)."""
    own = [r.once(_own_share_zscored, pair.moments) for r in (rows.x, rows.y)]
    matrix, squares = pair.once(_correlations, rows.x.dtype)
    cross = _moved(rows.x, matrix, squares, rows.y)
    return lincka_zscored(pair) * (cross / float(squares.sum()) - (own[0] + own[1]) / 2)


def _correlations(pair: RepresentationPair, dtype: np.dtype) -> tuple[Matrix, Matrix]:
    """R_xy of the live neurons in a type, and its squares."""
    correlation = pair.live_correlation
    return correlation.astype(dtype), np.square(correlation)


def _moved(
    x: RepresentationRows, matrix: Matrix, squares: Matrix, y: RepresentationRows
) -> Influence:
    """The influence on ||R_xy||^2."""
    moved = 2 * forms(x.zscored, matrix, y.zscored)
    moved -= weighted_squares(x.zscored, squares.sum(axis=1))
    return moved - weighted_squares(y.zscored, squares.sum(axis=0))


def _own_share_zscored(rows: RepresentationRows, moments: FinishedMoments) -> Influence:
    """The influence on ||R_xx||^2, over ||R_xx||^2."""
    matrix, squares = rows.shared(_own_correlations, moments)
    return _moved(rows, matrix, squares, rows) / float(squares.sum())


def _own_correlations(rows: RepresentationRows, moments: FinishedMoments) -> tuple[Matrix, Matrix]:
    return _correlations(RepresentationPair(moments, rows.moments, rows.moments), rows.dtype)


def lincka_debiased(pair: RepresentationPair | GramPair) -> float:
    """Linear CKA with the unbiased HSIC estimator, exact, from sums of one pass.

    HSIC1(x, y) / sqrt(HSIC1(x, x) HSIC1(y, y)); near 0 for independent rows (frames are not
    independent in time), at most 1, and slightly negative values are kept. Symmetric. NaN if
    n < 4 or a self-term is not positive. Source: Song et al. 2012 (JMLR 13), equation 5.
    """
    if pair.rows < 4:
        return float("nan")
    unbiased = pair.moments.unbiased_squared_norm
    own = [unbiased(representation, representation) for representation in (pair.x, pair.y)]
    if min(own) <= 0:
        return float("nan")
    return pair.unbiased_squared_norm / (own[0] * own[1]) ** 0.5


def lincka_debiased_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `lincka`, with the unbiased estimates of ||C||^2."""
    if pair.rows < 4:
        return np.full(rows.x.count, np.nan)
    unbiased = pair.moments.unbiased_squared_norm
    own = [
        r.once(_own_form, pair.moments) / pair.rows / unbiased(r.moments, r.moments)
        for r in (rows.x, rows.y)
    ]
    cross = forms(rows.x.zscored, pair.once(_of_zscored, rows.x.dtype), rows.y.zscored)
    cross = cross / pair.rows / pair.unbiased_squared_norm
    return lincka_debiased(pair) * (2 * cross - own[0] - own[1])


MEASURES = (
    Measure(
        name="lincka",
        level="layer",
        summary="linear CKA, biased, on centred neurons",
        function=lincka,
        influence=lincka_influence,
        details=lincka_floor,
        of_norms=True,
        symmetric=True,
        limits=(0.0, 1.0),
        by_variance=True,
        reference="Kornblith et al. 2019 (arXiv 1905.00414), equation 4",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="lincka_zscored",
        level="layer",
        summary="linear CKA, biased, on z-scored neurons",
        function=lincka_zscored,
        influence=lincka_zscored_influence,
        symmetric=True,
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019 (arXiv 1905.00414), equation 4, on correlations",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="lincka_debiased",
        level="layer",
        summary="linear CKA with the unbiased estimator of HSIC",
        function=lincka_debiased,
        partial=False,  # its sums of squared norms are not known of residuals
        influence=lincka_debiased_influence,
        of_norms=True,
        symmetric=True,
        limits=(-1.0, 1.0),
        by_variance=True,
        reference="Song et al. 2012 (JMLR 13), equation 5",
    ),
)
