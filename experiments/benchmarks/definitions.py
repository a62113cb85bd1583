"""Measures by their definitions, on whole float64 arrays, as one would write them: the oracle.

Matrices are [x, y] over representations, NaN on the diagonal.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

Number = float | np.floating

_NEIGHBOURS = 10


class Whole(NamedTuple):
    """A representation on all rows in float64, and the left singular vectors and variances of both."""

    centred: np.ndarray
    zscored: np.ndarray
    of_centred: tuple[np.ndarray, np.ndarray]
    of_zscored: tuple[np.ndarray, np.ndarray]


def on_moments(representations: Sequence[np.ndarray], tolerance: float) -> dict[str, np.ndarray]:
    """All but `rotcorr`, from rows and n x n Gram matrices.

    `tolerance`: the smallest eigenvalue kept, relative to the largest.
    """
    views = [_whole(x.astype(np.float64), tolerance) for x in representations]
    count = len(views)
    matrices: dict[str, np.ndarray] = {}
    for i in range(count):
        k, kz = views[i].centred @ views[i].centred.T, views[i].zscored @ views[i].zscored.T
        for j in range(i + 1, count):
            l = views[j].centred @ views[j].centred.T
            grams = {"lincka": _cosine(k, l), "lincka_debiased": _debiased(k, l)}
            grams["lincka_zscored"] = _cosine(kz, views[j].zscored @ views[j].zscored.T)
            for a, b in ((i, j), (j, i)):
                for name, value in (grams | _from_rows(views[a], views[b])).items():
                    matrix = matrices.setdefault(name, np.full((count, count), np.nan))
                    matrix[a, b] = value
    return matrices


def _whole(x: np.ndarray, tolerance: float) -> Whole:
    centred = x - x.mean(0)
    zscored = centred / x.std(0)
    directions = [_directions(view, tolerance) for view in (centred, zscored)]
    return Whole(centred, zscored, *directions)


def _directions(x: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors above the tolerance, and their cumulative share of the variance."""
    left, sizes, _ = np.linalg.svd(x, full_matrices=False)
    kept = sizes**2 > tolerance * sizes[0] ** 2
    return left[:, kept], np.cumsum(sizes[kept] ** 2) / np.sum(sizes[kept] ** 2)


def _below(directions: tuple[np.ndarray, np.ndarray], more: int = 0) -> np.ndarray:
    """The directions below 99 % of the variance, and some more."""
    left, share = directions
    return left[:, : max(1, int(np.sum(share < 0.99))) + more]


def _from_rows(x: Whole, y: Whole) -> dict[str, Number]:
    """What is defined on rows: correlations, projections and principal angles."""
    r = np.abs(x.zscored.T @ y.zscored) / len(x.zscored)
    multiple = np.linalg.norm(y.of_zscored[0].T @ x.zscored, axis=0) / len(x.zscored) ** 0.5
    variance = x.centred.var(0)
    left = _below(x.of_zscored)
    u, rho, _ = np.linalg.svd(left.T @ _below(y.of_zscored), full_matrices=False)
    weights, equal = (np.abs((left @ u).T @ z).sum(1) for z in (x.centred, x.zscored))
    every = _angles(x.of_zscored[0], y.of_zscored[0])
    norms = np.linalg.norm(x.centred) * np.linalg.norm(y.centred)
    cosine = np.linalg.norm(x.centred.T @ y.centred, "nuc") / norms
    return {
        "maxcorr": r.max(1).mean(),
        "matchcorr": r[scipy.optimize.linear_sum_assignment(r, maximize=True)].mean(),
        "linreg": multiple.mean(),
        "linreg_r2": (multiple**2).mean(),
        "linreg_r2_global": multiple**2 @ variance / variance.sum(),
        "svcca": rho.mean(),
        "svcca_ge": _angles(_below(x.of_zscored, 1), _below(y.of_zscored, 1)).mean(),
        "svcca_centred": _angles(_below(x.of_centred), _below(y.of_centred)).mean(),
        "svcca_centred_ge": _angles(_below(x.of_centred, 1), _below(y.of_centred, 1)).mean(),
        "pwcca": weights @ rho / weights.sum(),
        "pwcca_zscored": equal @ rho / equal.sum(),
        "mean_cca": every.mean(),
        "mean_cca2": (every**2).mean(),
        "procrustes": cosine,
        "procrustes_distance": np.arccos(cosine),
    }


def _angles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles of two orthonormal bases."""
    return np.linalg.svd(x.T @ y, compute_uv=False)


def _cosine(k: np.ndarray, l: np.ndarray) -> Number:
    return np.vdot(k, l) / (np.linalg.norm(k) * np.linalg.norm(l))


def _debiased(k: np.ndarray, l: np.ndarray) -> Number:
    return _song(k, l) / np.sqrt(_song(k, k) * _song(l, l))


def _song(k: np.ndarray, l: np.ndarray) -> Number:
    """Song et al. 2012, equation 5, up to 1 / (n (n - 3)); K and L without their diagonals."""
    n = len(k)
    rows = [gram.sum(1) - np.diagonal(gram) for gram in (k, l)]
    trace = np.vdot(k, l) - np.diagonal(k) @ np.diagonal(l)
    totals = rows[0].sum() * rows[1].sum()
    return trace + totals / ((n - 1) * (n - 2)) - 2 * (rows[0] @ rows[1]) / (n - 2)


def on_sample(representations: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The measures that compare rows with rows; any row may be a neighbour of any other."""
    views = [_near_and_far(x.astype(np.float64)) for x in representations]
    count = len(views)
    names = ("rbfcka", "rbfcka_debiased", "mutual_knn", "rsa")
    matrices = {name: np.full((count, count), np.nan) for name in names}
    for i, j in zip(*np.triu_indices(count, 1)):
        x, y = views[i], views[j]
        centred = [k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in (x.kernel, y.kernel)]
        values = (
            _cosine(*centred),
            _debiased(x.kernel, y.kernel),
            np.mean([len(a & b) for a, b in zip(x.nearest, y.nearest)]) / _NEIGHBOURS,
            np.corrcoef(x.ranks, y.ranks)[0, 1],
        )
        for name, value in zip(names, values):
            matrices[name][i, j] = matrices[name][j, i] = value
    return matrices


class NearAndFar(NamedTuple):
    """A Gaussian kernel, the nearest rows of each row, and all dissimilarities by rank."""

    kernel: np.ndarray
    nearest: list[set[int]]
    ranks: np.ndarray


def _near_and_far(x: np.ndarray) -> NearAndFar:
    squares = squareform(pdist(x, "sqeuclidean"))
    ordered = np.sort(squares, axis=None)
    kernel = np.exp(-squares / (2 * ordered[(len(ordered) - 1) // 2]))
    angles = squareform(pdist(x, "cosine"))
    np.fill_diagonal(angles, np.inf)
    nearest = [set(row) for row in np.argsort(angles, axis=1)[:, :_NEIGHBOURS].tolist()]
    return NearAndFar(kernel, nearest, rankdata(pdist(x, "correlation")))
