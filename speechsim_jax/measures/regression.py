"""Neurons from layers: how well does the whole of y predict each neuron of x?"""

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_rows import (
    Influence,
    sums_of_products,
    weighted_squares,
)
from speechsim_jax.measures.base import Details, Measure, PairRows, RepresentationPair, divide
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.statistics.linalg import Matrix, Vector


def on_directions(pair: RepresentationPair) -> Matrix:
    """R_xy W, W the whitening of y: correlations of x's live neurons with the directions of y."""
    return pair.once(_on_directions)


def _on_directions(pair: RepresentationPair) -> Matrix:
    return pair.live_correlation @ pair.y.whitening.matrix


def multiple_correlations(pair: RepresentationPair) -> Vector:
    """r_i = |W' R_y,xi| for each live neuron i of x, W the whitening of y.

    The correlation of x_i with its least-squares prediction from all of y.
    """
    return pair.once(_multiple_correlations)


def _multiple_correlations(pair: RepresentationPair) -> Vector:
    return np.linalg.norm(on_directions(pair), axis=1)


def linreg(pair: RepresentationPair) -> float:
    """Mean over live neurons of x of r, the multiple correlation with y (not R^2).

    In [0, 1], asymmetric. Directions of y below the rank tolerance are left out (the published
    code keeps them, which inflates r when frames are few). Source: Wu et al. 2020, section 4.1
    ("linreg"); "mixedsim" in El Kheir et al. 2024.
    """
    r = multiple_correlations(pair)
    return float(r.mean()) if r.size else float("nan")


def _fit(rows: PairRows, pair: RepresentationPair) -> Float[np.ndarray, "row live"]:
    """The least-squares prediction of x's z-scored live neurons from all of y, for every row."""
    return rows.y.white @ pair.once(_weights, rows.y.dtype)


def _weights(pair: RepresentationPair, dtype: np.dtype) -> Float[np.ndarray, "rank live"]:
    """Of y's whitened directions in the prediction of x's z-scored neurons."""
    return on_directions(pair).T.astype(dtype)


def _squares(
    rows: PairRows, pair: RepresentationPair
) -> tuple[Float[np.ndarray, "row live"], Float[np.ndarray, "row live"]]:
    """Of x's z-scored live neurons and of their residuals, for every row."""
    x = rows.x.zscored
    return np.square(x), np.square(x - rows.once(_fit, pair))


