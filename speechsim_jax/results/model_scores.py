"""Scores of whole models, read off the map of a measure, and how sure they are."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from speechsim_jax.inference.contrast import Contrast
from speechsim_jax.inference.differences import FALSE_DISCOVERY_RATE, q_values
from speechsim_jax.results.depth import best_match
from speechsim_jax.results.result import SimilarityResult

Weights = Float[np.ndarray, "x y"]

NORMAL_HALF = 1.96
"""Half a 95 % interval in standard errors, of which there are many."""

_MOST_MEASURES = 3


class Estimate(NamedTuple):
    """A number and half its 95 % interval; NaN where that is not known."""

    value: float
    half: float = float("nan")

    def __str__(self) -> str:
        text = f"{self.value:.3f}".replace("-", "\N{MINUS SIGN}")
        return f"{text} ± {self.half:.2g}" if self.is_sure else text

    @property
    def is_sure(self) -> bool:
        """Whether the interval is known."""
        return bool(np.isfinite(self.half))

    @property
    def differs(self) -> bool | None:
        """Whether a difference is more than its interval; None where that is not known."""
        return bool(abs(self.value) > self.half) if self.is_sure else None


class ModelScores:
    """The scores of one measure between models; tracks count as none.

    Args:
        result: with the measure.
        measure: its name.

    Attributes:
        measure: its name.
        models: the models that have scores, in order.
        labels: of the rows and columns, such as "model/3".
        layers: of the rows and columns.
        depths: relative ones.
        values: the scores.
        sign: 1; -1 of a distance.
        closeness: the scores times the sign; NaN of a layer with itself.
        half: half the 95 % interval of each score, NaN where it is not known.
        has_sums: whether intervals of sums are known, not only of scores.
    """

    def __init__(self, result: SimilarityResult, measure: str):
        matrix = result.matrix(measure)
        on_heads = matrix.dims[0] == "x_attention"
        names = result.attention_representations if on_heads else result.representations
        self._result = result
        self._of_model = np.array([name.model for name in names], dtype=object)
        self.measure = measure
        self.models = tuple(
            model
            for model in dict.fromkeys(n.model for n in names)
            if model in result.compared_models
        )
        self.labels = list(map(str, names))
        self.layers = [name.layer for name in names]
        self.depths = result.relative_depths(names)
        self.values = np.asarray(matrix.values, dtype=np.float64)
        self.sign = 1 if result.definition(measure).get("higher_is_closer", True) else -1
        selves = np.eye(len(names), dtype=bool)
        self.closeness = np.where(selves, np.nan, self.sign * self.values)
        self.half = np.full_like(self.values, np.nan)
        if f"{measure}_se" in result.dataset:
            self.half = np.asarray(result.half_interval(measure).values, np.float64)
        self.has_sums = result.influence_of_rows(measure) is not None

    def places(self, model: str) -> np.ndarray:
        """Where the layers of a model are."""
        return np.flatnonzero(self._of_model == model)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of two models; of a model alone that with itself."""
        return list(combinations(self.models, 2)) or [(model, model) for model in self.models]

    def between(self, pairs: Sequence[tuple[str, str]]) -> Bool[np.ndarray, "x y"]:
        """The cells of pairs of models, in both directions, without layers with themselves."""
        mask = np.zeros(self.values.shape, dtype=bool)
        for x, y in pairs:
            for rows, columns in ((x, y), (y, x)):
                mask[np.ix_(self.places(rows), self.places(columns))] = True
        return mask & ~np.eye(len(mask), dtype=bool)

    def scored(self) -> Bool[np.ndarray, "x y"]:
        """The cells of two models, or of layers of one that is alone, that have a score."""
        return self.between(self.pairs) & np.isfinite(self.values)

    def matches(self, x: str, y: str) -> list[tuple[int, int]]:
        """The cells of the layers of x with their closest layers of y."""
        rows, columns = self.places(x), self.places(y)
        best = best_match(self.closeness[np.ix_(rows, columns)])
        return [(int(i), int(columns[j])) for i, j in zip(rows, best, strict=True) if j >= 0]

    def closest_cell(self, x: str, y: str) -> tuple[int, int]:
        """The cell of the greatest closeness of two models, which have scores."""
        cells = self.matches(x, y) + self.matches(y, x)
        return max(cells, key=lambda cell: self.closeness[cell])

    def of_cells(self, cells: Sequence[tuple[int, int]]) -> Weights:
        """The weights of the mean of some cells."""
        weights = np.zeros_like(self.values)
        for cell in cells:
            weights[cell] += 1 / len(cells)
        return weights

    def of_pair(self, x: str, y: str) -> Weights | None:
        """Weights of the mean of every layer with its closest of the other model, or None."""
        found = [self.matches(*pair) for pair in dict.fromkeys([(x, y), (y, x)])]
        known = [self.of_cells(cells) for cells in found if cells]
        return np.mean(known, axis=0) if known else None

    def distinguished(self, one: "RankedPair", others: Sequence["RankedPair"]) -> list[bool | None]:
        """Whether the mean score of each of these pairs of models differs from that of `one`.

        Where influences of rows are known, at a false discovery rate of 5 % of all together; else
        each by the interval of its difference. What cannot vary, as between copies of a model,
        differs unless it is 0. None where it is not known.
        """
        means = [self.of_pair(pair.x, pair.y) for pair in (one, *others)]
        of_one, *of_others = (weights for weights in means if weights is not None)
        assert len(of_others) == len(others)  # ranked pairs have means
        apart = [of_one - weights for weights in of_others]
        if not self.has_sums:
            return [self.estimate(weights).differs for weights in apart]
        found = [self._contrast(weights) for weights in apart]
        q = q_values(np.array([contrast.p for contrast in found]))

        def differs(contrast: Contrast, of: float) -> bool | None:
            if contrast.standard_error == 0:
                return contrast.difference != 0
            return bool(of <= FALSE_DISCOVERY_RATE) if np.isfinite(of) else None

        return list(map(differs, found, q.tolist()))

    def estimate(self, weights: Weights) -> Estimate:
        """A weighted sum of scores.

        Its interval is of the sum where influences of rows are known; else that of scores that
        all move together, which is at least as wide.
        """
        used = weights != 0
        value = float(self.values[used] @ weights[used])
        if not self.has_sums:
            return Estimate(value, float(self.half[used] @ np.abs(weights[used])))
        low, high = self._contrast(weights).interval()
        return Estimate(value, (high - low) / 2)

    def _contrast(self, weights: Weights) -> Contrast:
        labelled = self._result.matrix(self.measure).copy(data=weights)
        return self._result.contrast(self.measure, weights=labelled)


