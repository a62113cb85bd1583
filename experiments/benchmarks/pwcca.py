"""Estimators of the standard error of pwcca, and how often their 95 % intervals cover.

On the corpora of `coverage`, and with representations whose canonical correlations nearly tie, as
those of hundreds of neurons do: the second is the first and noise of about its size. All rows are
used but by the last estimator, which has 32 of each cluster.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from experiments.benchmarks.coverage import draws
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.inference.half_samples import of_groups, signs
from speechsim_jax.inference.standard_errors import quantile

_WHAT = "pwcca"
_CUT = 0.99
_GROUPS = 20
_SAMPLED = 32
# (clusters, equal lengths, effects of speakers)
_SETTINGS = ((40, True, False), (40, False, True), (200, True, True))

Matrix = Float[np.ndarray, "_ _"]
Moments = tuple[float, np.ndarray, np.ndarray]
"""Count, sums and sums of products of the rows of x and y next to each other."""


def run(simulations: int, small: bool = False) -> None:
    """Simulate each setting.

    Args:
      simulations: corpora of each setting.
      small: the first setting only.
    """
    report_machine(_WHAT)
    for ties in (False, True):
        for clusters, equal, effects in _SETTINGS[:1] if small else _SETTINGS:
            labels = {
                "clusters": clusters, "lengths": "equal" if equal else "unequal",
                "speakers": "effects" if effects else "none", "ties": "near" if ties else "none",
            }  # fmt: skip
            drawn = draws(simulations, clusters, 300, equal, effects)
            scores: list[float] = []
            errors: dict[str, list[float]] = {}
            degrees: dict[str, int] = {}
            for seed, (x, y, utterance, speaker) in enumerate(drawn):
                rng = np.random.default_rng(seed)
                if ties:
                    y = x[:, :5] + 0.8 * np.std(x) * rng.standard_normal((len(x), 5))
                over = speaker if effects else utterance
                corpus = _Corpus(np.concatenate([x, y], axis=1), over, x.shape[1])
                scores.append(_pwcca(corpus.whole, corpus.split))
                for name, (estimate, freedom) in corpus.estimates(rng).items():
                    errors.setdefault(name, []).append(estimate)
                    degrees[name] = freedom
            for name, of_name in errors.items():
                half = quantile(degrees[name], 0.95) * np.array(of_name)
                covered = np.abs(np.array(scores) - np.mean(scores)) <= half
                ratio = np.sqrt(np.mean(np.square(of_name))) / np.std(scores, ddof=1)
                about = labels | {"estimator": name}
                report(_WHAT, "coverage", 100 * float(covered.mean()), "%", **about)
                report(
                    _WHAT, "standard error / spread of scores", float(ratio), "", **about
                )  # fmt: skip


class _Corpus:
    """Rows in clusters, their moments, and estimates of the standard error."""

    def __init__(self, rows: Matrix, clusters: Int[np.ndarray, " row"], split: int):
        _, number = np.unique(clusters, return_inverse=True)
        order = np.argsort(number, kind="stable")
        self.rows, self.cluster, self.split = rows[order], number[order], split
        self.sizes = np.bincount(number)
        self.parts = [_moments(part) for part in self._split(self.rows)]
        self.whole = _sum(self.parts)
        total = np.zeros(min(_GROUPS, len(self.sizes)))
        self.group = np.zeros(len(self.sizes), int)
        for cluster in np.argsort(-self.sizes, kind="stable"):
            self.group[cluster] = total.argmin()
            total[self.group[cluster]] += self.sizes[cluster]
        self.shares = total / total.sum()

    def _split(self, rows: Matrix) -> list[Matrix]:
        return np.split(rows, np.cumsum(self.sizes)[:-1])

    def _grouped(self, parts: Sequence[Moments]) -> list[Moments]:
        groups = range(len(self.shares))
        return [_sum([p for p, g in zip(parts, self.group) if g == k]) for k in groups]

    def estimates(self, rng: np.random.Generator) -> dict[str, tuple[float, int]]:
        """By estimator, the standard error and its degrees of freedom."""
        clusters, groups = len(self.sizes) - 1, len(self.shares) - 1
        grouped = self._grouped(self.parts)
        sampled = []
        for part in self._split(self.rows):
            chosen = part[rng.choice(len(part), min(_SAMPLED, len(part)), replace=False)]
            sampled.append(_scaled(_moments(chosen), len(part) / len(chosen)))
        # What sampled groups differ from their share of the sample, taken off all moments.
        of_sample = _sum(sampled)
        off = [
            _sum([part, _scaled(_sum([of_sample, _scaled(self.whole, -1)]), -share)])
            for part, share in zip(self._grouped(sampled), self.shares)
        ]
        return {
            "fixed weights": (self._influence(None), clusters),
            "smoothed weights": (self._influence(1.0), clusters),
            "leaving out 20 groups": (self._jackknife(grouped, self.shares), groups),
            "leaving out clusters": (
                self._jackknife(self.parts, self.sizes / self.sizes.sum()), clusters,
            ),
            "halves of 20 groups": (self._halves(grouped), groups),
            "leaving out 20 groups, 32 rows a cluster": (
                self._jackknife(off, self.shares), groups,
            ),
        }  # fmt: skip

    def _jackknife(self, parts: Sequence[Moments], shares: Float[np.ndarray, " part"]) -> float:
        score = _pwcca(self.whole, self.split)
        rest = [_pwcca(_sum([self.whole, _scaled(part, -1)]), self.split) for part in parts]
        moved = (1 - shares) * (score - np.array(rest))
        return _spread(moved - moved.mean())

    def _halves(self, grouped: Sequence[Moments]) -> float:
        differences = []
        for way in signs(len(grouped)):
            share = self.shares[way > 0].sum()
            if not 0 < share < 1:
                differences.append(0.0)
                continue
            first, second = (
                _pwcca(_sum([g for g, s in zip(grouped, way) if s == sign]), self.split)
                for sign in (1, -1)
            )
            differences.append(2 * share * (1 - share) * (first - second))
        return _spread(of_groups(np.array(differences), len(grouped)))

    def _influence(self, smoothing: float | None) -> float:
        """Of rows, on fixed subspaces; weights move unless there is no smoothing of their turns."""
        parts = _Canonical(self.whole, self.split)
        z = (self.rows - parts.mean) / parts.std
        u, v = z[:, : self.split] @ parts.x, z[:, self.split :] @ parts.y
        weights, rho = parts.weights, parts.rho
        total = (u * v - rho / 2 * (u**2 + v**2)) @ (weights / weights.sum())
        if smoothing is not None:
            signs_of = np.sign(parts.loadings)
            scaled = z[:, : self.split] * parts.std[: self.split]
            moved = u * (scaled @ signs_of.T) - weights - (u**2 - 1) * weights / 2
            turned = parts.loadings @ signs_of.T
            for i in range(len(rho)):
                for j in range(len(rho)):
                    product = (
                        rho[i] * u[:, j] * v[:, i] + rho[j] * v[:, j] * u[:, i]
                        - rho[i] * rho[j] * v[:, i] * v[:, j] - rho[i] ** 2 * u[:, i] * u[:, j]
                    )  # fmt: skip
                    gap = rho[i] ** 2 - rho[j] ** 2
                    error = smoothing * self._error(product - product.mean()) ** 2
                    if i != j:
                        moved[:, i] += product * gap / (gap**2 + error) * turned[j, i]
            score = weights @ rho / weights.sum()
            total = total + moved @ (rho - score) / weights.sum()
        return self._error(total - total.mean())

    def _error(self, influence: Float[np.ndarray, " row"]) -> float:
        return _spread(np.bincount(self.cluster, weights=influence) / len(influence))


class _Canonical:
    """Canonical directions of z-scored x and y on svcca's subspaces, and pwcca's weights."""

    def __init__(self, moments: Moments, split: int):
        count, first, second = moments
        self.mean = first / count
        scatter = second - np.outer(first, first) / count
        scale = np.sqrt(np.diag(scatter))
        correlation, self.std = scatter / np.outer(scale, scale), scale / np.sqrt(count)
        of_x = correlation[:split, :split]
        x, y = _whitening(of_x), _whitening(correlation[split:, split:])
        left, self.rho, right = np.linalg.svd(
            x.T @ correlation[:split, split:] @ y, full_matrices=False
        )
        self.x, self.y = x @ left, y @ right.T
        self.loadings = (of_x @ self.x).T * self.std[:split]
        self.weights = np.abs(self.loadings).sum(axis=1)


def _pwcca(moments: Moments, split: int) -> float:
    parts = _Canonical(moments, split)
    return float(parts.weights @ parts.rho / parts.weights.sum())


def _whitening(correlation: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = max(1, int(np.sum(np.cumsum(values) / values.sum() < _CUT)))
    return vectors[:, :kept] / np.sqrt(values[:kept])


def _moments(rows: Matrix) -> Moments:
    return float(len(rows)), rows.sum(axis=0), rows.T @ rows


def _sum(moments: Sequence[Moments]) -> Moments:
    count, first, second = zip(*moments)
    return float(sum(count)), np.sum(first, axis=0), np.sum(second, axis=0)


def _scaled(moments: Moments, factor: float) -> Moments:
    return factor * moments[0], factor * moments[1], factor * moments[2]


def _spread(influence: Float[np.ndarray, " part"]) -> float:
    parts = len(influence)
    return float(np.sqrt(parts / (parts - 1) * np.sum(np.square(influence))))
