"""The measures in plain numpy and float64, pair by pair, as their definitions read.

Independent of the package: what `accuracy` checks scores on real data against. `paper` is also what
`scores` and `published` time: the loop that somebody would write who has moments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

Scores = dict[str, tuple[float, float]]
"""By measure: (x, y) and (y, x)."""

_SHARE = 0.99  # of the variance, below which CCA takes directions
_NEIGHBOURS = 10


class Whitening(NamedTuple):
    """Directions of unit variance, from the largest variance to the smallest.

    Attributes:
        directions: `[neuron, direction]`.
        leading: How many together hold less than 99 % of the variance, at least one.
    """

    directions: np.ndarray
    leading: int

    def first(self, more: int = 0) -> np.ndarray:
        """The leading directions, and `more` of those that follow."""
        return self.directions[:, : self.leading + more]


class Summary(NamedTuple):
    """One representation, from its moments.

    Attributes:
        std: Of each neuron.
        correlation: `[neuron, neuron]`.
        norm: Frobenius norm of the scatter matrix.
        whitening: Of z-scored neurons.
    """

    std: np.ndarray
    correlation: np.ndarray
    norm: float
    whitening: Whitening


def summary(scatter: np.ndarray, rows: int, tolerance: float) -> Summary:
    """From the scatter matrix Xc'Xc; eigenvalues up to `tolerance` times the largest count as 0."""
    std = np.sqrt(np.diagonal(scatter) / rows)
    correlation = scatter / rows / np.outer(std, std)
    norm = float(np.linalg.norm(scatter))
    return Summary(std, correlation, norm, _whitening(correlation, tolerance))


def _whitening(covariance: np.ndarray, tolerance: float) -> Whitening:
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = np.sum(values > tolerance * values[0])
    values, vectors = values[:rank], vectors[:, :rank]
    leading = max(1, int(np.sum(np.cumsum(values) / values.sum() < _SHARE)))
    return Whitening(vectors / np.sqrt(values), leading)


def paper(x: Summary, y: Summary, scatter: np.ndarray, rows: int) -> Scores:
    """Every measure of the paper, from the scatter matrix Xc'Yc and the summaries."""
    lincka = float(np.sum(scatter**2) / (x.norm * y.norm))
    rxy = scatter / rows / np.outer(x.std, y.std)
    wx, wy = x.whitening, y.whitening
    u, rho, vt = np.linalg.svd(wx.first().T @ rxy @ wy.first(), full_matrices=False)
    weights_x = np.abs((wx.first() @ u).T @ x.correlation * x.std).sum(axis=1)
    weights_y = np.abs((wy.first() @ vt.T).T @ y.correlation * y.std).sum(axis=1)
    svcca = float(rho.mean())
    return {
        "maxcorr": (float(np.abs(rxy).max(1).mean()), float(np.abs(rxy).max(0).mean())),
        "linreg": (
            float(np.linalg.norm(rxy @ wy.directions, axis=1).mean()),
            float(np.linalg.norm(rxy.T @ wx.directions, axis=1).mean()),
        ),
        "lincka": (lincka, lincka),
        "svcca": (svcca, svcca),
        "pwcca": (
            float(weights_x @ rho / weights_x.sum()),
            float(weights_y @ rho / weights_y.sum()),
        ),
    }


def on_moments(representations: Sequence[np.ndarray], tolerance: float) -> dict[str, np.ndarray]:
    """All measures on moments but `rotcorr`, from all rows.

    Args:
        representations: `[row, neuron]` each.
        tolerance: The smallest eigenvalue that counts, relative to the largest.

    Returns:
        Matrices [x, y] by measure, NaN on the diagonal.
    """
    centred = [x - x.mean(0) for x in (x.astype(np.float64) for x in representations)]
    rows, count = len(centred[0]), len(centred)
    summaries = [summary(x.T @ x, rows, tolerance) for x in centred]
    whitenings = [_whitening(x.T @ x / rows, tolerance) for x in centred]
    matrices: dict[str, np.ndarray] = {}
    for i in range(count):
        for j in range(i + 1, count):
            scatter = centred[i].T @ centred[j]
            scores = paper(summaries[i], summaries[j], scatter, rows)
            scores |= _symmetric(centred[i], centred[j], scatter)
            scores |= _centred_cca(whitenings[i], whitenings[j], scatter / rows)
            scores |= _other(summaries[i], summaries[j], scatter / rows)
            for name, values in scores.items():
                matrix = matrices.setdefault(name, np.full((count, count), np.nan))
                matrix[i, j], matrix[j, i] = values
    return matrices


def _symmetric(x: np.ndarray, y: np.ndarray, scatter: np.ndarray) -> Scores:
    """Procrustes and debiased CKA of centred rows."""
    cosine = float(np.linalg.norm(scatter, "nuc") / (np.linalg.norm(x) * np.linalg.norm(y)))
    angle, debiased = float(np.arccos(cosine)), _cka_debiased(x, y)
    return {
        "procrustes": (cosine, cosine),
        "procrustes_distance": (angle, angle),
        "lincka_debiased": (debiased, debiased),
    }


