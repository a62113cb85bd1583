"""Nearest neighbours and dissimilarities of rows, on the frame sample.

Rows are compared as they are: columns are neither centred nor scaled, and dead neurons stay.
"""

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.measures.base import Measure, SamplePair
from speechsim_jax.statistics.sample import SampledRepresentation

# The neighbours that `mutual_knn` compares.
NEIGHBOURS = 10
# Cosines and correlations that agree to so many decimals are ties: what follows is rounding, which
# would otherwise order rows that are equal.
_DECIMALS = 12


def upper(matrix: Float[np.ndarray, "row row"]) -> Float[np.ndarray, " entry"]:
    """The entries above the diagonal, row by row."""
    return matrix[np.triu(np.ones(matrix.shape, bool), 1)]


def _unit(x: Float[np.ndarray, "row neuron"]) -> Float[np.ndarray, "row neuron"]:
    """Rows scaled to length 1; a row of zeros stays, so it is orthogonal to all others."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def neighbours(representation: SampledRepresentation) -> Int64[np.ndarray, "row k"]:
    """The 10 rows of the largest cosine with each row; -1 where there are fewer.

    The row itself and those of the same utterance are excluded, where utterances are known. Ties
    are in the order of the rows.
    """
    x, k = _unit(representation.rows), NEIGHBOURS
    n = len(x)
    far = -np.round(x @ x.T, _DECIMALS)
    known = representation.utterance >= 0
    excluded = (representation.utterance[:, None] == representation.utterance) & known
    np.fill_diagonal(excluded, True)
    far[excluded] = np.inf
    nearest = np.argsort(far, axis=1, kind="stable")[:, :k]
    enough = n - excluded.sum(axis=1) >= k
    return np.where(enough[:, None], nearest, -1) if n > k else np.full((n, k), -1)


def mutual_knn(pair: SamplePair) -> float:
    """Mean over rows of the share of their k = 10 nearest neighbours that are the same in x and y.

    |N_x(i) & N_y(i)| / k with cosine similarity, columns not centred. Rows of the same utterance
    are not counted as neighbours, because neighbours in time would dominate; where utterances are
    not known only the row itself is excluded. In [0, 1], symmetric; unrelated representations with
    independent rows score k / (n - 1). A row with fewer than k candidates is left out; NaN if none
    is left (n <= k, or one utterance only). A row of zeros has cosine 0 with all. Source: Huh et
    al. 2024 (arXiv 2405.07987), appendix A; the exclusion is ours.
    """
    x, y = (representation.once(neighbours) for representation in (pair.x, pair.y))
    counted = x[:, 0] >= 0
    if not counted.any():
        return float("nan")
    shared = (x[counted, :, None] == y[counted, None, :]).sum()
    return float(shared / (NEIGHBOURS * counted.sum()))


def ranked_dissimilarities(representation: SampledRepresentation) -> Float[np.ndarray, " entry"]:
    """Ranks of 1 - Pearson correlation over all pairs of rows, scaled to mean 0 and length 1.

    Ties share their mean rank. A row whose neurons are all equal has correlation 0 with all. All
    NaN where every dissimilarity is the same.
    """
    x = representation.rows
    constant = np.ptp(x, axis=1) == 0
    x = np.where(constant[:, None], 0, x - x.mean(axis=1, keepdims=True))
    x = _unit(x)
    values = np.round(upper(1 - x @ x.T), _DECIMALS)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return np.full(len(group), np.nan)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def rsa(pair: SamplePair) -> float:
    """Spearman correlation of the dissimilarities 1 - Pearson(row i, row j) of x and of y.

    Over the pairs i < j, columns not centred. In [-1, 1], symmetric; invariant to scale and to a
    shift common to all neurons. A constant row has correlation 0 with all. NaN if a
    representation's dissimilarities are all the same, so for n < 3 and for a representation of one
    neuron. Source: Kriegeskorte et al. 2008 (Frontiers in Systems Neuroscience 2:4).
    """
    ranks = [representation.once(ranked_dissimilarities) for representation in (pair.x, pair.y)]
    return float(ranks[0] @ ranks[1]) if pair.rows > 1 else float("nan")


MEASURES = (
    Measure(
        name="mutual_knn",
        level="layer",
        summary="share of the 10 nearest neighbours outside the utterance that x and y agree on",
        function=mutual_knn,
        statistic="sample",
        symmetric=True,
        limits=(0.0, 1.0),
        reference="Huh et al. 2024 (arXiv 2405.07987)",
    ),
    Measure(
        name="rsa",
        level="layer",
        summary="Spearman correlation of the dissimilarities (1 - Pearson) between rows",
        function=rsa,
        statistic="sample",
        symmetric=True,
        limits=(-1.0, 1.0),
        reference="Kriegeskorte et al. 2008 (Front. Syst. Neurosci. 2:4)",
    ),
)