class RankedPair(NamedTuple):
    """Two models and the mean score of every layer with its closest of the other."""

    x: str
    y: str
    mean: Estimate


def ranked_pairs(scores: ModelScores, untrained: Sequence[str] = ()) -> list[RankedPair]:
    """All pairs of models, closest first; of trained ones where there are two.

    Args:
        scores: of one measure.
        untrained: models that are left out.
    """
    weighted = ((*pair, scores.of_pair(*pair)) for pair in scores.pairs)
    ranked = [
        RankedPair(x, y, scores.estimate(weights)) for x, y, weights in weighted
        if weights is not None
    ]  # fmt: skip
    ranked = trained_pairs(ranked, untrained)
    return sorted(ranked, key=lambda pair: -scores.sign * pair.mean.value)


def trained_pairs(pairs: Sequence[RankedPair], untrained: Sequence[str]) -> list[RankedPair]:
    """The pairs of trained models; all if there are none.

    Args:
        pairs: of models.
        untrained: models whose weights are random.
    """
    return [pair for pair in pairs if not {pair.x, pair.y} & set(untrained)] or list(pairs)


def untrained_models(result: SimilarityResult) -> list[str]:
    """The models whose weights are random."""
    known = result.attributes.get("models")
    known = known if isinstance(known, dict) else {}
    sources = {m: known[m].get("source") for m in known if isinstance(known[m], dict)}
    return [m for m in result.models if f"{sources.get(m) or m}".startswith("random:")]


def lead_measures(result: SimilarityResult) -> list[str]:
    """The first measure of each level; without measures of layers, of attention heads."""
    of_layers = [name for name in result.measures if result.matrix(name).dims[0] == "x"]
    first: dict[str, str] = {}
    for name in of_layers or result.measures:
        first.setdefault(str(result.definition(name).get("level")), name)
    return list(first.values())[:_MOST_MEASURES]