def _cka_debiased(x: np.ndarray, y: np.ndarray) -> float:
    """From Gram matrices K = XX' of centred rows: rows of K sum to 0, and |X'Y|^2 is tr KL."""

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        diagonals = np.sum(a**2, 1), np.sum(b**2, 1)
        trace = np.sum((a.T @ b) ** 2) - diagonals[0] @ diagonals[1]
        return _u_statistic(trace, (-diagonals[0], -diagonals[1]))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def _u_statistic(trace: float, row_sums: tuple[np.ndarray, np.ndarray]) -> float:
    """Song et al. 2012, equation 5, up to 1 / (n (n - 3)).

    `trace` is tr KL, and `row_sums` are those of K and L, all without the diagonals of K and L.
    """
    k, l = row_sums
    n = len(k)
    return trace + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l) / (n - 2)


def _angles(x: np.ndarray, covariance: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles between whitened directions."""
    return np.linalg.svd(x.T @ covariance @ y, compute_uv=False)


def _centred_cca(x: Whitening, y: Whitening, covariance: np.ndarray) -> Scores:
    """SVCCA of centred neurons, cut below and above 99 % of the variance."""
    below, above = (float(_angles(x.first(k), covariance, y.first(k)).mean()) for k in (0, 1))
    return {"svcca_centred": (below, below), "svcca_centred_ge": (above, above)}


def _other(x: Summary, y: Summary, covariance: np.ndarray) -> Scores:
    """The other measures that are functions of correlations."""
    rxy = covariance / np.outer(x.std, y.std)
    zscored = np.sum(rxy**2) / (np.linalg.norm(x.correlation) * np.linalg.norm(y.correlation))
    match = scipy.optimize.linear_sum_assignment(np.abs(rxy), maximize=True)
    every = _angles(x.whitening.directions, rxy, y.whitening.directions)
    above = _angles(x.whitening.first(1), rxy, y.whitening.first(1)).mean()
    symmetric = {
        "matchcorr": np.abs(rxy)[match].mean(),
        "lincka_zscored": zscored,
        "svcca_ge": above,
        "mean_cca": every.mean(),
        "mean_cca2": (every**2).mean(),
    }
    directed = [_directed(*sides) for sides in ((x, y, rxy), (y, x, rxy.T))]
    scores = {name: (directed[0][name], directed[1][name]) for name in directed[0]}
    return scores | {name: (float(value), float(value)) for name, value in symmetric.items()}


def _directed(x: Summary, y: Summary, rxy: np.ndarray) -> dict[str, float]:
    r2 = np.sum((rxy @ y.whitening.directions) ** 2, 1)
    left = x.whitening.first()
    u, rho, _ = np.linalg.svd(left.T @ rxy @ y.whitening.first(), full_matrices=False)
    weights = np.abs((left @ u).T @ x.correlation).sum(1)
    return {
        "linreg_r2": r2.mean(),
        "linreg_r2_global": r2 @ x.std**2 / np.sum(x.std**2),
        "pwcca_zscored": weights @ rho / weights.sum(),
    }


class Neighbourhood(NamedTuple):
    """The rows of one representation, compared with each other.

    Attributes:
        kernel: Gaussian, its bandwidth the median distance.
        nearest: The nearest rows of each row.
        ranks: Of all pairwise dissimilarities.
    """

    kernel: np.ndarray
    nearest: list[set[int]]
    ranks: np.ndarray


def on_sample(representations: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The measures that compare rows with rows; any row may be a neighbour of any other.

    Args:
        representations: `[row, neuron]` each.

    Returns:
        Matrices [x, y] by measure, NaN on the diagonal.
    """
    views = [_neighbourhood(x.astype(np.float64)) for x in representations]
    count = len(views)
    names = ("rbfcka", "rbfcka_debiased", "mutual_knn", "rsa")
    matrices = {name: np.full((count, count), np.nan) for name in names}
    for i, j in zip(*np.triu_indices(count, 1)):
        x, y = views[i], views[j]
        k, l = (k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in (x.kernel, y.kernel))
        hsic = [_gram_hsic(*pair) for pair in ((x, y), (x, x), (y, y))]
        values = (
            np.vdot(k, l) / (np.linalg.norm(k) * np.linalg.norm(l)),
            hsic[0] / np.sqrt(hsic[1] * hsic[2]),
            np.mean([len(a & b) for a, b in zip(x.nearest, y.nearest)]) / _NEIGHBOURS,
            np.corrcoef(x.ranks, y.ranks)[0, 1],
        )
        for name, value in zip(names, values):
            matrices[name][i, j] = matrices[name][j, i] = value
    return matrices


def _gram_hsic(x: Neighbourhood, y: Neighbourhood) -> float:
    diagonals = np.diagonal(x.kernel), np.diagonal(y.kernel)
    trace = np.vdot(x.kernel, y.kernel) - diagonals[0] @ diagonals[1]
    return _u_statistic(
        float(trace), (x.kernel.sum(1) - diagonals[0], y.kernel.sum(1) - diagonals[1])
    )


def _neighbourhood(x: np.ndarray) -> Neighbourhood:
    squares = squareform(pdist(x, "sqeuclidean"))
    ordered = np.sort(squares, axis=None)
    kernel = np.exp(-squares / (2 * ordered[(len(ordered) - 1) // 2]))
    angles = squareform(pdist(x, "cosine"))
    np.fill_diagonal(angles, np.inf)
    nearest = [set(row) for row in np.argsort(angles, axis=1)[:, :_NEIGHBOURS].tolist()]
    return Neighbourhood(kernel, nearest, rankdata(pdist(x, "correlation")))
