"""Slow oracles: the measures written out on whole float64 arrays [row, neuron]."""

import numpy as np


def zscore(x: np.ndarray) -> np.ndarray:
    """Columns to mean 0 and population standard deviation 1."""
    return (x - x.mean(0)) / x.std(0)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlations, neuron by neuron."""
    out = np.empty((x.shape[1], y.shape[1]))
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            out[i, j] = np.corrcoef(x[:, i], y[:, j])[0, 1]
    return out


def maxcorr(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of the best |correlation|."""
    return float(np.abs(correlations(x, y)).max(1).mean())


def linreg(x: np.ndarray, y: np.ndarray) -> float:
    """Mean multiple correlation by least squares, without directions below 1e-6 of the variance."""
    total = 0.0
    y = zscore(y)
    for column in (x - x.mean(0)).T:
        fit = y @ np.linalg.lstsq(y, column, rcond=1e-3)[0]
        total += np.sqrt((fit @ fit) / (column @ column))
    return total / x.shape[1]


def lincka(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of the centred n x n Gram matrices."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return float(np.sum(k * l) / np.linalg.norm(k) / np.linalg.norm(l))


def leading(x: np.ndarray, share: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors of z-scored x below the share of variance, and all squared values."""
    u, s, _ = np.linalg.svd(zscore(x), full_matrices=False)
    kept = max(1, int(np.sum(np.cumsum(s**2) / np.sum(s**2) < share)))
    return u[:, :kept], s**2


def svcca(x: np.ndarray, y: np.ndarray) -> float:
    """Mean cosine of the principal angles of the leading subspaces."""
    return float(np.linalg.svd(leading(x)[0].T @ leading(y)[0], compute_uv=False).mean())


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Canonical correlations weighted by |<variate, raw neuron>|."""
    ux, uy = leading(x)[0], leading(y)[0]
    left, rho, _ = np.linalg.svd(ux.T @ uy, full_matrices=False)
    weights = np.abs((ux @ left).T @ x).sum(1)
    return float(weights @ rho / weights.sum())


MEASURES = {"maxcorr": maxcorr, "linreg": linreg, "lincka": lincka, "svcca": svcca, "pwcca": pwcca}
