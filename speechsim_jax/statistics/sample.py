"""A bounded sample of rows, the same whatever the order, batches, devices and models.

Every row has a key, a 64-bit hash of (seed, utterance, number within it); the sample holds the
`size` rows with the smallest keys ("bottom-k sampling", Cohen & Kaplan 2007), drawn uniformly
without replacement. It depends on the set of rows only, and

    merge_samples(sample(A), sample(B)) = sample(A and B together),

with `zero` as the identity. Keys are worked out on the host, so only rows that enter leave the
device: about size (1 + ln(rows / size)) over a whole stream. Kept on the host: size x (sum of the
widths of all representations) x 4 bytes.
"""

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Shaped, UInt64

from speechsim_jax._jax_compat import x64
from speechsim_jax.array_types import HiddenStates, ModelRows
from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import BatchRows, Snapshot
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_finished import LayerIndex

# Rows that one gather takes from the device: one compiled shape, and little too much at the end.
_GATHER = 64
_LAST_KEY = np.uint64(2**64 - 1)

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """At most `size` rows, by rising key; `utterances` are whole ones ("" where not known)."""

    size: int
    seed: int
    keys: UInt64[np.ndarray, " row"]
    utterances: Shaped[np.ndarray, " row"]
    numbers: Int64[np.ndarray, " row"]
    rows: tuple[Float[np.ndarray, "_layer row _neuron"], ...]

    @property
    def representations(self) -> tuple["SampledRepresentation", ...]:
        """Every layer of every stream, in order."""
        _, utterance = np.unique(self.utterances.astype(str), return_inverse=True)
        utterance = np.where(self.utterances == "", -1, utterance)
        return tuple(
            SampledRepresentation(layer, utterance) for stream in self.rows for layer in stream
        )


def zero(
    streams: tuple[ModelShape, ...], size: int, seed: int = 0, dtype: str = "float32"
) -> Sample:
    """The sample of no rows."""
    rows = tuple(np.zeros((s.layers, 0, s.neurons), dtype) for s in streams)
    return Sample(
        size, seed, np.zeros(0, np.uint64), np.zeros(0, object), np.zeros(0, np.int64), rows
    )


