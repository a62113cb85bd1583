"""Single neurons: does a neuron of one representation have a counterpart in the other?"""

import functools

import numpy as np
import scipy.optimize
from jaxtyping import Int

from speechsim_jax.measures.base import Details, Measure, Ranking, RepresentationPair
from speechsim_jax.measures.regression import on_directions
from speechsim_jax.statistics.linalg import Matrix, Vector

# Random rotations behind `rotcorr`.
_ROTATIONS = 3


def maxcorr(pair: RepresentationPair) -> float:
    """Mean over neurons i of x of max_j |corr(x_i, y_j)|; a dead neuron of x counts as 0.

    In [0, 1], asymmetric. Source: Wu et al. 2020, section 4.1 ("maxcorr"); "neuronsim" in
    El Kheir et al. 2024.
    """
    value, _ = winners(pair.correlation)
    return float(value.mean())


def maxcorr_winners(pair: RepresentationPair) -> Details:
    """The best |correlation| in y of each neuron of x, and the neuron that has it (-1: none)."""
    value, index = winners(pair.correlation)
    return {
        "best_corr": ("neuron", value.astype(np.float32)),
        "best_match": ("neuron", index.astype(np.int32)),
    }


def matchcorr(pair: RepresentationPair) -> float:
    """Mean |correlation| under the best one-to-one matching of neurons.

    Over the smaller side; in [0, 1], symmetric. Below `maxcorr` where many neurons of x share one
    of y. Source: Li et al. 2016 (arXiv 1511.07543), "bipartite matching".
    """
    magnitude = np.abs(pair.correlation)
    if not np.isfinite(magnitude).all():
        return float("nan")
    return float(magnitude[scipy.optimize.linear_sum_assignment(magnitude, maximize=True)].mean())


def rotcorr(pair: RepresentationPair) -> float:
    """The maxcorr to expect if y's axes meant nothing: its mean over random rotations of y.

    Correlations of x with Q y, y z-scored: R_xy Q' / sqrt(diag(Q R_yy Q')), Q Haar, a few seeded
    draws that all pairs share. In [0, 1], asymmetric. maxcorr well above it means that single
    neurons, not only the subspace, are shared (the "privileged basis" of El Kheir et al. 2024).
    Source: after Khosla & Williams 2023 (arXiv 2311.09466), who compare with rotated
    representations.
    """
    return float(np.mean(_rotated_maxcorr(pair)))


def rotcorr_spread(pair: RepresentationPair) -> Details:
    """The standard deviation of maxcorr over the draws of `rotcorr`."""
    return {"rotcorr_spread": (None, np.array(np.std(_rotated_maxcorr(pair), ddof=1)))}


def _rotated_maxcorr(pair: RepresentationPair) -> list[float]:
    if _rotated_maxcorr not in pair.cache:
        pair.cache[_rotated_maxcorr] = [_one_rotation(pair, draw) for draw in range(_ROTATIONS)]
    return pair.cache[_rotated_maxcorr]


def _one_rotation(pair: RepresentationPair, draw: int) -> float:
    """Through the directions of y = V sqrt(values): R_xy W (Q V sqrt(values))' is R_xy Q'."""
    white = pair.y.whitening
    turned = _haar(len(white.vectors), draw) @ (white.vectors * np.sqrt(white.values))
    std = np.linalg.norm(turned, axis=1)
    correlation = on_directions(pair) @ turned.T / np.where(std > 0, std, np.inf)
    return float(np.abs(correlation).max(axis=1, initial=0).sum() / pair.x.width)


@functools.lru_cache(maxsize=16)
def _haar(size: int, draw: int) -> np.ndarray:
    """A rotation drawn uniformly (Mezzadri 2007, arXiv math-ph/0609050)."""
    rng = np.random.default_rng([draw, size])
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diagonal(r))


MEASURES = (
    Measure(
        name="maxcorr",
        level="neuron",
        summary="mean over neurons of x of the best |correlation| with a neuron of y",
        function=maxcorr,
        details=maxcorr_winners,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="matchcorr",
        level="neuron",
        summary="mean |correlation| under the best one-to-one matching of neurons",
        function=matchcorr,
        symmetric=True,
        limits=(0.0, 1.0),
        reference="Li et al. 2016 (arXiv 1511.07543)",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="rotcorr",
        level="neuron",
        summary="baseline of maxcorr: its mean after random rotations of y's axes",
        function=rotcorr,
        details=rotcorr_spread,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="after Khosla & Williams 2023 (arXiv 2311.09466)",
        inflated_by_few_rows=True,
    ),
)

RANKINGS = (
    Ranking(
        name="maxcorr",
        level="neuron",
        summary="each neuron's largest best correlation over the other models",
        function=lambda best: best.max(axis=1),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
    ),
    Ranking(
        name="mincorr",
        level="neuron",
        summary="each neuron's smallest best correlation over the other models",
        function=lambda best: best.min(axis=1),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
    ),
)


def winners(correlation: Matrix) -> tuple[Vector, Int[np.ndarray, " x"]]:
    """For each row, the largest magnitude and its column (-1 where all are 0)."""
    magnitude = np.abs(correlation)
    best = magnitude.argmax(axis=1)
    value = magnitude[np.arange(len(best)), best]
    return value, np.where(value > 0, best, -1)
