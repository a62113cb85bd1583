"""Nearest neighbours and dissimilarities of rows, on the frame sample.

Rows are compared as they are: columns are neither centred nor scaled, and dead neurons stay.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Int, Int16, Int64

from speechsim_jax.inference.half_samples import of_groups, signs
from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.measures.base import Measure, SamplePair
from speechsim_jax.statistics.sample import SampledRepresentation

# The neighbours that `mutual_knn` compares.
NEIGHBOURS = 10
# Cosines and correlations that agree to so many decimals are ties: what follows is rounding, which
# would otherwise order rows that are equal.
_DECIMALS = 12
# How finely the ranks of dissimilarities are distinguished where rows move them.
_BINS = 256
# The neighbours of a row within half of the sample are first looked for among so many.
_CLOSE = 160


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
    order, candidates = _ordered(representation)
    n, k = len(order), NEIGHBOURS
    return np.where((candidates >= k)[:, None], order[:, :k], -1) if n > k else np.full((n, k), -1)


def _ordered(
    representation: SampledRepresentation,
) -> tuple[Int64[np.ndarray, "row row"], Int64[np.ndarray, " row"]]:
    """All rows by descending cosine with each row, and how many of them, the first, may be counted.

    The row itself and those of the same utterance may not, where utterances are known.
    """
    x = _unit(representation.rows)
    far = -np.round(x @ x.T, _DECIMALS)
    known = representation.utterance >= 0
    excluded = (representation.utterance[:, None] == representation.utterance) & known
    np.fill_diagonal(excluded, True)
    far[excluded] = np.inf
    return np.argsort(far, axis=1, kind="stable"), len(x) - excluded.sum(axis=1)


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
    return float(_shared(x[counted], y[counted]).mean()) if counted.any() else float("nan")


def _shared(x: Int[np.ndarray, "row k"], y: Int[np.ndarray, "row k"]) -> Float[np.ndarray, " row"]:
    """The share of x's neighbours that y's contain; those of -1 are none."""
    same = (x[:, :, None] == y[:, None, :]) & (x >= 0)[:, :, None]
    return same.sum(axis=(1, 2)) / np.maximum((x >= 0).sum(axis=1), 1)


def neighbours_in_halves(
    representation: SampledRepresentation,
) -> Int16[np.ndarray, "way row k"]:
    """The nearest rows of each row's half, for each way to halve the sample; -1 where few are.

    10 of just half of the sample, and in proportion of more or less: the score depends on the share
    of rows that are neighbours.
    """
    order, candidates = _ordered(representation)
    group, n = representation.group, len(order)
    ways = signs(int(group.max()) + 1)[:, group]
    share = np.mean(ways > 0, axis=1, keepdims=True)
    counts = np.round(2 * NEIGHBOURS * np.where(ways > 0, share, 1 - share)).astype(int)
    nearest = np.full((*ways.shape, counts.max(initial=1)), -1, np.int16)
    for way, (side, k) in enumerate(zip(ways, counts)):
        rows = np.arange(n)
        # Most rows have enough of their half among those that are close.
        for depth in (_CLOSE, n):
            among = order[rows, :depth]
            taken = side[among] == side[rows, None]
            taken &= np.arange(among.shape[1]) < candidates[rows, None]
            place = np.cumsum(taken, axis=1)
            taken &= place <= k[rows, None]
            enough = taken.sum(axis=1) == k[rows]
            row, column = np.nonzero(taken & enough[:, None])
            nearest[way, rows[row], place[row, column] - 1] = among[row, column]
            rows = rows[~enough]
    return nearest


def mutual_knn_influence(pair: SamplePair) -> Influence:
    """Of each group of rows, by scores of halves of the sample, which are independent.

    Leaving out a group says too much: others take the place of each neighbour that is lost.
    """
    x, y = (representation.once(neighbours_in_halves) for representation in (pair.x, pair.y))
    group = pair.x.group
    groups = int(group.max()) + 1
    differences = []
    for side, of_x, of_y in zip(signs(groups)[:, group], x, y, strict=True):
        shared, counted = _shared(of_x, of_y), of_x[:, 0] >= 0
        first, second = counted & (side > 0), counted & (side < 0)
        share = float(np.mean(side > 0))
        difference = 0.0
        if 0 < share < 1:
            known = first.any() and second.any()
            difference = shared[first].mean() - shared[second].mean() if known else np.nan
        differences.append(2 * share * (1 - share) * difference)
    sums = of_groups(np.array(differences), groups)
    return (sums * pair.rows / np.bincount(group))[group]


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


@dataclasses.dataclass(frozen=True)
class RowsOfRanks:
    """What the influence of rows on `rsa` reads of one representation.

    Attributes:
      ranks: as `ranked_dissimilarities`.
      square: the ranks of all pairs of rows, of variance 1; 0 on the diagonal.
      bins: of each pair above the diagonal, where its rank is, 0 to `_BINS` - 1.
      shares: of each row's pairs that are in each bin.
      scale: the standard deviation of ranks between 0 and 1.
    """

    ranks: Float[np.ndarray, " entry"]
    square: Float32[np.ndarray, "row row"]
    bins: Int16[np.ndarray, " entry"]
    shares: Float32[np.ndarray, "row bin"]
    scale: float


def rows_of_ranks(representation: SampledRepresentation) -> RowsOfRanks:
    """The ranks of the pairs of each row; NaN where they are all the same."""
    ranks = representation.once(ranked_dissimilarities)
    n, entries = len(representation.utterance), len(ranks)
    # Ranks ascend by 1 / entries between 0 and 1, whatever ties share.
    _, counts = np.unique(ranks, return_counts=True)
    between = (np.cumsum(counts) - counts / 2) / entries
    scale = float(np.sqrt(counts @ np.square(between - 0.5) / entries))
    standard = ranks * np.sqrt(entries)
    place = np.nan_to_num(standard) * scale + 0.5
    bins = np.clip((place * _BINS).astype(np.int16), 0, _BINS - 1)
    rows, columns = np.triu_indices(n, 1)
    square = np.zeros((n, n), np.float32)
    square[rows, columns] = square[columns, rows] = standard
    counted = np.zeros(n * _BINS)
    for ends in (rows, columns):
        counted += np.bincount(ends * _BINS + bins, minlength=n * _BINS)
    shares = (counted.reshape(n, _BINS) / max(n - 1, 1)).astype(np.float32)
    return RowsOfRanks(ranks, square, bins, shares, scale)


def _mean_products(x: SampledRepresentation, y: SampledRepresentation) -> Float[np.ndarray, " row"]:
    """Influence of each row on the mean product of the ranks of x and of y, scaled to variance 1.

    A pair of rows has a product, and moves the ranks of all pairs that are further apart by one.
    """
    one, other = x.once(rows_of_ranks), y.once(rows_of_ranks)
    n = len(one.square)
    total = np.einsum("ij,ij->i", one.square, other.square).astype(np.float64) / (n - 1)
    for moved, rest in ((one, other), (other, one)):
        sums = np.bincount(moved.bins, weights=rest.ranks, minlength=_BINS)
        further = np.cumsum(sums[::-1])[::-1] - sums / 2
        total += moved.shares @ further / (moved.scale * np.sqrt(len(rest.ranks)))
    return 2 * (total - total.mean())


def _mean_squares(representation: SampledRepresentation) -> Float[np.ndarray, " row"]:
    """Influence of each row on the variance of the ranks: 0 without ties."""
    return _mean_products(representation, representation)


def rsa_influence(pair: SamplePair) -> Influence:
    """Of each row through the ranks of its pairs, and through those of others, which it moves."""
    own = pair.x.once(_mean_squares) + pair.y.once(_mean_squares)
    return _mean_products(pair.x, pair.y) - rsa(pair) / 2 * own


MEASURES = (
    Measure(
        name="mutual_knn",
        level="layer",
        summary="share of the 10 nearest neighbours outside the utterance that x and y agree on",
        function=mutual_knn,
        influence=mutual_knn_influence,
        grouped=True,
        statistic="sample",
        symmetric=True,
        limits=(0.0, 1.0),
        by_variance=True,
        reference="Huh et al. 2024 (arXiv 2405.07987)",
    ),
    Measure(
        name="rsa",
        level="layer",
        summary="Spearman correlation of the dissimilarities (1 - Pearson) between rows",
        function=rsa,
        influence=rsa_influence,
        statistic="sample",
        symmetric=True,
        limits=(-1.0, 1.0),
        by_variance=True,
        reference="Kriegeskorte et al. 2008 (Front. Syst. Neurosci. 2:4)",
    ),
)
