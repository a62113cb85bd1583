"""Statistics of two models from their layer-by-layer scores: which layers are compared."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from speechsim_jax.results.depth import block_depths, nearest_depth
from speechsim_jax.results.result import SimilarityResult


class ModelPairScores(NamedTuple):
    """Scores of the layers of x (rows) and y (columns), and their relative depths in [0, 1]."""

    values: Float[np.ndarray, "x y"]
    x_depth: Float[np.ndarray, " x"]
    y_depth: Float[np.ndarray, " y"]


class Scores:
    """Scores of one or several results by measure and two models.

    Args:
        results: The first that has a measure and both models is used.
    """

    def __init__(self, results: Sequence[SimilarityResult]):
        self._results = results
        self._blocks: dict[tuple[str, str, str], ModelPairScores] = {}

    def block(self, measure: str, x: str, y: str) -> ModelPairScores:
        """Scores of the layers of x and y; raises LookupError if no result has them."""
        if (measure, x, y) not in self._blocks:
            block = self._result_with(measure, x, y).block(measure, x, y)
            self._blocks[measure, x, y] = ModelPairScores(
                np.asarray(block.values, np.float64), *block_depths(block)
            )
        return self._blocks[measure, x, y]

    def same_winner(self, x: str, y: str) -> float:
        """Share of x's neurons whose best match in y's same layer has the same index.

        Raises:
            LookupError: No result has both models with the matches of maxcorr.
        """
        result = self._result_with("maxcorr", x, y)
        if "best_match" not in result.dataset:
            raise LookupError("best_match")
        winner, value = (result.dataset[name] for name in ("best_match", "best_corr"))
        rows, columns = (
            np.flatnonzero(winner[f"{dim}_model"].values == model)
            for dim, model in (("x", x), ("y", y))
        )
        shares = []
        for cell in zip(rows, columns):
            width = int(np.isfinite(value[cell].values).sum())
            shares.append(np.mean(winner[cell].values[:width] == np.arange(width)))
        return float(np.mean(shares))

    def _result_with(self, measure: str, x: str, y: str) -> SimilarityResult:
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
    """Mean of `same_depth` of (x, y) and of (y, x), which differ for asymmetric measures."""
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
    """Mean score of the same layers of x and y in the lower or the upper half of the depth.

    The middle layer belongs to neither.
    """
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
    """(maxcorr - rotcorr) / (linreg - rotcorr), of the scores by measure."""
    low = score("rotcorr")
    return (score("maxcorr") - low) / (score("linreg") - low)


def delocalised(score: Callable[[str], float]) -> float:
    """(rotcorr + linreg) / 2 - maxcorr: positive where the localisation is below 1/2.

    Linear in the scores, so that a small denominator cannot blow it up.
    """
    return (score("rotcorr") + score("linreg")) / 2 - score("maxcorr")
