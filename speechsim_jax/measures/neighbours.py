"""Which rows are near which, on the frame sample: nearest neighbours and dissimilarities.

Rows are compared as they are: columns are neither centred nor scaled, and dead neurons stay.
"""

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.measures.base import Measure, SamplePair
from speechsim_jax.statistics.sample import SampledRepresentation

# The neighbours that `mutual_knn` compares.
NEIGHBOURS = 10
# Cosines and correlations that agree to so many decimals are ties: below is rounding, which would
# otherwise order rows that are equal.
_DECIMALS = 12


def upper(matrix: Float[np.ndarray, "row row"]) -> Float[np.ndarray, " entry"]:
    """What is above the diagonal, row by row."""
    return matrix[np.triu(np.ones(matrix.shape, bool), 1)]


def _unit(x: Float[np.ndarray, "row neuron"]) -> Float[np.ndarray, "row neuron"]:
    """Rows to length 1; a row of zeros stays, and so is orthogonal to every other."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def neighbours(
    representation: SampledRepresentation, k: int, exclude_within_utterance: bool
) -> Int64[np.ndarray, "row k"]:
    """The k rows of the largest cosine with each row, itself left out; -1 where there are fewer.

    Ties go by the order of the rows.
    """
    x = _unit(representation.rows)
    n = len(x)
    far = -np.round(x @ x.T, _DECIMALS)
    barred = np.eye(n, dtype=bool)
    if exclude_within_utterance:
        known = representation.utterance >= 0
        barred |= (representation.utterance[:, None] == representation.utterance) & known
    far[barred] = np.inf
    nearest = np.argsort(far, axis=1, kind="stable")[:, :k]
    enough = n - barred.sum(axis=1) >= k
    return np.where(enough[:, None], nearest, -1) if n > k else np.full((n, k), -1)


def mutual_knn(
    pair: SamplePair, k: int = NEIGHBOURS, exclude_within_utterance: bool = True
) -> float:
    """Mean over rows of the share of their k nearest neighbours that are the same in x and y.

    |N_x(i) & N_y(i)| / k with cosine similarity, columns not centred. Rows of the same utterance
    are no neighbours (`exclude_within_utterance`), for neighbours in time are otherwise the answer;
    where utterances are not known nothing is excluded but the row itself. In [0, 1], symmetric;
    unrelated representations with independent rows score k / (n - 1). A row with fewer than k
    candidates is left out; NaN if none is left (n <= k, or one utterance only). A row of zeros has
    cosine 0 with all. Source: Huh et al. 2024 (arXiv 2405.07987), appendix A; the exclusion is
    ours.
    """
    x, y = (n.once(neighbours, k, exclude_within_utterance) for n in (pair.x, pair.y))
    counted = x[:, 0] >= 0
    if not counted.any():
        return float("nan")
    shared = (x[counted, :, None] == y[counted, None, :]).sum()
    return float(shared / (k * counted.sum()))


def ranked_dissimilarities(representation: SampledRepresentation) -> Float[np.ndarray, " entry"]:
    """Ranks of 1 - Pearson correlation over all pairs of rows, to mean 0 and length 1.

    Ties share their mean rank. A row whose neurons are all equal has correlation 0 with all. All
    NaN where every dissimilarity is the same.
    """
    x = representation.rows
    constant = np.ptp(x, axis=1) == 0
    x = np.where(constant[:, None], 0, x - x.mean(axis=1, keepdims=True))
    x = _unit(x)
    values = np.round(upper(1 - x @ x.T), _DECIMALS)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return np.full(len(place), np.nan)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
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