def merge_samples(a: Sample, b: Sample) -> Sample:
    """The sample of the rows of both; a row that both hold counts once.

    Raises UserError unless size and seed agree.
    """
    if (a.size, a.seed) != (b.size, b.seed):
        raise UserError(
            f"samples of {a.size} rows with seed {a.seed} and of {b.size} with seed {b.seed} "
            "cannot be merged; give both the same sample_frames and seed"
        )
    _, kept = np.unique(np.concatenate([a.keys, b.keys]), return_index=True)
    kept = kept[: a.size]

    def join(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.take(np.concatenate([x, y], axis), kept, axis)

    return Sample(
        size=a.size,
        seed=a.seed,
        keys=join(a.keys, b.keys),
        utterances=join(a.utterances, b.utterances),
        numbers=join(a.numbers, b.numbers),
        rows=tuple(join(x, y, 1) for x, y in zip(a.rows, b.rows)),
    )


def of_streams(parts: Sequence[tuple[Sample, Sequence[LayerIndex]]]) -> Sample:
    """The sample of all streams, from samples of the same rows that have some of their representations.

    Each part names the stream and layer of its representations; a representation that several have
    is taken from the first.
    """
    first, _ = parts[0]
    if len(parts) == 1:
        return first
    for part, _ in parts[1:]:
        assert np.array_equal(part.keys, first.keys), "samples of other rows"
    layers: dict[LayerIndex, np.ndarray] = {}
    for part, places in parts:
        own = (layer for stream in part.rows for layer in stream)
        for place, layer in zip(places, own, strict=True):
            layers.setdefault(place, layer)
    numbers = sorted({stream for stream, _ in layers})
    rows = tuple(
        np.stack([layers[place] for place in sorted(layers) if place[0] == number])
        for number in numbers
    )
    return dataclasses.replace(first, rows=rows)


def row_keys(seed: int, rows: BatchRows) -> UInt64[np.ndarray, " row"]:
    """A 64-bit hash of (seed, utterance or piece, number) of each row.

    splitmix64 (Steele, Lea & Flood 2014) from a state that BLAKE2b makes of seed and utterance; a
    bijection of the state, so the rows of one utterance never collide.
    """
    starts = [_hash(f"{seed}\0{id_}") for id_ in rows.ids]
    state = np.array(starts, np.uint64)[rows.utterance]
    state = state + (rows.number + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _hash(text: str) -> int:
    # A file name that is no UTF-8 reaches us with lone surrogates.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class SampleAccumulator:
    """Takes the sample of a stream of batches.

    Which rows enter is decided at once, on the host; they are fetched one batch later, so that the
    device is never waited for. On the device: at most `size` rows of each of two batches.
    """

    def __init__(
        self, streams: tuple[ModelShape, ...], size: int, seed: int = 0, rows_dtype: str = "float32"
    ):
        self._size, self._seed = size, seed
        self._x64 = rows_dtype == "float64"
        self._keys = np.full(size, _LAST_KEY)  # of the row in each slot
        self._utterances = np.full(size, "", object)
        self._numbers = np.zeros(size, np.int64)
        self._rows = tuple(np.zeros((s.layers, size, s.neurons), rows_dtype) for s in streams)
        self._coming: collections.deque[tuple[np.ndarray, list[tuple[ModelRows, ...]]]] = (
            collections.deque()
        )

    def append(self, hidden: tuple[HiddenStates, ...], rows: BatchRows) -> None:
        """Consider the rows of a batch, of each stream."""
        keys = row_keys(self._seed, rows)
        new = np.argsort(keys)[: self._size]
        slots = np.argsort(self._keys)[::-1][: len(new)]
        # The new keys rise and the kept ones fall: those that exchange come first.
        entering = int(np.sum(keys[new] < self._keys[slots]))
        if entering:
            new, slots = new[:entering], slots[:entering]
            self._keys[slots] = keys[new]
            self._utterances[slots] = np.array(rows.wholes, object)[rows.utterance[new]]
            self._numbers[slots] = rows.number[new]
            self._coming.append((slots, self._gather(hidden, rows.positions[new])))
        while len(self._coming) > 1:
            self._store()

    def _gather(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, " _entering"]
    ) -> list[tuple[ModelRows, ...]]:
        blocks = []
        for start in range(0, len(positions), _GATHER):
            source = np.zeros(_GATHER, np.int32)
            part = positions[start : start + _GATHER]
            source[: len(part)] = part
            with x64(self._x64):
                blocks.append(_take(hidden, source))
        return blocks

    def _store(self) -> None:
        """Put the oldest rows on their way into their slots."""
        slots, blocks = self._coming.popleft()
        for index, block in enumerate(blocks):
            places = slots[index * _GATHER : (index + 1) * _GATHER]
            for kept, rows in zip(self._rows, block):
                kept[:, places] = np.asarray(rows)[:, : len(places)]

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the stream may go on."""
        while self._coming:
            self._store()
        return {
            "kind": self._kind(),
            "keys": self._keys.copy(),
            "utterances": self._utterances.tolist(),
            "numbers": self._numbers.copy(),
            "rows": [x.copy() for x in self._rows],
        }

    def _kind(self) -> str:
        """What streams must share for one to go on with the other's snapshot."""
        shapes = [(str(x.dtype), x.shape) for x in self._rows]
        return repr((self._size, self._seed, shapes))

    def restore(self, found: Snapshot) -> None:
        """Go on where `snapshot` was taken, on whatever devices.

        Raises UserError for a snapshot of other models, or another size or seed.
        """
        if found["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models, sample_frames or seed than this sample; start "
                "anew, or with what it was made with"
            )
        self._keys, self._numbers = found["keys"].copy(), found["numbers"].copy()
        self._utterances = np.array(found["utterances"], object)
        self._rows = tuple(x.copy() for x in found["rows"])

    def finish(self) -> Sample:
        """The sample of everything seen; the stream is used up."""
        while self._coming:
            self._store()
        order = np.argsort(self._keys)
        order = order[self._keys[order] < _LAST_KEY]
        rows, self._rows = self._rows, ()
        return Sample(
            size=self._size,
            seed=self._seed,
            keys=self._keys[order],
            utterances=self._utterances[order],
            numbers=self._numbers[order],
            rows=tuple(x[:, order] for x in rows),
        )


@jax.jit
def _take(
    hidden: tuple[HiddenStates, ...], source: Shaped[Array | np.ndarray, " row"]
) -> tuple[ModelRows, ...]:
    """The frames at `source` of the flattened [batch * frame] axis."""

    def take(states: HiddenStates) -> ModelRows:
        frames = states.reshape(states.shape[0], -1, states.shape[-1])
        return jnp.take(frames, jnp.asarray(source), axis=1)

    return tuple(take(states) for states in hidden)


class SampledRepresentation:
    """One representation's rows of the sample, in float64 when read, and what measures made of them.

    `utterance`: a number for the utterance of each row, -1 where it is not known.
    """

    def __init__(self, rows: Float[np.ndarray, "row neuron"], utterance: Int64[np.ndarray, " row"]):
        self._rows = rows
        self.utterance = utterance
        self._made: dict[tuple, Any] = {}
        self._lock = threading.RLock()

    @property
    def rows(self) -> Float[np.ndarray, "row neuron"]:
        """The rows in float64."""
        return self._rows.astype(np.float64)

    def once(self, make: Callable[..., Made], *arguments: Any) -> Made:
        """make(representation, *arguments), made at the first call and kept for the next."""
        with self._lock:
            key = (make, *arguments)
            if key not in self._made:
                self._made[key] = make(self, *arguments)
            return self._made[key]

    def release(self) -> None:
        """Forget what was made."""
        with self._lock:
            self._made.clear()
