"""Single neurons: does a neuron of one representation have a counterpart in the other?"""

import functools

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.measures.base import Details, Measure, PairRows, Ranking, RepresentationPair
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.measures.regression import on_directions
from speechsim_jax.statistics.linalg import Matrix, Vector

# Random rotations behind `rotcorr`.
ROTATIONS = 3


def maxcorr(pair: RepresentationPair) -> float:
    """Mean over neurons i of x of max_j |corr(x_i, y_j)|; a dead neuron of x counts as 0.

    In [0, 1], asymmetric. Source: Wu et al. 2020, section 4.1 ("maxcorr"); "neuronsim" in
    El Kheir et al. 2024.
    """
    value, _ = winners(pair.correlation)
    return float(value.mean())


def maxcorr_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of sign(r) x_i y_j - |r| / 2 (x_i^2 + y_j^2), j the winner of i."""
    correlation = pair.live_correlation
    if not correlation.size:
        return np.zeros(len(rows.x.zscored))
    winner = np.abs(correlation).argmax(axis=1)
    neurons = np.arange(len(winner))
    r = correlation[neurons, winner]
    return _of_matched(rows.x.zscored, rows.y.zscored, r, neurons, winner) / pair.x.width


def maxcorr_heldout(pair: HeldOutPair) -> float:
    """Mean over neurons of the correlation with the winner of the fitted fold, with its sign."""
    correlation = pair.fit.correlation
    _, winner = winners(correlation)
    return float(_matched(pair, np.arange(len(winner)), winner).sum() / len(winner))


def _matched(
    pair: HeldOutPair, i: Int[np.ndarray, " pair"], j: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, " pair"]:
    """Correlations of pairs of neurons on the other fold times the fitted fold's signs."""
    signs = np.where(j >= 0, np.sign(pair.fit.correlation[i, j]), 0)
    return pair.evaluate.correlation[i, j] * signs


def _of_matched(
    x: Float[np.ndarray, "row _x"],
    y: Float[np.ndarray, "row _y"],
    r: Float[np.ndarray, " pair"],
    i: Int[np.ndarray, " pair"],
    j: Int[np.ndarray, " pair"],
) -> Influence:
    """Sum over pairs (i, j) of neurons of sign(r) x_i y_j - |r| / 2 (x_i^2 + y_j^2)."""
    signed = y[:, j] * np.sign(r).astype(y.dtype)
    total = np.einsum("ti,ti->t", x[:, i], signed, dtype=np.float64)
    size = np.abs(r)
    total -= np.square(x) @ np.bincount(i, size, x.shape[1]) / 2
    total -= np.square(y) @ np.bincount(j, size, y.shape[1]) / 2
    return total


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


def matchcorr_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `maxcorr`, over the pairs that are matched."""
    correlation = pair.live_correlation
    i, j = scipy.optimize.linear_sum_assignment(np.abs(correlation), maximize=True)
    total = _of_matched(rows.x.zscored, rows.y.zscored, correlation[i, j], i, j)
    return total / min(pair.x.width, pair.y.width)


def matchcorr_heldout(pair: HeldOutPair) -> float:
    """As of `maxcorr`, over the pairs that the fitted fold matches."""
    magnitude = np.abs(pair.fit.correlation)
    if not np.isfinite(magnitude).all():
        return float("nan")
    i, j = scipy.optimize.linear_sum_assignment(magnitude, maximize=True)
    return float(_matched(pair, i, j).mean())


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


def rotcorr_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `maxcorr`, on the rotated axes; and what a row does to the scale of y's neurons."""
    total = np.zeros(len(rows.x.zscored))
    white = pair.y.whitening
    for draw in range(ROTATIONS):
        correlation, axes = rotated(pair, draw)
        if not correlation.size:
            continue
        winner = np.abs(correlation).argmax(axis=1)
        neurons = np.arange(len(winner))
        y = rows.y.white @ rows.y.cast(axes)
        r = correlation[neurons, winner]
        total += _of_matched(rows.x.zscored, y, r, neurons, winner)
        # The winner of i is q'y: its correlation with i moves by -z_j^2 / 2 times
        # q_j (R_ji - r_i (R q)_j), for each neuron j of y.
        won = axes[:, winner]
        q = (white.vectors / np.sqrt(white.values)) @ won
        moved = pair.live_correlation.T * np.sign(r) - np.abs(r) * (
            (white.vectors * np.sqrt(white.values)) @ won
        )
        total -= np.square(rows.y.zscored) @ (q * moved).sum(axis=1) / 2
    return total / (ROTATIONS * pair.x.width)


def _rotated_maxcorr(pair: RepresentationPair) -> list[float]:
    if _rotated_maxcorr not in pair.cache:
        pair.cache[_rotated_maxcorr] = [_one_rotation(pair, draw) for draw in range(ROTATIONS)]
    return pair.cache[_rotated_maxcorr]


def _one_rotation(pair: RepresentationPair, draw: int) -> float:
    correlation, _ = rotated(pair, draw)
    return float(np.abs(correlation).max(axis=1, initial=0).sum() / pair.x.width)


def rotated(
    pair: RepresentationPair, draw: int
) -> tuple[Float[np.ndarray, "live axis"], Float[np.ndarray, "rank axis"]]:
    """Correlations of x's live neurons with y's rotated ones, and these in y's whitened directions.

    Through the directions of y = V sqrt(values): R_xy W (Q V sqrt(values))' is R_xy Q'.
    """
    white = pair.y.whitening
    turned = _haar(len(white.vectors), draw) @ (white.vectors * np.sqrt(white.values))
    std = np.linalg.norm(turned, axis=1)
    axes = (turned / np.where(std > 0, std, np.inf)[:, None]).T
    return on_directions(pair) @ axes, axes


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
        influence=maxcorr_influence,
        heldout={"maxcorr_heldout": maxcorr_heldout},
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
        influence=matchcorr_influence,
        heldout={"matchcorr_heldout": matchcorr_heldout},
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
        influence=rotcorr_influence,
        details=rotcorr_spread,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="after Khosla & Williams 2023 (arXiv 2311.09466)",
        inflated_by_few_rows=True,
        whitens=True,
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
