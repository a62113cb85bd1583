"""Statistics of two models from their layer-by-layer scores: which layers are compared."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.contrast import Contrast
from speechsim_jax.inference.standard_errors import (
    SampledClusters,
    effective_degrees,
    standard_error,
)
from speechsim_jax.results.depth import block_depths, nearest_depth
from speechsim_jax.results.result import SimilarityResult

Number = float | np.ndarray
"""A statistic; of `MovedScores` an array [row]."""

# Of scores along their influences: large against rounding errors, small against what bends.
_STEP = 1e-5


class ModelPairScores(NamedTuple):
    """Scores of the layers of x (rows) and y (columns), and their relative depths in [0, 1]."""

    values: Float[np.ndarray, "*row x y"]
    x_depth: Float[np.ndarray, " x"]
    y_depth: Float[np.ndarray, " y"]


class Scores:
    """Scores of one or several results by measure and two models.

    Args:
        results: The first that has a measure and both models is used.
        heldout: Whether held-out scores are read in the place of scores.
    """

    def __init__(self, results: Sequence[SimilarityResult], heldout: bool = False):
        self._results = results
        self._ending = "_heldout" if heldout else ""
        self._blocks: dict[tuple[str, str, str], ModelPairScores] = {}

    def block(self, measure: str, x: str, y: str) -> ModelPairScores:
        """Scores of the layers of x and y; raises LookupError if no result has them."""
        if (measure, x, y) not in self._blocks:
            result = self._result_with(measure, x, y)
            if measure + self._ending not in result.dataset:
                raise LookupError(f"{measure}{self._ending} of {x} and {y}")
            block = result.block(measure + self._ending, x, y)
            self._blocks[measure, x, y] = ModelPairScores(
                np.asarray(block.values, np.float64), *block_depths(block)
            )
        return self._blocks[measure, x, y]

    def same_winner(self, x: str, y: str) -> float:
        """Share of x's neurons whose best match in y's same layer has the same index.

        Raises:
            LookupError: No result has both models with the matches of maxcorr, or held-out scores
                are read, which have none.
        """
        if self._ending:
            raise LookupError("held-out matches")
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


class MovedScores(Scores):
    """Scores moved by a step along their influences: arrays [row, x, y].

    Args:
        results: As of `Scores`.
        step: Of each score along its influences.

    Attributes:
        clusters: Of the rows, once there are scores.
    """

    def __init__(self, results: Sequence[SimilarityResult], step: float):
        super().__init__(results)
        self._step = step
        self.clusters: SampledClusters | None = None

    def block(self, measure: str, x: str, y: str) -> ModelPairScores:
        """Moved scores of the layers of x and y.

        Raises:
            LookupError: No result has them and their influences on the same rows as other scores.
        """
        scores = super().block(measure, x, y)
        result = self._result_with(measure, x, y)
        table = result.influence_of_rows(measure)
        if table is None:
            raise LookupError(f"standard errors of {measure}")
        known = self.clusters or table.clusters
        same_rows = known.names == table.clusters.names
        if not same_rows or not np.array_equal(known.kept, table.clusters.kept):
            raise LookupError(f"influences on {measure} of the same rows as on others")
        self.clusters = table.clusters
        labels = result.block(measure, x, y)
        rows, columns = (
            np.array([table.labels.index(str(label)) for label in labels[dim].values])
            for dim in labels.dims
        )
        at_x, at_y = np.meshgrid(rows, columns, indexing="ij")
        influence = table.rows_of(measure, at_x.ravel(), at_y.ravel())
        moved = scores.values + self._step * influence.reshape(-1, *scores.values.shape)
        return scores._replace(values=moved)

    def same_winner(self, x: str, y: str) -> float:
        """Raises LookupError: which neuron wins jumps, and has no influences."""
        raise LookupError("standard errors of the winners")


def with_error(
    statistic: Callable[[Scores], Number], results: Sequence[SimilarityResult]
) -> Contrast:
    """A statistic with its standard error, by the influences on the scores that it is made of.

    Args:
        statistic: Differentiable in the scores.
        results: With influences of rows.

    Returns:
        NaN for the standard error where a score has none.

    Raises:
        LookupError: No result has the scores.
    """
    value = float(statistic(Scores(results)))
    higher, lower = (MovedScores(results, step) for step in (_STEP, -_STEP))
    try:
        influence = np.asarray(statistic(higher) - statistic(lower)) / (2 * _STEP)
    except LookupError:
        return Contrast(value, math.nan, math.nan)
    assert higher.clusters is not None
    error, relative = standard_error(higher.clusters.summarise(influence), higher.clusters)
    degrees = effective_degrees(higher.clusters.degrees, relative)
    return Contrast(value, float(error), float(degrees))


def same_depth(scores: Scores, measure: str, x: str, y: str) -> Number:
    """Mean over layers of x of the score with y's layer at the nearest relative depth."""
    values, x_depth, y_depth = scores.block(measure, x, y)
    nearest = nearest_depth(x_depth, y_depth)
    return np.mean(values[..., np.arange(len(x_depth)), nearest], axis=-1)


def both_ways(scores: Scores, measure: str, x: str, y: str) -> Number:
    """Mean of `same_depth` of (x, y) and of (y, x), which differ for asymmetric measures."""
    return (same_depth(scores, measure, x, y) + same_depth(scores, measure, y, x)) / 2


def next_layer(scores: Scores, measure: str, model: str) -> Number:
    """Mean score of neighbouring layers of a model, up and down."""
    values = scores.block(measure, model, model).values
    above, below = (np.diagonal(values, offset, -2, -1) for offset in (1, -1))
    return np.mean((above + below) / 2, axis=-1)


def far_layers(scores: Scores, measure: str, model: str) -> Number:
    """Mean score of layers at least half the model's depth apart."""
    values, depth, _ = scores.block(measure, model, model)
    return np.mean(values[..., np.abs(depth[:, None] - depth) >= 0.5], axis=-1)


def half(scores: Scores, measure: str, x: str, y: str, upper: bool) -> Number:
    """Mean score of the same layers of x and y in the lower or the upper half of the depth.

    The middle layer belongs to neither.
    """
    values, depth, _ = scores.block(measure, x, y)
    chosen = depth > 0.5 if upper else depth < 0.5
    return np.mean(np.diagonal(values, 0, -2, -1)[..., chosen], axis=-1)


def lower_steps(scores: Scores, measure: str, model: str) -> Number:
    """Mean score of each layer of the lower half with the next one up and the next one down."""
    values, depth, _ = scores.block(measure, model, model)
    count = int(np.sum(depth < 0.5))
    pairs = [(l, m) for l in range(count) for m in (l - 1, l + 1) if 0 <= m < len(depth)]
    return np.mean(values[(..., *np.transpose(pairs))], axis=-1)


def localisation(score: Callable[[str], Number]) -> Number:
    """(maxcorr - rotcorr) / (linreg - rotcorr), of the scores by measure."""
    low = score("rotcorr")
    return (score("maxcorr") - low) / (score("linreg") - low)


def delocalised(score: Callable[[str], Number]) -> Number:
    """(rotcorr + linreg) / 2 - maxcorr: positive where the localisation is below 1/2.

    Linear in the scores, so that a small denominator cannot blow it up.
    """
    return (score("rotcorr") + score("linreg")) / 2 - score("maxcorr")