def linreg_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of x_i f_i - r_i / 2 (x_i^2 + f_i^2), f_i the fit of x_i scaled to variance 1."""
    r = multiple_correlations(pair)
    x, fit = rows.x.zscored, rows.once(_fit, pair)
    of_fit = np.divide(1, r, out=np.zeros_like(r), where=r > 0)
    # With f_i = fit_i / r_i: x_i fit_i / r_i - r_i x_i^2 / 2 - fit_i^2 / (2 r_i).
    total = sums_of_products(x, fit * rows.x.cast(of_fit))
    total -= (weighted_squares(x, r) + weighted_squares(fit, of_fit)) / 2
    return total / max(len(r), 1)


def coefficients_of(fit: RepresentationPair) -> Float[np.ndarray, "live_y live_x"]:
    """Of the least-squares prediction of each z-scored neuron of x from those of y."""
    return fit.y.whitening.matrix @ on_directions(fit).T


def linreg_heldout(pair: HeldOutPair) -> float:
    """Mean over live neurons of the signed correlation of each with its prediction.

    Near 0 for unrelated representations, however few the rows.
    """
    r = predicted(pair, pair.fit.once(coefficients_of))
    return float(r.mean()) if r.size else float("nan")


def predicted(pair: HeldOutPair, coefficients: np.ndarray) -> Vector:
    """Correlation of each live neuron of x with its prediction on the other fold."""
    covariance = np.einsum("ij,ji->i", pair.cross, coefficients)
    variance = np.einsum("ji,ji->i", coefficients, pair.own_y @ coefficients)
    # Of what is constant in the other fold both are 0, or rounding errors about it.
    scale = np.sqrt(np.maximum(variance, 0) * np.maximum(np.diagonal(pair.own_x), 0))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def linreg_r2_heldout(pair: HeldOutPair) -> float:
    """Mean over live neurons of 1 - squared errors / squares about the other fold's mean.

    At most 1, unbounded below.
    """
    coefficients = pair.fit.once(coefficients_of)
    variance = np.diagonal(pair.own_x)
    errors = variance - 2 * np.einsum("ij,ji->i", pair.cross, coefficients)
    errors = errors + np.einsum("ji,ji->i", coefficients, pair.own_y @ coefficients)
    errors = errors + np.square(pair.offset_x - pair.offset_y @ coefficients)
    known = variance > 0
    if not known.any():
        return float("nan")
    return float(np.mean(1 - errors[known] / variance[known]))


def linreg_ridge_heldout(pair: HeldOutPair) -> float:
    """`linreg_heldout` of ridge regression.

    One penalty a for all neurons of x: of powers of 10^(1/4) from 1e-8 to 100 times y's largest
    eigenvalue, the one that minimises the generalised cross-validation error on the fitted fold of
    n rows, sum of squared errors / (1 - df / n)^2 with df = sum of values / (values + a).

    Source: Golub, Heath & Wahba 1979 (Technometrics 21), equation 1.4.
    """
    white, rows = pair.fit.y.whitening, pair.fit.rows
    if not white.rank or not pair.fit.x.live.any():
        return float("nan")
    # Of x_i with the eigenvectors of y, squared: on_directions has them over sqrt(values).
    energy = np.square(on_directions(pair.fit)).sum(axis=0)
    penalties = white.values[0] * 10.0 ** np.arange(-8, 2.25, 0.25)
    shrunk = white.values / (white.values + penalties[:, None])
    left = pair.fit.x.live.sum() - (energy * shrunk * (2 - shrunk)).sum(axis=1)
    error = left / np.square(np.maximum(1 - shrunk.sum(axis=1) / rows, 1e-12))
    best = shrunk[np.argmin(error)]
    coefficients = (white.matrix * best) @ on_directions(pair.fit).T
    return float(predicted(pair, coefficients).mean())


def linreg_floor(pair: RepresentationPair) -> Details:
    """The r^2 to expect of unrelated representations and independent rows: rank(y) / (n - 1).

    Frames are correlated in time, so the floor of unrelated speech is higher.
    """
    return {"linreg_r2_floor": (None, np.array(pair.y.whitening.rank / pair.degrees))}


def linreg_r2(pair: RepresentationPair) -> float:
    """Mean over live neurons of x of r^2, the share of each neuron's variance that y explains.

    In [0, 1], asymmetric; every neuron weighs the same. Source: Kornblith et al. 2019 (arXiv
    1905.00414), section 3 (R^2_LR), on z-scored neurons.
    """
    r = multiple_correlations(pair)
    return float(np.square(r).mean()) if r.size else float("nan")


def linreg_r2_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of (1 - R_i^2) x_i^2 - e_i^2, e the residual."""
    r = multiple_correlations(pair)
    square, residual = rows.once(_squares, pair)
    unexplained = square @ rows.x.cast(1 - np.square(r))
    return (unexplained - residual.sum(axis=1, dtype=np.float64)) / max(len(r), 1)


def linreg_r2_global(pair: RepresentationPair) -> float:
    """Explained over total variance of x: sum r_i^2 var_i / sum var_i.

    In [0, 1], asymmetric; neurons weigh by their variance. Source: Kornblith et al. 2019 (arXiv
    1905.00414), section 3 (R^2_LR).
    """
    var = np.square(pair.x.std[pair.x.live])
    return divide(float(np.square(multiple_correlations(pair)) @ var), float(var.sum()))


def linreg_r2_global_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """[(1 - s) |x|^2 - |e|^2] / tr C_xx, centred x and its residual e on their own scale."""
    var = np.square(pair.x.std[pair.x.live])
    share = rows.x.cast(var / var.sum())
    square, residual = (squares @ share for squares in rows.once(_squares, pair))
    return (1 - linreg_r2_global(pair)) * square - residual


MEASURES = (
    Measure(
        name="linreg",
        level="mixed",
        summary="mean over neurons of x of the multiple correlation r with all of y",
        function=linreg,
        influence=linreg_influence,
        heldout={
            "linreg_heldout": linreg_heldout,
            "linreg_ridge_heldout": linreg_ridge_heldout,
        },
        details=linreg_floor,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
        inflated_by_few_rows=True,
        whitens=True,
    ),
    Measure(
        name="linreg_r2",
        level="mixed",
        summary="mean over neurons of x of the explained share of variance r^2",
        function=linreg_r2,
        influence=linreg_r2_influence,
        heldout={"linreg_r2_heldout": linreg_r2_heldout},
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019 (arXiv 1905.00414), section 3, on z-scored neurons",
        inflated_by_few_rows=True,
        whitens=True,
    ),
    Measure(
        name="linreg_r2_global",
        level="mixed",
        summary="explained over total variance of x, given all of y",
        function=linreg_r2_global,
        influence=linreg_r2_global_influence,
        symmetric=False,
        limits=(0.0, 1.0),
        by_variance=True,
        reference="Kornblith et al. 2019 (arXiv 1905.00414), section 3",
        inflated_by_few_rows=True,
        whitens=True,
    ),
)
