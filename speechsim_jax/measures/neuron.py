"""Single neurons: does a neuron of one representation have a counterpart in the other?"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from speechsim_jax.inference.influence_rows import (
    Influence,
    sums_of_products,
    weighted_squares,
)
from speechsim_jax.measures.base import Details, Measure, PairRows, Ranking, RepresentationPair
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.measures.regression import on_directions
from speechsim_jax.statistics.linalg import Matrix, Vector, Whitening

# Random rotations behind `rotcorr`.
ROTATIONS = 3


def maxcorr(pair: RepresentationPair) -> float:
    """Mean over neurons i of x of max_j |corr(x_i, y_j)|; a dead neuron of x counts as 0.

    In [0, 1], asymmetric. Source: Wu et al. 2020, section 4.1 ("maxcorr"); "neuronsim" in
    El Kheir et al. 2024.
    """
    value, _ = winners(pair.correlation)
    return float(value.mean())


class _Matched(NamedTuple):
    """Pairs (i, j) of a live neuron of x with one of y.

    Attributes:
      i: of x; None if each is in one pair, in their order.
      j: of y.
      sign: of their correlation r.
      of_x, of_y: the sum of |r| / 2 over the pairs of each neuron.
    """

    i: Int[np.ndarray, " pair"] | None
    j: Int[np.ndarray, " pair"]
    sign: Float[np.ndarray, " pair"]
    of_x: Float[np.ndarray, " x"]
    of_y: Float[np.ndarray, " y"]


def _matched_neurons(
    correlation: Matrix,
    j: Int[np.ndarray, " pair"],
    i: Int[np.ndarray, " pair"] | None = None,
) -> _Matched:
    """Pairs (i, j), by default of every neuron of x in turn."""
    own = np.arange(len(correlation)) if i is None else i
    r = correlation[own, j]
    of_x, of_y = (
        np.bincount(neurons, np.abs(r) / 2, count)
        for neurons, count in zip((own, j), correlation.shape, strict=True)
    )
    return _Matched(i, j, np.sign(r), of_x, of_y)


def _influence_of_matched(
    x: Float[np.ndarray, "row _x"], y: Float[np.ndarray, "row _y"], matched: _Matched
) -> Influence:
    """Sum over pairs (i, j) of sign(r) x_i y_j - |r| / 2 (x_i^2 + y_j^2)."""
    own = x if matched.i is None else np.take(x, matched.i, axis=1)
    theirs = np.take(y, matched.j, axis=1)
    theirs *= matched.sign.astype(y.dtype)
    total = sums_of_products(own, theirs)
    return total - weighted_squares(x, matched.of_x) - weighted_squares(y, matched.of_y)


def maxcorr_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """Mean over i of sign(r) x_i y_j - |r| / 2 (x_i^2 + y_j^2), j the winner of i."""
    matched = pair.once(_best_matched)
    return _influence_of_matched(rows.x.zscored, rows.y.zscored, matched) / pair.x.width


def _best_matched(pair: RepresentationPair) -> _Matched:
    correlation = pair.live_correlation
    return _matched_neurons(correlation, np.abs(correlation).argmax(axis=1))


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
    matched = pair.once(_one_to_one)
    total = _influence_of_matched(rows.x.zscored, rows.y.zscored, matched)
    return total / min(pair.x.width, pair.y.width)


def _one_to_one(pair: RepresentationPair) -> _Matched:
    correlation = pair.live_correlation
    i, j = scipy.optimize.linear_sum_assignment(np.abs(correlation), maximize=True)
    return _matched_neurons(correlation, j, i)


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
    return float(np.mean(pair.once(_rotated_maxcorr)))


def rotcorr_spread(pair: RepresentationPair) -> Details:
    """The standard deviation of maxcorr over the draws of `rotcorr`."""
    return {"rotcorr_spread": (None, np.array(np.std(pair.once(_rotated_maxcorr), ddof=1)))}


def rotcorr_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """As of `maxcorr`, on the rotated axes; and what a row does to the scale of y's neurons."""
    total = np.zeros(rows.x.count)
    for draw in range(ROTATIONS):
        axes, matched, scale = pair.once(_rotation, draw, rows.y.dtype)
        total += _influence_of_matched(rows.x.zscored, rows.y.white @ axes, matched)
        total -= weighted_squares(rows.y.zscored, scale)
    return total / (ROTATIONS * pair.x.width)


def _rotation(
    pair: RepresentationPair, draw: int, dtype: np.dtype
) -> tuple[Float[np.ndarray, "rank axis"], _Matched, Vector]:
    """Rotated neurons of y in its whitened directions, the winners, and the weight of z_j^2.

    The winner of i is q'y: its correlation with i moves by -z_j^2 / 2 times
    q_j (R_ji - r_i (R q)_j), for each neuron j of y.
    """
    correlation, axes = rotated(pair, draw)
    white = pair.y.whitening
    winner = np.abs(correlation).argmax(axis=1)
    r = correlation[np.arange(len(winner)), winner]
    won = axes[:, winner]
    q = (white.vectors / np.sqrt(white.values)) @ won
    moved = pair.live_correlation.T * np.sign(r) - np.abs(r) * (
        (white.vectors * np.sqrt(white.values)) @ won
    )
    matched = _matched_neurons(correlation, winner)
    return axes.astype(dtype), matched, (q * moved).sum(axis=1) / 2


def _rotated_maxcorr(pair: RepresentationPair) -> list[float]:
    return [_one_rotation(pair, draw) for draw in range(ROTATIONS)]


def _one_rotation(pair: RepresentationPair, draw: int) -> float:
    correlation, _ = rotated(pair, draw)
    return float(np.abs(correlation).max(axis=1, initial=0).sum() / pair.x.width)


def rotated(
    pair: RepresentationPair, draw: int
) -> tuple[Float[np.ndarray, "live axis"], Float[np.ndarray, "rank axis"]]:
    """Correlations of x's live neurons with y's rotated ones, and these in y's whitened directions.

    Through the directions of y = V sqrt(values): R_xy W (Q V sqrt(values))' is R_xy Q'.
    """
    axes = rotated_axes(pair.y.whitening, draw)
    return on_directions(pair) @ axes, axes


def rotated_axes(white: Whitening, draw: int) -> Float[np.ndarray, "rank axis"]:
    """The neurons of a representation in rotated axes, in its whitened directions."""
    turned = _haar(len(white.vectors), draw) @ white.loadings
    std = np.linalg.norm(turned, axis=1)
    return (turned / np.where(std > 0, std, np.inf)[:, None]).T


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
