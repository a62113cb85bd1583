"""A bounded sample of rows, the same whatever the order, batches, devices and models.

Every row has a key, a 64-bit hash of (seed, utterance, number within it); the sample holds the
`size` rows with the smallest keys ("bottom-k sampling", Cohen & Kaplan 2007), drawn uniformly
without replacement. It depends on the set of rows only, and

    sample(A).merge([sample(B)]) = sample(A and B together).

Keys are computed on the host, so only rows that enter leave the device: about
size (1 + ln(rows / size)) of a corpus. Kept on the host: size x (sum of the widths of all
representations) x 4 bytes.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt64

from speechsim_jax.array_types import HiddenStates
from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import (
    BatchRows,
    EncodedBatch,
    LayerIndex,
    Snapshot,
    all_layers,
)
from speechsim_jax.statistics.derived import DerivesOnce
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.row_fetcher import RowFetcher

# Of clusters, at most.
_GROUPS = 20
_LAST_KEY = np.uint64(2**64 - 1)

ClusterNames = Callable[[BatchRows], Shaped[np.ndarray, " row"]]
"""The cluster of each row of a batch: its speaker or utterance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """At most `size` rows, by ascending key: a `State`.

    Attributes:
      size: most rows.
      seed: of the keys.
      keys: of each row.
      utterances: of each row, not cut into pieces; "" where not known.
      numbers: of each row within its utterance.
      clusters: of each row, what standard errors are taken over; "" without these.
      rows: of each model, [layer, row, neuron].
      layers: index of each representation among all that are compared, ascending.
    """

    kind: ClassVar[str] = "sample"

    size: int
    seed: int
    keys: UInt64[np.ndarray, " row"]
    utterances: Shaped[np.ndarray, " row"]
    numbers: Int64[np.ndarray, " row"]
    clusters: Shaped[np.ndarray, " row"]
    rows: tuple[Float[np.ndarray, "_layer row _neuron"], ...]
    layers: tuple[LayerIndex, ...]

    @functools.cached_property
    def representations(self) -> tuple["SampledRepresentation", ...]:
        """Every layer of every model, in order."""
        utterance, cluster = (_numbered(names) for names in (self.utterances, self.clusters))
        return tuple(
            SampledRepresentation(layer, utterance, cluster)
            for model in self.rows
            for layer in model
        )

    def save(self, folder: Path) -> None:
        """Write keys.npy, numbers.npy and rows-MODEL.npy."""
        np.save(folder / "keys.npy", self.keys)
        np.save(folder / "numbers.npy", self.numbers)
        for number, rows in enumerate(self.rows):
            np.save(folder / f"rows-{number}.npy", rows)
        record = {
            "size": self.size,
            "seed": self.seed,
            "utterances": self.utterances.tolist(),
            "clusters": self.clusters.tolist(),
            "models": len(self.rows),
            "layers": self.layers,
        }
        (folder / "state.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "Sample":
        """Read what `save` wrote."""
        record = json.loads((folder / "state.json").read_text())
        return cls(
            size=record["size"],
            seed=record["seed"],
            keys=np.load(folder / "keys.npy"),
            utterances=np.array(record["utterances"], object),
            numbers=np.load(folder / "numbers.npy"),
            clusters=np.array(record["clusters"], object),
            rows=tuple(np.load(folder / f"rows-{k}.npy") for k in range(record["models"])),
            layers=tuple((model, layer) for model, layer in record["layers"]),
        )

    def merge(self, others: Sequence["Sample"]) -> "Sample":
        """The sample of the rows of all; a row that several of them have counts once.

        Raises:
          UserError: samples of another size or seed.
        """
        return functools.reduce(_merge_two, others, self)

    def finish(
        self, others: Sequence["Sample"] = (), rank_tolerance: float | None = None
    ) -> "Sample":
        """The sample of all models, from this and those of the other passes.

        A representation that several passes have is taken from the first.
        """
        if not others:
            return self
        for other in others:
            assert np.array_equal(other.keys, self.keys), "samples of other rows"
        rows, layers = joined_passes([(state.layers, state.rows) for state in (self, *others)])
        return dataclasses.replace(self, rows=rows, layers=layers)


def joined_passes(
    passes: Sequence[
        tuple[tuple[LayerIndex, ...], tuple[Float[np.ndarray, "_layer row _neuron"], ...]]
    ],
) -> tuple[tuple[Float[np.ndarray, "_layer row _neuron"], ...], tuple[LayerIndex, ...]]:
    """The rows of all models from those of several passes.

    A representation that several passes have is taken from the first.

    Args:
      passes: of each, the index of its representations and the rows of its models.

    Returns:
      The rows of all models, and the index of each representation, ascending.
    """
    rows_of: dict[LayerIndex, np.ndarray] = {}
    for indices, models in passes:
        by_layer = (layer for model in models for layer in model)
        for index, layer in zip(indices, by_layer, strict=True):
            rows_of.setdefault(index, layer)
    models = sorted({model for model, _ in rows_of})
    rows = tuple(
        np.stack([rows_of[index] for index in sorted(rows_of) if index[0] == model])
        for model in models
    )
    return rows, tuple(sorted(rows_of))


def _merge_two(a: Sample, b: Sample) -> Sample:
    if (a.size, a.seed) != (b.size, b.seed):
        raise UserError(
            f"samples of {a.size} rows with seed {a.seed} and of {b.size} with seed {b.seed} "
            "cannot be merged; give both the same sample_frames and seed"
        )
    _, smallest = np.unique(np.concatenate([a.keys, b.keys]), return_index=True)
    smallest = smallest[: a.size]

    def join(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.take(np.concatenate([x, y], axis), smallest, axis)

    return dataclasses.replace(
        a,
        keys=join(a.keys, b.keys),
        utterances=join(a.utterances, b.utterances),
        numbers=join(a.numbers, b.numbers),
        clusters=join(a.clusters, b.clusters),
        rows=tuple(join(x, y, 1) for x, y in zip(a.rows, b.rows)),
    )


def _numbered(names: Shaped[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """A number for each name, in their order; -1 for ""."""
    _, number = np.unique(names.astype(str), return_inverse=True)
    return np.where(names == "", -1, number)


def row_keys(seed: int, rows: BatchRows) -> UInt64[np.ndarray, " row"]:
    """A 64-bit hash of (seed, utterance or piece, number) of each row.

    splitmix64 from a state that BLAKE2b derives from seed and utterance; a bijection of the state,
    so the rows of one utterance never collide.

    Source: Steele, Lea & Flood 2014.
    """
    starts = [text_hash(f"{seed}\0{id_}") for id_ in rows.ids]
    state = np.array(starts, np.uint64)[rows.utterance]
    state = state + (rows.number + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def text_hash(text: str) -> int:
    """A 64-bit hash, the same on every machine."""
    # A file name that is not UTF-8 arrives with lone surrogates.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class SampleAccumulator:
    """Takes the sample of a corpus, batch by batch: an `Accumulator`.

    Which rows enter is decided at once, on the host; they are fetched one batch later.

    Args:
      shapes: layers and width of each model.
      size: most rows.
      seed: of the keys.
      rows_dtype: type of the rows.
      layers: index of each layer among all that are compared; by default those of `shapes` are all.
      names: the cluster of each row of a batch; None without standard errors.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        size: int,
        seed: int = 0,
        rows_dtype: str = "float32",
        layers: tuple[LayerIndex, ...] | None = None,
        names: ClusterNames | None = None,
    ):
        self._size, self._seed, self._names = size, seed, names
        self._layers = all_layers(shapes) if layers is None else layers
        self._keys = np.full(size, _LAST_KEY)  # of the row in each slot
        self._utterances = np.full(size, "", object)
        self._numbers = np.zeros(size, np.int64)
        self._clusters = np.full(size, "", object)
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
        keys = row_keys(self._seed, rows)
        new = np.argsort(keys)[: self._size]
        slots = np.argsort(self._keys)[::-1][: len(new)]
        # New keys ascend and those in the slots descend: the pairs that are exchanged come first.
        entering = int(np.sum(keys[new] < self._keys[slots]))
        if entering:
            new, slots = new[:entering], slots[:entering]
            self._keys[slots] = keys[new]
            self._utterances[slots] = np.array(rows.utterances, object)[rows.utterance[new]]
            self._numbers[slots] = rows.number[new]
            if self._names is not None:
                self._clusters[slots] = self._names(rows)[new]
            self._fetcher.fetch(hidden, rows.positions[new], slots)
        self._fetcher.settle()

    def wait(self) -> None:
        """Block until everything added so far is on the host."""
        self._fetcher.wait()

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        self.wait()
        return {
            "kind": self._kind(),
            "keys": self._keys.copy(),
            "utterances": self._utterances.tolist(),
            "numbers": self._numbers.copy(),
            "clusters": self._clusters.tolist(),
            "rows": [x.copy() for x in self._fetcher.rows],
        }

    def _kind(self) -> str:
        """What two accumulators must share for one to resume from the other's snapshot."""
        shapes = [(str(x.dtype), x.shape) for x in self._fetcher.rows]
        return repr((self._size, self._seed, shapes))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot, on any devices.

        Raises:
          UserError: a snapshot of other models, or another size or seed.
        """
        if snapshot["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models, sample_frames or seed than this sample; start "
                "from the beginning, or use the settings it was made with"
            )
        self._keys, self._numbers = snapshot["keys"].copy(), snapshot["numbers"].copy()
        self._utterances = np.array(snapshot["utterances"], object)
        self._clusters = np.array(snapshot["clusters"], object)
        self._fetcher = RowFetcher([x.copy() for x in snapshot["rows"]])

    def result(self) -> Sample:
        """The sample of everything added."""
        self.wait()
        order = np.argsort(self._keys)
        order = order[self._keys[order] < _LAST_KEY]
        rows, self._fetcher.rows = self._fetcher.rows, ()
        return Sample(
            size=self._size,
            seed=self._seed,
            keys=self._keys[order],
            utterances=self._utterances[order],
            numbers=self._numbers[order],
            clusters=self._clusters[order],
            rows=tuple(x[:, order] for x in rows),
            layers=self._layers,
        )


def _groups(representation: "SampledRepresentation") -> Int64[np.ndarray, " row"]:
    """The group of each row, the largest cluster first, each to the smallest group."""
    sizes = np.bincount(representation.cluster)
    total = np.zeros(min(_GROUPS, len(sizes)), np.int64)
    group = np.zeros(len(sizes), np.int64)
    for cluster in np.argsort(-sizes, kind="stable"):
        group[cluster] = total.argmin()
        total[group[cluster]] += sizes[cluster]
    return group[representation.cluster]


class SampledRepresentation(DerivesOnce):
    """One representation's rows of the sample, and what measures derive from them.

    Args:
      rows: the rows, of any float type.
      utterance: a number for the utterance of each row, -1 where it is not known.
      cluster: a number for what standard errors are taken over, -1 without these, which is the
        default.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "row neuron"],
        utterance: Int64[np.ndarray, " row"],
        cluster: Int64[np.ndarray, " row"] | None = None,
    ):
        super().__init__()
        self._rows = rows
        self.utterance = utterance
        self.cluster = np.full(len(rows), -1) if cluster is None else cluster

    @property
    def group(self) -> Int64[np.ndarray, " row"]:
        """The group of each row: clusters in at most 20 groups, balanced in rows."""
        return self.once(_groups)

    @property
    def rows(self) -> Float[np.ndarray, "row neuron"]:
        """The rows in float64."""
        return self._rows.astype(np.float64)
