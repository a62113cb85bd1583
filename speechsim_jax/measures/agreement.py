"""Whether best-matched neurons encode the same class, and how sure that is.

Agreement counts, so that it has no influence of single rows. Its standard error is a jackknife over
groups of clusters: of each group in turn, the sampled rows are taken out of the correlations, and
matches, classes and agreement are found again. With G groups, each a share s of all rows, of K
sampled clusters among C,

    SE^2 = C / K  G / (G - 1)  (1 - s)^2  sum_g (a_g - abar) (b_g - bbar),

where a and b are the agreements of the two halves of the sampled rows of each cluster: the sampling
of rows adds nothing to the sum. Where there are many neurons, two sets of m of the n are matched
again. With V_1 the sum for a and b on one set (mean of both), and V_2 for a on one and b on the
other, the sum for all n neurons is V_2 + (V_1 - V_2) m / n: neurons vary together, and each alone.

For what is not smooth, as matches, a jackknife is conservative.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Int32, Int64

from speechsim_jax.inference.clusters import GROUPS, folds
from speechsim_jax.inference.influence_rows import RepresentationRows
from speechsim_jax.inference.standard_errors import (
    LEAST_CLUSTERS,
    MOST_RELATIVE,
    SampledClusters,
)

# Products of neurons with neurons: so many neurons of each representation are matched again that
# all of it takes no more, but some in any case.
_MOST_FLOPS, _LEAST_NEURONS = 1e12, 32
# Share of its variance that a class or neuron keeps without a group, or its correlations are not
# known: of all rows, and of sampled ones. Those of a speaker without the speaker are none.
_LEAST_KEPT = {True: 1e-4, False: 0.05}
# In the place of the class of a best match where there is none.
_NO_MATCH = -2


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
    theirs = np.where(winner >= 0, y[winner], _NO_MATCH)
    observed, chance, kappa = agreements(x[None], theirs[None])[0].tolist()
    return observed, chance, kappa


def agreements(
    ours: Int[np.ndarray, "draw x"], theirs: Int[np.ndarray, "draw x"]
) -> Float64[np.ndarray, "draw three"]:
    """Agreement, chance and kappa of several draws of `agreement`.

    Args:
      ours: the class of each neuron, -1 for none.
      theirs: of the neuron that matches it best: -1 for none, -2 if there is no match.
    """
    draws = len(ours)
    used = (ours >= 0) & (theirs != _NO_MATCH)
    total = used.sum(axis=1)
    count = max(int(ours.max(initial=0)), int(theirs.max(initial=0))) + 1
    draw = np.arange(draws)[:, None]

    def shares(classes: np.ndarray, counted: np.ndarray) -> Float64[np.ndarray, "draw class"]:
        places = (classes + count * draw)[counted]
        of_class = np.bincount(places, minlength=count * draws).reshape(draws, count)
        return of_class / np.maximum(total, 1)[:, None]

    observed = ((ours == theirs) & used).sum(axis=1) / np.maximum(total, 1)
    chance = (shares(ours, used) * shares(theirs, used & (theirs >= 0))).sum(axis=1)
    rest = 1 - chance
    kappa = np.divide(observed - chance, rest, out=np.full(draws, np.nan), where=rest > 0)
    return np.where(total[:, None] > 0, np.stack([observed, chance, kappa], axis=1), np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class _Half:
    """One half of the sampled rows, each with the number of rows that it stands for.

    Attributes:
      rows: of each group, their places in the sample.
      weights: of these rows.
    """

    rows: Sequence[Int64[np.ndarray, " _taken"]]
    weights: Sequence[Float64[np.ndarray, " _taken"]]

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
        return cls(rows, [weight[of_group] for of_group in rows])


@dataclasses.dataclass(frozen=True, eq=False)
class GroupRows:
    """Rows of some neurons, z-scored over all rows, by the groups that are taken out in turn.

    Attributes:
      rows: of each group, each times the root of the number of rows that it stands for.
      sums: over the rows that they stand for.
      scale: one over the root of n times each neuron's variance without each group; 0 if there is
        none left.
      left: rows without each group.
    """

    rows: Sequence[Float[np.ndarray, "_taken neuron"]]
    sums: Float[np.ndarray, "group neuron"]
    scale: Float[np.ndarray, "group neuron"]
    left: Float[np.ndarray, " group"]

    @classmethod
    def of(
        cls,
        zscored: Float[np.ndarray, "row neuron"],
        places: Sequence[Int64[np.ndarray, " _taken"]],
        weights: Sequence[Float64[np.ndarray, " _taken"]],
        all_rows: int,
        least: float = 0.0,
    ) -> "GroupRows":
        """Those of sampled rows.

        Args:
          zscored: of the sample.
          places: of each group's rows in it.
          weights: how many rows each stands for.
          all_rows: number of all rows.
          least: share of its variance that a neuron has to keep, else it counts as constant.
        """
        rows, sums, own = [], [], []
        for of_group, weight in zip(places, weights, strict=True):
            taken, root = zscored[of_group], np.sqrt(weight).astype(zscored.dtype)
            taken *= root[:, None]
            rows.append(taken)
            sums.append(root @ taken)
            own.append(np.einsum("rx,rx->x", taken, taken))
        of_groups = np.stack(sums)
        left = all_rows - np.array([weight.sum() for weight in weights]).astype(zscored.dtype)
        kept = all_rows - (np.stack(own) + np.square(of_groups) / left[:, None])
        root = np.sqrt(np.where(kept > least * all_rows, kept, 0))
        scale = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        return cls(rows, of_groups, scale, left)


def left_out(
    correlation: Float[np.ndarray, "x y"], x: GroupRows, y: GroupRows, all_rows: int
) -> Iterator[Float[np.ndarray, "x y"]]:
    """Correlations without the rows of each group in turn; the array may be written into.

    Args:
      correlation: over all rows.
      x, y: the rows that are taken out.
      all_rows: number of all rows.
    """
    products = all_rows * correlation.astype(x.sums.dtype)
    for g in range(len(x.rows)):
        left = x.rows[g].T @ y.rows[g]
        np.subtract(products, left, out=left)
        left -= np.outer(x.sums[g] / x.left[g], y.sums[g])
        left *= x.scale[g, :, None]
        left *= y.scale[g]
        yield np.clip(left, -1, 1, out=left)


def _winners(
    correlation: Float[np.ndarray, "x y"], x: GroupRows, y: GroupRows, all_rows: int
) -> Int32[np.ndarray, "group x"]:
    """Without each group, the neuron of y that correlates best with each of x; -1 for none."""
    found = np.full(x.sums.shape, -1, np.int32)
    if y.sums.shape[1]:
        for g, magnitude in enumerate(left_out(correlation, x, y, all_rows)):
            np.abs(magnitude, out=magnitude)
            best = magnitude.argmax(axis=1)
            found[g] = np.where(magnitude[np.arange(len(best)), best] > 0, best, -1)
    return found


def _numbers(
    live: Int64[np.ndarray, " live"], places: Int32[np.ndarray, "*draw x"], missing: int
) -> Int64[np.ndarray, "*draw x"]:
    """Numbers of the neurons at these places among the live ones; `missing` for -1."""
    return np.append(live, missing)[places]


class AgreementErrors:
    """Standard errors of agreement, its chance and kappa, from a clustered sample.

    Args:
      rows: sampled rows of every representation.
      clusters: of these rows.
      partners: of each layer's number those of the layers that have their best matches in it.
      tracks: numbers of the label tracks.
    """

    def __init__(
        self,
        rows: Sequence[RepresentationRows],
        clusters: SampledClusters,
        partners: Mapping[int, Sequence[int]],
        tracks: Sequence[int],
    ):
        self._clusters, self._rows, self._tracks = clusters, rows, tracks
        self._all_rows = clusters.total_rows
        of_cluster = folds(
            dict(zip(clusters.names, clusters.rows.tolist())), 0, min(GROUPS, len(clusters.names))
        )
        group = np.array([of_cluster[name] for name in clusters.names])
        self._groups = int(group.max()) + 1
        halves = (None,) if clusters.complete else (0, 1)
        self._halves = [_Half.of(clusters, group, half) for half in halves]
        live = {k: self._live(k) for k in partners}
        columns = sum(len(of) * len(live[k]) for k, of in partners.items())
        flops = 2 * sum(clusters.kept.tolist()) * columns
        self._most = max(int(_MOST_FLOPS / max(flops, 1)), _LEAST_NEURONS)
        self._of_tracks = [self._grouped(track, self._live(track)) for track in tracks]
        # Of each layer the neurons that are matched again, and their rows.
        self._chosen = {k: of[self._some(len(of))] for k, of in live.items()}
        self._of_chosen = {k: self._grouped(k, chosen) for k, chosen in self._chosen.items()}
        self._classes: dict[tuple[int, int], Int64[np.ndarray, "group track neuron"]] = {}
        self._matches: dict[tuple[int, int, int], Int32[np.ndarray, "group x"]] = {}

    def of_chosen(
        self, layer: int, correlation: Float[np.ndarray, "neuron y"]
    ) -> Float[np.ndarray, "chosen y"]:
        """Correlations of those neurons of a layer that are matched again.

        Args:
          layer: its number.
          correlation: of all its neurons.
        """
        return correlation[self._chosen[layer]]

    def add_layer(
        self,
        layer: int,
        of_tracks: Sequence[Float[np.ndarray, "neuron _class"]],
        of_layers: Mapping[int, Float[np.ndarray, "_chosen neuron"]],
    ) -> None:
        """Without each group, the classes of a layer's neurons, and whose best matches they are.

        Args:
          layer: its number.
          of_tracks: correlations of all its neurons with all classes of each track.
          of_layers: `of_chosen` of its partners with all its neurons, by the partners' numbers.
        """
        live, count = self._live(layer), len(of_tracks[0])
        for k, rows in enumerate(self._grouped(layer, live)):
            found = np.full((self._groups, len(self._tracks), count), -1, np.int64)
            for number, (track, correlation) in enumerate(zip(self._tracks, of_tracks)):
                known, of_track = self._live(track), self._of_tracks[number][k]
                best = _winners(correlation[np.ix_(live, known)], rows, of_track, self._all_rows)
                found[:, number, live] = _numbers(known, best, -1)
            self._classes[layer, k] = found
            for i, correlation in of_layers.items():
                chosen = self._of_chosen[i][k]
                best = _winners(correlation[:, live], chosen, rows, self._all_rows)
                self._matches[i, layer, k] = best

    def _some(self, live: int) -> Int64[np.ndarray, " chosen"]:
        """The neurons that are matched again: all, or two sets of one size, one after the other."""
        if self._most >= live:
            return np.arange(live)
        return np.random.default_rng(live).permutation(live)[: self._most // 2 * 2]

    def _grouped(self, k: int, neurons: Int64[np.ndarray, " chosen"]) -> list[GroupRows]:
        """The rows of each half, of some live neurons; one for both if the sample is complete.

        Args:
          k: number of the representation.
          neurons: their numbers.
        """
        zscored = self._rows[k].zscored_neurons(neurons)
        least = _LEAST_KEPT[self._clusters.complete]
        return [
            GroupRows.of(zscored, half.rows, half.weights, self._all_rows, least)
            for half in self._halves
        ]

    def of_pair(self, i: int, j: int) -> Float64[np.ndarray, "track three two"]:
        """Of agreement, chance and kappa the standard error and its relative error.

        Args:
          i: number of the one layer.
          j: of the other, in which it has its winners; both were added.
        """
        live_y, neurons = self._live(j), self._chosen[i]
        sets = 1 if len(neurons) == len(self._live(i)) else 2
        halves, tracks = len(self._halves), len(self._tracks)
        best = np.stack([self._matches[i, j, k] for k in range(halves)])[:, :, None]
        ours = np.stack([self._classes[i, k][:, :, neurons] for k in range(halves)])
        theirs = np.stack([self._classes[j, k] for k in range(halves)])
        of_winner = np.take_along_axis(theirs, _numbers(live_y, best, 0), axis=3)
        of_winner = np.where(best >= 0, of_winner, _NO_MATCH)
        shape = halves * self._groups * tracks * sets, len(neurons) // sets
        draws = (of.reshape(shape) for of in (ours, of_winner))
        found = agreements(*draws).reshape(halves, self._groups, tracks, sets, 3)
        found = np.broadcast_to(found.transpose(0, 3, 1, 2, 4), (2, sets, self._groups, tracks, 3))
        return self._spread(found, len(neurons) / sets / max(len(self._live(i)), 1))

    def _live(self, k: int) -> Int64[np.ndarray, " live"]:
        return np.flatnonzero(self._rows[k].moments.live)

    def _spread(
        self, found: Float64[np.ndarray, "two set group track three"], share_of_neurons: float
    ) -> Float64[np.ndarray, "track three two"]:
        """The jackknife's standard error and its own relative error.

        Args:
          found: of each half and set of neurons, without each group.
          share_of_neurons: that are in a set.
        """
        clusters, count = self._clusters, self._groups
        share = clusters.rows.sum() / clusters.total_rows / count
        scale = clusters.total / len(clusters.names) * count / (count - 1) * (1 - share) ** 2
        one, two = found - found.mean(axis=2, keepdims=True)
        sums = (one * two).sum(axis=1).mean(axis=0)
        if len(one) > 1:
            apart = (one * two[::-1]).sum(axis=1).mean(axis=0)
            sums = apart + (sums - apart) * share_of_neurons
        noise = np.square(one - two).mean(axis=(0, 1)) / 2
        signal = np.maximum(sums / count, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.sqrt(count * (2 * signal * noise + np.square(noise))) / (2 * sums)
        constant = (one == 0).all(axis=(0, 1)) & (two == 0).all(axis=(0, 1))
        relative = np.where(sums > 0, relative, np.where(constant, 0.0, np.inf))
        error = np.sqrt(scale * np.maximum(sums, 0))
        known = (relative <= MOST_RELATIVE) & (len(clusters.names) >= LEAST_CLUSTERS)
        return np.stack([np.where(known, error, np.nan), relative], axis=-1)
