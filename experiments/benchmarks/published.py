"""The measures of the published pipeline, on stored activations: torch tensors [frame, neuron].

El Kheir et al. 2024, whose code is that of Wu et al. 2020 except for where activations are stored.
Each measure computes something for each representation, then something for each pair of
representations, both from the rows:

    maxcorr         mean and deviation of each representation; E[ab] - E[a]E[b] of each pair
    linreg          SVD of each z-scored representation, U; |U'y| / |y|, both ways
    lincka          each representation centred; |Y'X|, |X'X| and |Y'Y| of each pair
    svcca, pwcca    SVD of each z-scored representation, U; SVD of U'V of each pair, weights from
    the rows

Where there is a choice, this is the faster: rows stay in memory (there, `maxcorr` and `pwcca` load
them from disk for each pair), and `mincorr`, whose similarities are those of `maxcorr`, is not
computed again. `FROM_MOMENTS` is not part of it: the least work that stored activations allow, all
measures from moments that BLAS computes once for each pair.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import plain
from experiments.benchmarks.plain import Scores

Representation = Any
"""A torch tensor [frame, neuron]; torch is imported only where it is needed."""

_RANK_TOLERANCE = 1e-6


class Measure(NamedTuple):
    """A measure of a pair, pair(x, y, of(x), of(y)), with what it needs `of` each of the two."""

    of: Callable[[Representation], Any]
    pair: Callable[[Representation, Representation, Any, Any], Scores]


def _mean_and_std(x: Representation) -> tuple[Representation, Representation]:
    mean = x.mean(0, keepdim=True)
    return mean, (x - mean).pow(2).mean(0, keepdim=True).sqrt()


def _maxcorr(x: Representation, y: Representation, of_x: Any, of_y: Any) -> Scores:
    (mean_x, std_x), (mean_y, std_y) = of_x, of_y
    covariance = x.T @ y / len(x) - mean_x.T @ mean_y
    best = (covariance / (std_x.T @ std_y)).abs().numpy()
    return {"maxcorr": (float(best.max(axis=1).mean()), float(best.max(axis=0).mean()))}


def _zscored(x: Representation) -> Representation:
    mean, std = _mean_and_std(x)
    return (x - mean) / std


def _svd(x: Representation) -> tuple[Representation, Representation, Representation]:
    import torch

    return torch.linalg.svd(x, full_matrices=False)


def _regressor(x: Representation) -> tuple[Representation, Representation]:
    zscored = _zscored(x)
    return zscored, _svd(zscored)[0]


def _linreg(x: Representation, y: Representation, of_x: Any, of_y: Any) -> Scores:
    def mean_r(zscored: Representation, u: Representation) -> float:
        return ((u.T @ zscored).norm(dim=0) / zscored.norm(dim=0)).mean().item()

    (zscored_x, u_x), (zscored_y, u_y) = of_x, of_y
    return {"linreg": (mean_r(zscored_x, u_y), mean_r(zscored_y, u_x))}


def _centred(x: Representation) -> Representation:
    return x - x.mean(0, keepdim=True)


def _lincka(
    x: Representation, y: Representation, of_x: Representation, of_y: Representation
) -> Scores:
    within = (of_x.T @ of_x).norm() * (of_y.T @ of_y).norm()
    value = ((of_y.T @ of_x).norm() ** 2 / within).item()
    return {"lincka": (value, value)}


def _directions(x: Representation) -> Representation:
    """Left singular vectors that together hold less than 99 % of the variance."""
    u, sizes, _ = _svd(_zscored(x))
    share = sizes.pow(2).cumsum(0)
    return u[:, : int((share < 0.99 * share[-1]).sum())]


def _cca(
    x: Representation, y: Representation, of_x: Representation, of_y: Representation
) -> Scores:
    u, rho, vt = _svd(of_x.T @ of_y)

    def weighted(h: Representation, z: Representation) -> float:
        weights = (h.T @ z).abs().sum(1)
        return (rho @ weights / weights.sum()).item()

    svcca = rho.mean().item()
    pwcca = weighted(of_x @ u, x), weighted(of_y @ vt.T, y)
    return {"svcca": (svcca, svcca), "pwcca": pwcca}


MEASURES = {
    "maxcorr": Measure(_mean_and_std, _maxcorr),
    "linreg": Measure(_regressor, _linreg),
    "lincka": Measure(_centred, _lincka),
    "svcca, pwcca": Measure(_directions, _cca),
}


def _moments(x: Representation) -> tuple[np.ndarray, plain.Summary]:
    rows = _centred(x).numpy()
    return rows, plain.summary((rows.T @ rows).astype(np.float64), len(rows), _RANK_TOLERANCE)


def _from_moments(x: Representation, y: Representation, of_x: Any, of_y: Any) -> Scores:
    (rows_x, summary_x), (rows_y, summary_y) = of_x, of_y
    return plain.paper(summary_x, summary_y, (rows_x.T @ rows_y).astype(np.float64), len(rows_x))


FROM_MOMENTS = Measure(_moments, _from_moments)
