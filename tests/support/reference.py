"""Slow float64 references: the measures written out on arrays [row, neuron]."""

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
    count = max(1, int(np.sum(np.cumsum(s**2) / np.sum(s**2) < share)))
    return u[:, :count], s**2


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


def squared_distances(x: np.ndarray) -> np.ndarray:
    """Between all rows, the diagonal included."""
    return np.array([[sum((a - b) ** 2) for b in x] for a in x])


def rbf_gram(x: np.ndarray, bandwidth: float | None = None) -> np.ndarray:
    """exp(-d^2 / (2 m)); m is `bandwidth`, by default the lower median of all entries."""
    squares = squared_distances(x)
    ordered = sorted(squares.ravel())
    m = ordered[(len(ordered) - 1) // 2] if bandwidth is None else bandwidth
    return np.exp(-squares / (2 * m))


def rbfcka(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None) -> float:
    """Cosine of the centred Gaussian Gram matrices."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = (centre @ rbf_gram(z, bandwidth) @ centre for z in (x, y))
    return float(np.sum(k * l) / np.linalg.norm(k) / np.linalg.norm(l))


def song(k: np.ndarray, l: np.ndarray) -> float:
    """Song et al. 2012: the mean of K_ij L_ij + K_ij L_qr - 2 K_ij L_iq over distinct indices."""
    n = len(k)
    two = three = four = 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            two += k[i, j] * l[i, j]
            others = [q for q in range(n) if q not in (i, j)]
            three += k[i, j] * l[i, others].sum()
            four += k[i, j] * (l[np.ix_(others, others)].sum() - l[others, others].sum())
    pairs = n * (n - 1)
    return two / pairs + four / (pairs * (n - 2) * (n - 3)) - 2 * three / (pairs * (n - 2))


def rbfcka_debiased(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None) -> float:
    """The ratio of the U-statistics."""
    k, l = rbf_gram(x, bandwidth), rbf_gram(y, bandwidth)
    return song(k, l) / np.sqrt(song(k, k) * song(l, l))


def nearest(x: np.ndarray, k: int, utterances: list[str] | None = None) -> list[set[int]]:
    """The k rows of the smallest angle with each row, from other utterances if these are known."""
    neighbours = []
    for i, a in enumerate(x):
        cosines = []
        for j, b in enumerate(x):
            if j != i and (utterances is None or utterances[i] != utterances[j]):
                cosines.append((-(a @ b) / np.sqrt((a @ a) * (b @ b)), j))
        neighbours.append({j for _, j in sorted(cosines)[:k]})
    return neighbours


def mutual_knn(x: np.ndarray, y: np.ndarray, utterances: list[str] | None = None) -> float:
    """Mean overlap of the ten nearest neighbours."""
    pairs = zip(nearest(x, 10, utterances), nearest(y, 10, utterances))
    return float(np.mean([len(a & b) / 10 for a, b in pairs]))


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman correlation of 1 - Pearson over pairs of rows, ranks counted one by one."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    ranks = []
    for z in (x, y):
        values = np.array([1 - np.corrcoef(z[i], z[j])[0, 1] for i, j in pairs])
        ranks.append([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
    return float(np.corrcoef(*ranks)[0, 1])


SAMPLE_MEASURES = {
    "rbfcka": rbfcka,
    "rbfcka_debiased": rbfcka_debiased,
    "mutual_knn": mutual_knn,
    "rsa": rsa,
}


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of two distributions from their mean, in nats."""
    total = 0.0
    for side in (p, q):
        positive = side > 0  # 0 log 0 = 0
        ratio = side[positive] / ((p + q) / 2)[positive]
        total += np.sum(side[positive] * np.log(ratio)) / 2
    return float(total)


def compare_maps(a: list[np.ndarray], b: list[np.ndarray]) -> dict[str, float]:
    """The similarities of two heads from their maps [query, key], one for each utterance."""
    frobenius, normed, divergences, exact, paper = [], [], [], [], []
    for p, q in zip(a, b):
        frames = len(p)
        frobenius.append(np.sqrt(np.sum((p - q) ** 2)))
        normed.append(frobenius[-1] / np.sqrt(2 * frames))
        for s, t in zip(p, q):
            divergences.append(jensen_shannon(s, t))
            if frames > 1:
                covariance = np.mean((s - s.mean()) * (t - t.mean()))
                varies = min(s.std(), t.std()) >= 1e-6 / frames
                exact.append(covariance / s.std() / t.std() if varies else 0)
                paper.append(covariance / s.std(ddof=1) / t.std(ddof=1) if varies else 0)
    return {
        "attn_frobenius": 1 - np.mean(frobenius),
        "attn_frobenius_norm": 1 - np.mean(normed),
        "attn_js": 1 - np.mean(divergences),
        "attn_js_bits": 1 - np.mean(divergences) / np.log(2),
        "attn_pearson": np.mean(paper),
        "attn_pearson_exact": np.mean(exact),
    }


def diagonal(a: np.ndarray) -> np.ndarray:
    """The map's mean over cells of equal key - query, with rows scaled to sum to 1."""
    out = np.empty_like(a)
    for query, key in np.ndindex(*a.shape):
        out[query, key] = np.diagonal(a, key - query).mean()
    return out / out.sum(1, keepdims=True)


def shift(a: np.ndarray) -> np.ndarray:
    """The map half an utterance later, around its end."""
    return np.roll(a, (len(a) // 2, len(a) // 2), axis=(0, 1))
