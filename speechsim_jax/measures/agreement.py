"""Whether best-matched neurons tell the same class, and how sure that is.

Agreement counts, so that it has no influence of single rows. Its standard error is a jackknife over
groups of clusters: of each group in turn, the sampled rows are taken out of the correlations, and
matches, classes and agreement are found again. With G groups, each a share s of all rows, of K
sampled clusters among C,

    SE^2 = C / K  G / (G - 1)  (1 - s)^2  sum_g (a_g - abar) (b_g - bbar),

where a and b are the agreements of the two halves of the sampled rows of each cluster, on different
neurons where there are many: neither the sampling of rows nor that of neurons adds to the sum.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from speechsim_jax.inference.clusters import GROUPS, folds
from speechsim_jax.inference.influence_rows import RepresentationRows
from speechsim_jax.inference.standard_errors import (
    LEAST_CLUSTERS,
    MOST_RELATIVE,
    SampledClusters,
)
from speechsim_jax.measures.base import divide
from speechsim_jax.measures.neuron import winners

# Products of neurons with neurons: so many neurons of each representation are matched again that
# all of it takes no more, but some in any case.
_MOST_FLOPS, _LEAST_NEURONS = 1e12, 16


def agreement(
    x: Int[np.ndarray, " x"], y: Int[np.ndarray, " y"], winner: Int[np.ndarray, " x"]
) -> tuple[float, float, float]:
    """How often a neuron of x and its best match in y are of one class.

    Args:
      x, y: the class of each neuron, -1 for none.
      winner: for each neuron of x the neuron of y that correlates with it best, -1 for none.

    Returns:
      The share of x's neurons with a class; the share that chance would give, sum_k p_k q_k over
      the classes of these and of their winners; Cohen's kappa.
    """
    used = (x >= 0) & (winner >= 0)
    ours, theirs = x[used], y[winner[used]]
    if not len(ours):
        return float("nan"), float("nan"), float("nan")
    count = max(int(x.max()), int(y.max())) + 1
    known = theirs >= 0
    shares = [np.bincount(of, minlength=count) / len(ours) for of in (ours, theirs[known])]
    observed, chance = float(np.mean(ours == theirs)), float(shares[0] @ shares[1])
    return observed, chance, divide(observed - chance, 1 - chance)


@dataclasses.dataclass(frozen=True, eq=False)
class _Half:
    """One half of the sampled rows, each with the number of rows that it stands for.

    Attributes:
      rows: of each group, their places in the sample.
      weights: of each group, of these rows.
    """

    rows: list[Int64[np.ndarray, " _taken"]]
    weights: list[Float64[np.ndarray, " _taken"]]

    @classmethod
    def of(
        cls, clusters: SampledClusters, group: Int64[np.ndarray, " cluster"], half: int | None
    ) -> "_Half":
        """Every second row of each cluster, from its first or second on; all for None."""
        kept, count = clusters.kept, int(group.max()) + 1
        cluster = np.repeat(np.arange(len(kept)), kept)
        rank = np.arange(len(cluster)) - np.repeat(np.cumsum(kept) - kept, kept)
        taken = np.ones(len(cluster), bool) if half is None else rank % 2 == half
        taken_of = np.bincount(cluster[taken], minlength=len(kept))
        weight = (clusters.rows / np.maximum(taken_of, 1))[cluster]
        rows = [np.flatnonzero(taken & (group[cluster] == g)) for g in range(count)]
        return cls(rows, [weight[of] for of in rows])


def left_out(
    correlation: Float[np.ndarray, "x y"],
    x: Float[np.ndarray, "taken x"],
    y: Float[np.ndarray, "taken y"],
    weights: Float64[np.ndarray, " taken"],
    rows: int,
) -> Float[np.ndarray, "x y"]:
    """Correlations without some rows.

    Args:
      correlation: over all rows.
      x, y: the rows that are taken out, z-scored over all.
      weights: how many rows each stands for.
      rows: of all.
    """
    left = rows - weights.sum()
    weighted = x * weights[:, None].astype(x.dtype)
    mean_x, mean_y = weighted.sum(axis=0), weights.astype(y.dtype) @ y
    of_x = rows - np.einsum("rx,rx->x", weighted, x) - np.square(mean_x) / left
    of_y = rows - weights @ np.square(y) - np.square(mean_y) / left
    product = rows * correlation - weighted.T @ y - np.outer(mean_x, mean_y) / left
    scale = np.sqrt(np.outer(np.maximum(of_x, 0), np.maximum(of_y, 0)))
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


class AgreementErrors:
    """Standard errors of agreement, its chance and kappa, from a clustered sample.

    Args:
      rows: sampled rows of every representation.
      clusters: of these rows.
      layers: numbers of the representations that are compared.
      tracks: numbers of the label tracks.
    """

    def __init__(
        self,
        rows: Sequence[RepresentationRows],
        clusters: SampledClusters,
        layers: Sequence[int],
        tracks: Sequence[int],
    ):
        self._clusters, self._rows, self._tracks = clusters, rows, tracks
        self._all_rows = clusters.total_rows
        of_cluster = folds(
            dict(zip(clusters.names, clusters.rows.tolist())), 0, min(GROUPS, len(clusters.names))
        )
        group = np.array([of_cluster[name] for name in clusters.names])
        self._groups = int(group.max()) + 1
        self._halves = [
            _Half.of(clusters, group, None if clusters.complete else half) for half in (0, 1)
        ]
        widths = [int(rows[k].moments.live.sum()) for k in layers]
        flops = 2 * sum(clusters.kept.tolist()) * sum(widths) * max(len(layers) - 1, 1)
        self._neurons = max(int(_MOST_FLOPS / max(flops, 1)), _LEAST_NEURONS)
        self._classes: dict[tuple[int, int], Int64[np.ndarray, "group track neuron"]] = {}

    def add_layer(
        self, layer: int, correlations: Sequence[Float[np.ndarray, "neuron _class"]]
    ) -> None:
        """Find the classes of a layer's neurons without each group.

        Args:
          layer: its number.
          correlations: of all its neurons with all classes of each track.
        """
        live = self._live(layer)
        x, count = self._rows[layer].zscored_neurons(live), len(correlations[0])
        for k, half in enumerate(self._halves):
            found = np.full((self._groups, len(self._tracks), count), -1, np.int64)
            for number, (track, correlation) in enumerate(zip(self._tracks, correlations)):
                known = self._live(track)
                y, of_live = (
                    self._rows[track].zscored_neurons(known),
                    correlation[np.ix_(live, known)],
                )
                for group, (taken, weights) in enumerate(zip(half.rows, half.weights)):
                    without = left_out(of_live, x[taken], y[taken], weights, self._all_rows)
                    best = winners(without)[1]
                    found[group, number, live] = np.where(best >= 0, known[best], -1)
            self._classes[layer, k] = found

    def of_winners_in(
        self, j: int, correlations: Mapping[int, Float[np.ndarray, "x y"]]
    ) -> dict[int, Float64[np.ndarray, "track three two"]]:
        """Agreement of other representations with their winners in one.

        Args:
          j: number of the one.
          correlations: of each of the others, by number, its neurons with those of j.

        Returns:
          By number, of agreement, chance and kappa the standard error and its relative error.
        """
        live_y = self._live(j)
        y = self._rows[j].zscored_neurons(live_y)
        return {
            i: self._of_pair(i, j, correlation[:, live_y], y, live_y)
            for i, correlation in correlations.items()
        }

    def _of_pair(
        self,
        i: int,
        j: int,
        correlation: Float[np.ndarray, "x live"],
        y: Float[np.ndarray, "row live"],
        live_y: Int64[np.ndarray, " live"],
    ) -> Float64[np.ndarray, "track three two"]:
        order = self._live(i)
        if self._neurons < len(order):
            order = np.random.default_rng(len(order)).permutation(order)
            half = min(self._neurons, len(order) // 2)
            chosen = [order[:half], order[half : 2 * half]]
        else:
            chosen = [order, order]
        found = np.empty((2, self._groups, len(self._tracks), 3))
        for k, (half, neurons) in enumerate(zip(self._halves, chosen)):
            x, of_chosen = self._rows[i].zscored_neurons(neurons), correlation[neurons]
            for group, (taken, weights) in enumerate(zip(half.rows, half.weights)):
                without = left_out(of_chosen, x[taken], y[taken], weights, self._all_rows)
                best = winners(without)[1]
                winner = np.where(best >= 0, live_y[best], -1)
                ours, theirs = self._classes[i, k][group], self._classes[j, k][group]
                for number in range(len(self._tracks)):
                    of_track = agreement(ours[number, neurons], theirs[number], winner)
                    found[k, group, number] = of_track
        return self._spread(found)

    def _live(self, k: int) -> Int64[np.ndarray, " live"]:
        return np.flatnonzero(self._rows[k].moments.live)

    def _spread(
        self, found: Float64[np.ndarray, "two group track three"]
    ) -> Float64[np.ndarray, "track three two"]:
        """The jackknife's standard error and its own relative error."""
        clusters, count = self._clusters, self._groups
        share = clusters.rows.sum() / clusters.total_rows / count
        scale = clusters.total / len(clusters.names) * count / (count - 1) * (1 - share) ** 2
        one, two = found - found.mean(axis=1, keepdims=True)
        sums = (one * two).sum(axis=0)
        noise = np.square(one - two).mean(axis=0) / 2
        signal = np.maximum(sums / count, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.sqrt(count * (2 * signal * noise + np.square(noise))) / (2 * sums)
        constant = (one == 0).all(axis=0) & (two == 0).all(axis=0)
        relative = np.where(sums > 0, relative, np.where(constant, 0.0, np.inf))
        error = np.sqrt(scale * np.maximum(sums, 0))
        known = (relative <= MOST_RELATIVE) & (len(clusters.names) >= LEAST_CLUSTERS)
        return np.stack([np.where(known, error, np.nan), relative], axis=-1)
