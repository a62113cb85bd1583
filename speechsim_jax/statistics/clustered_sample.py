"""A bounded random sample of rows of every cluster (speaker or utterance), for standard errors.

Rows t of a cluster c have keys, a 64-bit hash of (seed, utterance, number within it). Kept are, of
each chosen cluster, the rows whose key is below a limit, and the `minimum` rows with the smallest
keys in any case: given their number, a simple random sample without replacement. Chosen are the
clusters whose names have the smallest hashes, of those that have rows. The limits are fixed before
any row is read (`choose`), so the sample depends on the set of rows only, and

    sample(A).merge([sample(B)]) = sample(A and B together).

On the host: rows x (sum of the widths of all representations) x 4 bytes. The rows of *all* clusters
are counted.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64, UInt64

from speechsim_jax.array_types import HiddenStates
from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import (
    BatchRows,
    EncodedBatch,
    LayerIndex,
    Snapshot,
    all_layers,
)
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.row_fetcher import RowFetcher
from speechsim_jax.statistics.sample import ClusterNames, joined_passes, row_keys, text_hash

_EVERY = 2**64
# Most clusters of which rows are kept.
_MOST_CLUSTERS = 200
# Rows of a cluster, at least: 32 of each of 100 clusters or more, and more of fewer.
_LEAST_ROWS, _LEAST_TOTAL = 32, 3200


@dataclasses.dataclass(frozen=True)
class ClusterChoice:
    """Which clusters are sampled and which of their rows.

    Attributes:
      seed: of the hashes.
      minimum: rows that are kept of each cluster in any case.
      row_limit: rows with a smaller key are kept, too.
      most_clusters: so many clusters, with the smallest hashes, are sampled.
      expected_rows: of the whole sample.
      measures_minimum, measures_row_limit: the same of the rows that standard errors of measures
        are estimated from, where labels need more than these; 0 where they are all.
    """

    seed: int
    minimum: int
    row_limit: int
    most_clusters: int
    expected_rows: int
    measures_minimum: int = 0
    measures_row_limit: int = 0

    def with_fewer_for_measures(self, fewer: "ClusterChoice") -> "ClusterChoice":
        """The same, of which measures take only what another choice keeps of each cluster."""
        return dataclasses.replace(
            self, most_clusters=fewer.most_clusters, measures_minimum=fewer.minimum,
            measures_row_limit=fewer.row_limit,
        )  # fmt: skip

    @property
    def for_measures(self) -> "ClusterChoice":
        """The choice that standard errors of measures are estimated from."""
        if not self.measures_minimum:
            return self
        return dataclasses.replace(
            self, minimum=self.measures_minimum, row_limit=self.measures_row_limit,
            measures_minimum=0, measures_row_limit=0,
        )  # fmt: skip

    def sampled(self, clusters: Iterable[str]) -> set[str]:
        """The clusters of which rows are kept, of all that have rows."""
        order = sorted(clusters, key=lambda name: _cluster_hash(self.seed, name))
        return set(order[: self.most_clusters])

    def kept(self, keys: UInt64[np.ndarray, " row"]) -> Int64[np.ndarray, " kept"]:
        """Positions of the rows of one cluster that are kept, by ascending key."""
        order = np.argsort(keys, kind="stable")
        # uint64 does not hold 2^64.
        below = len(keys) if self.row_limit >= _EVERY else int(np.sum(keys < self.row_limit))
        return order[: max(self.minimum, below)]


def choose(
    lengths: Mapping[str, int], most_rows: int, seed: int = 0, share: float = 0.05
) -> ClusterChoice:
    """The choice that keeps about `share` of the rows of up to 200 clusters.

    Args:
      lengths: rows of each cluster, as far as they are known before reading.
      most_rows: of the sample, about.
      seed: of the hashes.
      share: of a cluster's rows that are kept; of short clusters more, at least 32 rows (and up to
        3,200 of all clusters together).
    """
    most = min(_MOST_CLUSTERS, max(2, most_rows // _LEAST_ROWS))
    hashes = sorted((_cluster_hash(seed, name), name) for name in lengths)
    rows = np.array([lengths[name] for _, name in hashes[:most]], float)
    minimum = max(_LEAST_ROWS, _LEAST_TOTAL // max(len(rows), 1))
    minimum = min(minimum, max(most_rows // max(len(rows), 1), 2))

    def total(rate: float) -> float:
        return float(np.maximum(np.minimum(rows, minimum), rate * rows).sum())

    low, high = 0.0, share
    if total(high) > most_rows:
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) <= most_rows else (low, middle)
        high = low
    row_limit = _EVERY if high >= 1 else int(high * 2**53) << 11
    return ClusterChoice(seed, minimum, row_limit, most, round(total(high)))


def _cluster_hash(seed: int, cluster: str) -> int:
    return text_hash(f"{seed}\0cluster\0{cluster}")


@dataclasses.dataclass(frozen=True, eq=False)
class ClusteredSample:
    """The rows that were kept, by cluster and ascending key: a `State`.

    Attributes:
      choice: which rows are kept.
      clusters: names of all clusters, those of which no row is kept too, sorted.
      counts: rows of each of them that were read.
      keys: of each row of the sample.
      cluster: of each row of the sample, an index into `clusters`; ascending.
      rows: of each model, [layer, row, neuron].
      layers: index of each representation among all that are compared, ascending.
    """

    kind: ClassVar[str] = "clustered_sample"

    choice: ClusterChoice
    clusters: tuple[str, ...]
    counts: Int64[np.ndarray, " cluster"]
    keys: UInt64[np.ndarray, " row"]
    cluster: Int64[np.ndarray, " row"]
    rows: tuple[Float[np.ndarray, "_layer row _neuron"], ...]
    layers: tuple[LayerIndex, ...]

    @functools.cached_property
    def representations(self) -> tuple[Float[np.ndarray, "row _neuron"], ...]:
        """The rows of every layer of every model, in order."""
        return tuple(layer for model in self.rows for layer in model)

    @functools.cached_property
    def for_measures(self) -> "ClusteredSample":
        """The rows that standard errors of measures are estimated from.

        They are those that would have been sampled without labels.
        """
        choice = self.choice.for_measures
        if choice == self.choice:
            return self
        order = _order(choice, self.keys, self.cluster, [True] * len(self.clusters))
        return dataclasses.replace(
            self, choice=choice, keys=self.keys[order], cluster=self.cluster[order],
            rows=tuple(of_model[:, order] for of_model in self.rows),
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write counts.npy, keys.npy, cluster.npy, rows-MODEL.npy and state.json."""
        for name in ("counts", "keys", "cluster"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        for number, rows in enumerate(self.rows):
            np.save(folder / f"rows-{number}.npy", rows)
        record = {
            "choice": dataclasses.asdict(self.choice),
            "clusters": self.clusters,
            "models": len(self.rows),
            "layers": self.layers,
        }
        (folder / "state.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "ClusteredSample":
        """Read what `save` wrote."""
        record = json.loads((folder / "state.json").read_text())
        return cls(
            choice=ClusterChoice(**record["choice"]),
            clusters=tuple(record["clusters"]),
            counts=np.load(folder / "counts.npy"),
            keys=np.load(folder / "keys.npy"),
            cluster=np.load(folder / "cluster.npy"),
            rows=tuple(np.load(folder / f"rows-{k}.npy") for k in range(record["models"])),
            layers=tuple((model, layer) for model, layer in record["layers"]),
        )

    def merge(self, others: Sequence["ClusteredSample"]) -> "ClusteredSample":
        """The sample of the rows of all; the smallest of their limits hold.

        Raises:
          UserError: samples with different seeds.
        """
        states = (self, *others)
        choices = [state.choice for state in states]
        if len({choice.seed for choice in choices}) > 1:
            raise UserError("samples with different seeds cannot be merged; give all one seed")
        choice = ClusterChoice(
            seed=self.choice.seed,
            minimum=min(c.minimum for c in choices),
            row_limit=min(c.row_limit for c in choices),
            most_clusters=min(c.most_clusters for c in choices),
            expected_rows=sum(c.expected_rows for c in choices),
            measures_minimum=min(c.measures_minimum for c in choices),
            measures_row_limit=min(c.measures_row_limit for c in choices),
        )
        counts: collections.Counter[str] = collections.Counter()
        for state in states:
            counts.update(dict(zip(state.clusters, state.counts.tolist())))
        clusters = tuple(sorted(counts))
        number = {name: k for k, name in enumerate(clusters)}
        cluster = np.concatenate(
            [np.array([number[n] for n in s.clusters], np.int64)[s.cluster] for s in states]
        )
        keys = np.concatenate([state.keys for state in states])
        sampled = choice.sampled(clusters)
        order = _order(choice, keys, cluster, [name in sampled for name in clusters])
        rows = tuple(
            np.concatenate(of_model, axis=1)[:, order]
            for of_model in zip(*(state.rows for state in states), strict=True)
        )
        return ClusteredSample(
            choice, clusters, np.array([counts[name] for name in clusters], np.int64),
            keys[order], cluster[order], rows, self.layers,
        )  # fmt: skip

    def finish(
        self, others: Sequence["ClusteredSample"] = (), rank_tolerance: float | None = None
    ) -> "ClusteredSample":
        """The sample of all models, from this and those of the other passes."""
        if not others:
            return self
        for other in others:
            assert np.array_equal(other.keys, self.keys), "samples of other rows"
        states = (self, *others)
        rows, layers = joined_passes([(state.layers, state.rows) for state in states])
        return dataclasses.replace(self, rows=rows, layers=layers)


def _order(
    choice: ClusterChoice,
    keys: UInt64[np.ndarray, " row"],
    cluster: Int64[np.ndarray, " row"],
    taken: Sequence[bool],
) -> Int64[np.ndarray, " kept"]:
    """Positions of the rows that are kept, by cluster and ascending key."""
    parts = [np.zeros(0, np.int64)]
    for number, takes in enumerate(taken):
        positions = np.flatnonzero(cluster == number) if takes else np.zeros(0, np.int64)
        # A row that several samples have counts once.
        _, first = np.unique(keys[positions], return_index=True)
        positions = positions[first]
        parts.append(positions[choice.kept(keys[positions])])
    return np.concatenate(parts)


class ClusteredSampleAccumulator:
    """Takes the sample of every cluster, batch by batch: an `Accumulator`.

    Which rows enter is decided at once, on the host; they are fetched one batch later.

    Args:
      shapes: layers and width of each model.
      choice: which rows are kept.
      names: the cluster of each row of a batch.
      rows_dtype: type of the rows.
      layers: index of each layer among all that are compared; by default those of `shapes` are all.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        choice: ClusterChoice,
        names: ClusterNames,
        rows_dtype: str = "float32",
        layers: tuple[LayerIndex, ...] | None = None,
    ):
        self._choice, self._names = choice, names
        self._layers = all_layers(shapes) if layers is None else layers
        # Memory that no row is written to is not taken from the machine.
        size = int(1.2 * choice.expected_rows) + choice.minimum
        self._keys = np.zeros(size, np.uint64)  # of the row in each slot
        self._free = list(range(size))[::-1]
        self._slots: dict[str, np.ndarray] = {}  # of each sampled cluster
        self._counts: collections.Counter[str] = collections.Counter()
        self._fetcher = RowFetcher(
            [np.zeros((s.layers, size, s.neurons), rows_dtype) for s in shapes]
        )

    def update(self, batch: EncodedBatch) -> None:
        """Consider the rows of a batch."""
        self.append(batch.hidden, batch.rows)

    def append(self, hidden: tuple[HiddenStates, ...], rows: BatchRows) -> None:
        """Consider rows of each model.

        Args:
          hidden: of each model.
          rows: which frames, and what identifies them.
        """
        keys = row_keys(self._choice.seed, rows)
        names, cluster = np.unique(self._names(rows).astype(str), return_inverse=True)
        entering, targets = [], []
        self._counts.update(dict(zip(names.tolist(), np.bincount(cluster).tolist())))
        sampled = self._sampled(names.tolist())
        for number, name in enumerate(names.tolist()):
            if name in sampled:
                new = np.flatnonzero(cluster == number)
                chosen, slots = self._enter(name, keys[new])
                entering.append(new[chosen])
                targets.append(slots)
        if entering:
            self._fetcher.fetch(
                hidden, rows.positions[np.concatenate(entering)], np.concatenate(targets)
            )
        self._fetcher.settle()

    def _sampled(self, names: Sequence[str]) -> set[str]:
        """The sampled clusters once these have rows; those that they displace leave."""
        sampled = self._choice.sampled({*self._slots, *names})
        for name in self._slots.keys() - sampled:
            self._free += self._slots.pop(name).tolist()
        return sampled

    def _enter(
        self, name: str, keys: UInt64[np.ndarray, " row"]
    ) -> tuple[Int64[np.ndarray, " entering"], Int64[np.ndarray, " entering"]]:
        """Which of a cluster's new rows enter, and their slots; rows that they displace leave."""
        slots = self._slots.get(name, np.zeros(0, np.int64))
        kept = self._choice.kept(np.concatenate([self._keys[slots], keys]))
        staying, entering = kept[kept < len(slots)], kept[kept >= len(slots)] - len(slots)
        self._free += np.setdiff1d(slots, slots[staying]).tolist()
        while len(self._free) < len(entering):
            self._grow()
        new = np.array([self._free.pop() for _ in entering], np.int64)
        self._keys[new] = keys[entering]
        self._slots[name] = np.concatenate([slots[staying], new])
        return entering, new

    def _grow(self) -> None:
        """Make room for half as many rows again."""
        self._fetcher.wait()
        size = len(self._keys)
        more = size // 2 + 1
        self._keys = np.concatenate([self._keys, np.zeros(more, np.uint64)])
        self._free = [*range(size + more - 1, size - 1, -1), *self._free]
        self._fetcher.rows = tuple(
            np.concatenate([x, np.zeros((x.shape[0], more, x.shape[2]), x.dtype)], axis=1)
            for x in self._fetcher.rows
        )

    def wait(self) -> None:
        """Block until everything added so far is on the host."""
        self._fetcher.wait()

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        self.wait()
        names = sorted(self._slots)
        slots = np.concatenate([np.zeros(0, np.int64), *(self._slots[n] for n in names)])
        return {
            "kind": self._kind(),
            "clusters": names,
            "sizes": np.array([len(self._slots[name]) for name in names], np.int64),
            "counts": dict(self._counts),
            "keys": self._keys[slots],
            "rows": [x[:, slots] for x in self._fetcher.rows],
        }

    def _kind(self) -> str:
        """What two accumulators must share for one to resume from the other's snapshot."""
        shapes = [(str(x.dtype), x.shape[0], x.shape[2]) for x in self._fetcher.rows]
        return repr((self._choice, shapes))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot, on any devices.

        Raises:
          UserError: a snapshot of other models or another choice.
        """
        if snapshot["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models or clusters than this sample; start from the "
                "beginning, or use the settings it was made with"
            )
        kept = len(snapshot["keys"])
        while len(self._keys) < kept:
            self._grow()
        self._keys[:kept] = snapshot["keys"]
        self._free = list(range(kept, len(self._keys)))[::-1]
        self._counts = collections.Counter(snapshot["counts"])
        ends = np.cumsum(snapshot["sizes"])
        slots = np.split(np.arange(kept), ends[:-1]) if len(ends) else []
        self._slots = dict(zip(snapshot["clusters"], slots))
        for stored, rows in zip(self._fetcher.rows, snapshot["rows"]):
            stored[:, :kept] = rows

    def result(self) -> ClusteredSample:
        """The sample of everything added."""
        self.wait()
        clusters = tuple(sorted(self._counts))
        number = {name: k for k, name in enumerate(clusters)}
        slots = np.concatenate([np.zeros(0, np.int64), *self._slots.values()])
        cluster = np.repeat(
            np.array([number[name] for name in self._slots], np.int64),
            [len(of_cluster) for of_cluster in self._slots.values()],
        )
        order = np.lexsort((self._keys[slots], cluster))
        stored, self._fetcher.rows = list(self._fetcher.rows), ()
        rows = []
        while stored:  # one model's rows exist twice, not all
            rows.append(stored.pop(0)[:, slots[order]])
        return ClusteredSample(
            choice=self._choice,
            clusters=clusters,
            counts=np.array([self._counts[name] for name in clusters], np.int64),
            keys=self._keys[slots[order]],
            cluster=cluster[order],
            rows=tuple(rows),
            layers=self._layers,
        )
