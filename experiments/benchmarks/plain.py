"""The paper's measures of two representations from their moments, in plain numpy, as definitions read."""

from typing import NamedTuple

import numpy as np

Scores = dict[str, tuple[float, float]]
"""By measure: (x, y) and (y, x)."""


class Own(NamedTuple):
    """Of one representation: std [neuron], correlation [neuron, neuron], norm of the scatter matrix.

    `whitening`: [neuron, direction], of which the first `kept` hold less than 99 % of the variance.
    """

    std: np.ndarray
    correlation: np.ndarray
    norm: float
    whitening: np.ndarray
    kept: int


def own(scatter: np.ndarray, rows: int, tolerance: float) -> Own:
    """From Xc'Xc; directions with eigenvalues up to `tolerance` times the largest are left out."""
    std = np.sqrt(np.diagonal(scatter) / rows)
    correlation = scatter / rows / np.outer(std, std)
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = np.sum(values > tolerance * values[0])
    values, vectors = values[:rank], vectors[:, :rank]
    kept = int(np.sum(np.cumsum(values) / values.sum() < 0.99))
    return Own(std, correlation, float(np.linalg.norm(scatter)), vectors / np.sqrt(values), kept)


def pair(x: Own, y: Own, scatter: np.ndarray, rows: int) -> Scores:
    """Every measure of the paper, (x, y) and (y, x), from Xc'Yc and what each representation has."""
    lincka = float(np.sum(scatter**2) / (x.norm * y.norm))
    rxy = scatter / rows / np.outer(x.std, y.std)
    wx, wy = x.whitening, y.whitening
    u, rho, vt = np.linalg.svd(wx[:, : x.kept].T @ rxy @ wy[:, : y.kept], full_matrices=False)
    weights_x = np.abs((wx[:, : x.kept] @ u).T @ x.correlation * x.std).sum(axis=1)
    weights_y = np.abs((wy[:, : y.kept] @ vt.T).T @ y.correlation * y.std).sum(axis=1)
    svcca = float(rho.mean())
    return {
        "maxcorr": (float(np.abs(rxy).max(1).mean()), float(np.abs(rxy).max(0).mean())),
        "linreg": (
            float(np.linalg.norm(rxy @ wy, axis=1).mean()),
            float(np.linalg.norm(rxy.T @ wx, axis=1).mean()),
        ),
        "lincka": (lincka, lincka),
        "svcca": (svcca, svcca),
        "pwcca": (
            float(weights_x @ rho / weights_x.sum()),
            float(weights_y @ rho / weights_y.sum()),
        ),
    }
