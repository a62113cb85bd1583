"""Neurons from layers: how well does the whole of y predict each neuron of x?"""

import numpy as np

from speechsim_jax.measures.base import Details, Measure, RepresentationPair, divide
from speechsim_jax.statistics.linalg import Matrix, Vector


def on_directions(pair: RepresentationPair) -> Matrix:
    """R_xy W, W the whitening of y: correlations of x's live neurons with the directions of y."""
    if on_directions not in pair.cache:
        pair.cache[on_directions] = pair.live_correlation @ pair.y.whitening.matrix
    return pair.cache[on_directions]


def multiple_correlations(pair: RepresentationPair) -> Vector:
    """r_i = |W' R_y,xi| for each live neuron i of x, W the whitening of y.

    The correlation of x_i with its least-squares prediction from all of y.
    """
    return np.linalg.norm(on_directions(pair), axis=1)


def linreg(pair: RepresentationPair) -> float:
    """Mean over live neurons of x of r, the multiple correlation with y (not R^2).

    In [0, 1], asymmetric. Directions of y below the rank tolerance are left out (the published
    code keeps them, which inflates r when frames are few). Source: Wu et al. 2020, section 4.1
    ("linreg"); "mixedsim" in El Kheir et al. 2024.
    """
    r = multiple_correlations(pair)
    return float(r.mean()) if r.size else float("nan")


def linreg_floor(pair: RepresentationPair) -> Details:
    """The r^2 to expect of unrelated representations and independent rows: rank(y) / (n - 1).

    Frames are correlated in time, so the floor of unrelated speech is higher.
    """
    return {"linreg_r2_floor": (None, np.array(pair.y.whitening.rank / (pair.rows - 1)))}


def linreg_r2(pair: RepresentationPair) -> float:
    """Mean over live neurons of x of r^2, the share of each neuron's variance that y explains.

    In [0, 1], asymmetric; every neuron weighs the same. Source: Kornblith et al. 2019 (arXiv
    1905.00414), section 3 (R^2_LR), on z-scored neurons.
    """
    r = multiple_correlations(pair)
    return float(np.square(r).mean()) if r.size else float("nan")


def linreg_r2_global(pair: RepresentationPair) -> float:
    """Explained over total variance of x: sum r_i^2 var_i / sum var_i.

    In [0, 1], asymmetric; neurons weigh by their variance. Source: Kornblith et al. 2019 (arXiv
    1905.00414), section 3 (R^2_LR).
    """
    var = np.square(pair.x.std[pair.x.live])
    return divide(float(np.square(multiple_correlations(pair)) @ var), float(var.sum()))


MEASURES = (
    Measure(
        name="linreg",
        level="mixed",
        summary="mean over neurons of x of the multiple correlation r with all of y",
        function=linreg,
        details=linreg_floor,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="linreg_r2",
        level="mixed",
        summary="mean over neurons of x of the explained share of variance r^2",
        function=linreg_r2,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019 (arXiv 1905.00414), section 3, on z-scored neurons",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="linreg_r2_global",
        level="mixed",
        summary="explained over total variance of x, given all of y",
        function=linreg_r2_global,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019 (arXiv 1905.00414), section 3",
        inflated_by_few_rows=True,
    ),
)
