"""Numbers of two models from their layer-by-layer scores: which layers are set against which."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from speechsim_jax.results.depth import block_depths, nearest_depth
from speechsim_jax.results.result import SimilarityResult


class ModelPairScores(NamedTuple):
    """The scores of the layers of x (rows) and y, and where these are, from 0 to 1."""

    values: Float[np.ndarray, "x y"]
    x_depth: Float[np.ndarray, " x"]
    y_depth: Float[np.ndarray, " y"]


class Scores:
    """The blocks of one or several results, by measure and two models."""

    def __init__(self, results: Sequence[SimilarityResult]):
        self._results = results
        self._blocks: dict[tuple[str, str, str], ModelPairScores] = {}

    def block(self, measure: str, x: str, y: str) -> ModelPairScores:
        """The layers of x against those of y; raises LookupError if no result has it."""
        if (measure, x, y) not in self._blocks:
            found = self._having(measure, x, y).block(measure, x, y)
            self._blocks[measure, x, y] = ModelPairScores(
                np.asarray(found.values, np.float64), *block_depths(found)
            )
        return self._blocks[measure, x, y]

    def same_winner(self, x: str, y: str) -> float:
        """The share of x's neurons whose best correlation in y's same layer is their own number."""
        result = self._having("maxcorr", x, y)
        if "best_match" not in result.dataset:
            raise LookupError("best_match")
        winner, value = (result.dataset[name] for name in ("best_match", "best_corr"))
        rows, columns = (
            np.flatnonzero(winner[f"{dim}_model"].values == model)
            for dim, model in (("x", x), ("y", y))
        )
        shares = []
        for place in zip(rows, columns):
            width = int(np.isfinite(value[place].values).sum())
            shares.append(np.mean(winner[place].values[:width] == np.arange(width)))
        return float(np.mean(shares))

    def _having(self, measure: str, x: str, y: str) -> SimilarityResult:
        for result in self._results:
            if measure in result.measures and {x, y} <= set(result.models):
                return result
        raise LookupError(f"{measure} of {x} and {y}")


def same_depth(scores: Scores, measure: str, x: str, y: str) -> float:
    """Mean over layers of x of the score with y's layer at the nearest relative depth."""
    values, x_depth, y_depth = scores.block(measure, x, y)
    nearest = nearest_depth(x_depth, y_depth)
    return float(np.mean(values[np.arange(len(values)), nearest]))


def both_ways(scores: Scores, measure: str, x: str, y: str) -> float:
    """`same_depth`, the mean of x by y and y by x."""
    return (same_depth(scores, measure, x, y) + same_depth(scores, measure, y, x)) / 2


def next_layer(scores: Scores, measure: str, model: str) -> float:
    """Mean score of neighbouring layers of a model, up and down."""
    values = scores.block(measure, model, model).values
    return float(np.mean([np.diagonal(values, 1), np.diagonal(values, -1)]))


def far_layers(scores: Scores, measure: str, model: str) -> float:
    """Mean score of layers at least half the model's depth apart."""
    values, depth, _ = scores.block(measure, model, model)
    return float(np.mean(values[np.abs(depth[:, None] - depth) >= 0.5]))


def half(scores: Scores, measure: str, x: str, y: str, upper: bool) -> float:
    """Mean score of the same layers of x and y in the lower or the upper half (middle: neither)."""
    values, depth, _ = scores.block(measure, x, y)
    chosen = depth > 0.5 if upper else depth < 0.5
    return float(np.mean(np.diagonal(values)[chosen]))


def lower_steps(scores: Scores, measure: str, model: str) -> float:
    """Mean score of each layer of the lower half with the next one up and the next one down."""
    values, depth, _ = scores.block(measure, model, model)
    count = int(np.sum(depth < 0.5))
    pairs = [(l, m) for l in range(count) for m in (l - 1, l + 1) if 0 <= m < len(values)]
    return float(np.mean([values[pair] for pair in pairs]))


def localisation(score: Callable[[str], float]) -> float:
    """(maxcorr - rotcorr) / (linreg - rotcorr), of a way to get a score by measure."""
    low = score("rotcorr")
    return (score("maxcorr") - low) / (score("linreg") - low)


def delocalised(score: Callable[[str], float]) -> float:
    """Positive where the localisation is below 1/2; linear, so that no small number divides."""
    return (score("rotcorr") + score("linreg")) / 2 - score("maxcorr")
