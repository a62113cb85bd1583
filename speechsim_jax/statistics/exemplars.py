"""The frames that excite each neuron most: its exemplars.

An exemplar of a neuron is the best frame of an utterance: the one with the largest activation (not
the largest magnitude). Of each neuron the `count` utterances with the largest best frames are kept.
One frame of an utterance, because neighbouring frames are of one sound, and five of them would show
it once: a rule that needs no order of reading, so that

    exemplars(A).merge([exemplars(B)]) = exemplars(A and B together)

to the last bit, whatever the batches, devices, passes and shards. Equal activations: the earlier
frame of an utterance; of utterances the one with the smaller 64-bit hash of its id, then the
smaller id. A neuron that never changes has no exemplars.

The best frames are found where the hidden states are; an exemplar takes 12 bytes.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

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
from speechsim_jax.statistics.sample import text_hash

_NONE = -1
_LAST = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronExemplars:
    """The exemplars of the neurons of one representation.

    Attributes:
      value: activations, falling along `rank`; NaN where there are no more.
      utterance: of each, an index into the utterances of `Exemplars`; -1 where there are no more.
      sample: the centre of each frame, in samples at 16 kHz from the start of the utterance.
    """

    value: Float32[np.ndarray, "rank neuron"]
    utterance: Int32[np.ndarray, "rank neuron"]
    sample: Int32[np.ndarray, "rank neuron"]


@dataclasses.dataclass(frozen=True, eq=False)
class Exemplars:
    """Exemplars of the neurons of all representations, one after the other: a `State`.

    Attributes:
      utterances: those that have an exemplar, in the order in which equal activations are taken.
      value: activations, falling along `rank`; -inf where there are no more.
      utterance: of each, an index into `utterances`; -1 where there are no more.
      sample: the centre of each frame, in samples at 16 kHz from the start of the utterance.
      lowest: the smallest activation of each neuron.
      layers: index of each representation among all that are compared, ascending.
      widths: neurons of each of them.
    """

    kind: ClassVar[str] = "exemplars"

    utterances: tuple[str, ...]
    value: Float32[np.ndarray, "rank neuron"]
    utterance: Int32[np.ndarray, "rank neuron"]
    sample: Int32[np.ndarray, "rank neuron"]
    lowest: Float32[np.ndarray, " neuron"]
    layers: tuple[LayerIndex, ...]
    widths: tuple[int, ...]

    @property
    def count(self) -> int:
        """Exemplars of a neuron, at most."""
        return len(self.value)

    @functools.cached_property
    def representations(self) -> tuple[NeuronExemplars, ...]:
        """Those of every representation, in order; none of a neuron that never changes."""
        known = (self.utterance != _NONE) & (self.lowest < self.value[0])
        arrays = (
            np.where(known, self.value, np.float32(np.nan)),
            np.where(known, self.utterance, np.int32(_NONE)),
            np.where(known, self.sample, np.int32(0)),
        )
        parts = (_split(array, self.widths) for array in arrays)
        return tuple(NeuronExemplars(*of_one) for of_one in zip(*parts))

    def without(self, numbers: Collection[int]) -> "Exemplars":
        """The exemplars of the other representations.

        Args:
          numbers: of representations that leave.
        """
        left = [k for k in range(len(self.layers)) if k not in numbers]
        arrays = {
            name: np.concatenate(
                [_split(getattr(self, name), self.widths)[k] for k in left]
                or [getattr(self, name)[..., :0]],
                axis=-1,
            )
            for name in ("value", "utterance", "sample", "lowest")
        }
        layers, widths = (tuple(of[k] for k in left) for of in (self.layers, self.widths))
        return dataclasses.replace(self, **arrays, layers=layers, widths=widths)._used()

    def save(self, folder: Path) -> None:
        """Write value.npy, utterance.npy, sample.npy, lowest.npy and state.json."""
        for name in ("value", "utterance", "sample", "lowest"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        record = {"utterances": self.utterances, "layers": self.layers, "widths": self.widths}
        (folder / "state.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "Exemplars":
        """Read what `save` wrote."""
        record = json.loads((folder / "state.json").read_text())
        return cls(
            utterances=tuple(record["utterances"]),
            value=np.load(folder / "value.npy"),
            utterance=np.load(folder / "utterance.npy"),
            sample=np.load(folder / "sample.npy"),
            lowest=np.load(folder / "lowest.npy"),
            layers=tuple((model, layer) for model, layer in record["layers"]),
            widths=tuple(record["widths"]),
        )

    def merge(self, others: Sequence["Exemplars"]) -> "Exemplars":
        """The exemplars of all rows; as many of a neuron as the states with the fewest have.

        Utterances of one name, of several jobs, count as one.

        Raises:
          UserError: exemplars of other models or layers.
        """
        states = (self, *others)
        if any((s.layers, s.widths) != (self.layers, self.widths) for s in others):
            raise UserError("exemplars of other models or layers cannot be merged")
        names, numbers = _together(states)
        count = min(state.count for state in states)
        found = _selected(
            np.concatenate([state.value for state in states]),
            np.concatenate(numbers),
            np.concatenate([state.sample for state in states]),
            count,
            0,
        )
        value, utterance, sample = map(np.asarray, found)
        lowest = np.min([state.lowest for state in states], axis=0)
        merged = dataclasses.replace(
            self, utterances=names, value=value, utterance=utterance, sample=sample, lowest=lowest
        )
        return merged._used()

    def finish(
        self, others: Sequence["Exemplars"] = (), rank_tolerance: float | None = None
    ) -> "Exemplars":
        """The exemplars of all models, from this and those of the other passes.

        A representation that several passes have is taken from the first.
        """
        if not others:
            return self
        states = (self, *others)
        names, numbers = _together(states)
        columns: dict[LayerIndex, tuple[np.ndarray, ...]] = {}
        for state, utterance in zip(states, numbers):
            arrays = (state.value, utterance, state.sample, state.lowest[None])
            parts = zip(*(_split(array, state.widths) for array in arrays))
            for index, of_one in zip(state.layers, parts, strict=True):
                columns.setdefault(index, of_one)
        layers = tuple(sorted(columns))
        value, utterance, sample, lowest = (
            np.concatenate([columns[index][k] for index in layers], axis=1) for k in range(4)
        )
        widths = tuple(columns[index][0].shape[1] for index in layers)
        return Exemplars(names, value, utterance, sample, lowest[0], layers, widths)._used()

    def _used(self) -> "Exemplars":
        """The same without the utterances that have no exemplar."""
        used, number = np.unique(self.utterance, return_inverse=True)
        known = used[used != _NONE]
        # With -1 among `used` it is the first.
        utterance = (number - (len(used) - len(known))).astype(np.int32)
        names = tuple(self.utterances[k] for k in known)
        return dataclasses.replace(
            self, utterances=names, utterance=utterance.reshape(self.utterance.shape)
        )


def _split(array: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """The columns of each representation."""
    return [array[..., end - width : end] for width, end in zip(widths, np.cumsum(widths))]


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Utterances in the order in which equal activations are taken."""
    return tuple(sorted(names, key=lambda name: (text_hash(name), name)))


def _together(states: Sequence[Exemplars]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The utterances of all states in order, and the exemplars' numbers among these."""
    names = _in_order({name for state in states for name in state.utterances})
    place = {name: k for k, name in enumerate(names)}
    numbers = []
    for state in states:
        # One more: what is no exemplar has number -1, the last.
        of_state = np.array([*(place[n] for n in state.utterances), _NONE], np.int32)
        numbers.append(of_state[state.utterance])
    return names, numbers


class _Kept(NamedTuple):
    """The exemplars of one model on the devices: as in `Exemplars`, by layer."""

    value: Float32[Array | np.ndarray, "layer rank neuron"]
    utterance: Int32[Array | np.ndarray, "layer rank neuron"]
    sample: Int32[Array | np.ndarray, "layer rank neuron"]
    lowest: Float32[Array | np.ndarray, "layer neuron"]


class ExemplarsAccumulator:
    """Finds the exemplars of a corpus, batch by batch: an `Accumulator`.

    Everything is on the devices; on a mesh of several each has all exemplars, and the best frames
    of its own utterances go to the others.

    Args:
      shapes: layers and width of each model.
      count: exemplars of a neuron, at most.
      utterances: ids of all that may be added.
      hop_samples: between the centres of two frames.
      first_centre_samples: where the first frame is centred.
      mesh: devices; one if None.
      layers: index of each layer among all that are compared; by default those of `shapes` are all.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        count: int,
        utterances: Sequence[str],
        hop_samples: int,
        first_centre_samples: int,
        mesh: Mesh | None = None,
        layers: tuple[LayerIndex, ...] | None = None,
    ):
        self._shapes, self._count = shapes, count
        self._layers = all_layers(shapes) if layers is None else layers
        self._names = _in_order(utterances)
        self._number = {name: k for k, name in enumerate(self._names)}
        self._hop, self._centre = hop_samples, first_centre_samples
        self._everywhere = None if mesh is None else NamedSharding(mesh, P())
        self._kept = tuple(
            self._placed(
                _Kept(
                    value=np.full((s.layers, count, s.neurons), -np.inf, np.float32),
                    utterance=np.full((s.layers, count, s.neurons), _NONE, np.int32),
                    sample=np.zeros((s.layers, count, s.neurons), np.int32),
                    lowest=np.full((s.layers, s.neurons), np.inf, np.float32),
                )
            )
            for s in shapes
        )

    def _placed(self, kept: _Kept) -> _Kept:
        """On every device; a copy."""
        if self._everywhere is None:
            return jax.tree.map(jnp.array, kept)
        return jax.device_put(kept, self._everywhere)

    def update(self, batch: EncodedBatch) -> None:
        """Consider the rows of a batch."""
        self.append(batch.hidden, batch.rows)

    def append(self, hidden: tuple[HiddenStates, ...], rows: BatchRows) -> None:
        """Consider rows of each model.

        Args:
          hidden: of each model; on a mesh, the batch axis is divided over all devices.
          rows: which frames, and what identifies them.
        """
        batch, frames = hidden[0].shape[1:3]
        chosen = np.zeros(batch * frames, bool)
        chosen[rows.positions] = True
        utterance = np.full(batch, _NONE, np.int32)
        utterance[: len(rows.ids)] = [self._number[name] for name in rows.utterances]
        start = np.full(batch, self._centre, np.int32)
        start[: len(rows.starts)] += np.array(rows.starts, np.int32)
        given = chosen.reshape(batch, frames), utterance, start
        self._kept = tuple(
            _add(kept, of_model, *given, self._hop, everywhere=self._everywhere)
            for kept, of_model in zip(self._kept, hidden)
        )

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        jax.block_until_ready(self._kept)

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        arrays = {name: [np.asarray(getattr(kept, name)) for kept in self._kept]
                  for name in _Kept._fields}  # fmt: skip
        return {"kind": self._kind(), **arrays}

    def _kind(self) -> str:
        """What two accumulators must share for one to resume from the other's snapshot."""
        shapes = [kept.value.shape for kept in self._kept]
        return repr((shapes, text_hash("\0".join(self._names))))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot, on any devices.

        Raises:
          UserError: a snapshot of other models or utterances, or another number of exemplars.
        """
        if snapshot["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models, utterances or another number of exemplars; start "
                "from the beginning, or use the settings it was made with"
            )
        models = zip(*(snapshot[name] for name in _Kept._fields), strict=True)
        self._kept = tuple(self._placed(_Kept(*of_model)) for of_model in models)

    def result(self) -> Exemplars:
        """The exemplars of everything added."""

        def joined(name: str) -> np.ndarray:
            arrays = [np.asarray(getattr(kept, name)) for kept in self._kept]
            if not arrays:  # a pass of tracks alone
                kind = np.float32 if name == "value" else np.int32
                return np.zeros((self._count, 0), kind)
            # [layer, rank, neuron] as [rank, neuron] with the layers one after the other.
            return np.concatenate([x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in arrays], 1)

        lowest = np.concatenate(
            [np.zeros(0, np.float32), *(np.asarray(kept.lowest).ravel() for kept in self._kept)]
        )
        widths = tuple(s.neurons for s in self._shapes for _ in range(s.layers))
        return Exemplars(
            self._names, joined("value"), joined("utterance"), joined("sample"), lowest,
            self._layers, widths,
        )._used()  # fmt: skip


@functools.partial(jax.jit, static_argnames="everywhere")
def _add(
    kept: _Kept,
    hidden: HiddenStates,
    chosen: Bool[Array | np.ndarray, "batch frame"],
    utterance: Int32[Array | np.ndarray, " batch"],
    start: Int32[Array | np.ndarray, " batch"],
    hop: int | Int32[Array, ""],
    *,
    everywhere: Sharding | None,
) -> _Kept:
    """The exemplars of what was added before and of a batch of one model.

    Args:
      kept: the exemplars so far.
      hidden: of one model.
      chosen: which frames are rows.
      utterance: number of each, -1 for fillers.
      start: the centre of the first frame of each, in samples.
      hop: samples between two frames.
      everywhere: where exemplars are on a mesh of several devices; None on one.
    """
    rows = jnp.asarray(chosen)[:, :, None]

    def best_frames(layer: Float[Array, "batch frame neuron"]) -> tuple[Array, Array, Array]:
        frames = layer.astype(jnp.float32)
        value = jnp.max(frames, axis=1, initial=-jnp.inf, where=rows)
        lowest = jnp.min(frames, axis=1, initial=jnp.inf, where=rows)
        time = lax.broadcasted_iota(jnp.int32, frames.shape, 1)
        first = jnp.min(time, axis=1, initial=_LAST, where=rows & (frames == value[:, None]))
        return value, lowest, first

    # Layer by layer: a CPU makes copies, and of one layer they are small.
    value, lowest, first = lax.map(best_frames, hidden)
    sample = jnp.asarray(start)[:, None] + hop * jnp.where(first == _LAST, 0, first)
    number = jnp.broadcast_to(jnp.asarray(utterance)[:, None], value.shape)
    found = _Kept(value, number, sample, lowest.min(axis=1))
    if everywhere is not None:
        found = lax.with_sharding_constraint(found, everywhere)
    best, who, when = _selected(
        jnp.concatenate([kept.value, found.value], axis=1),
        jnp.concatenate([kept.utterance, found.utterance], axis=1),
        jnp.concatenate([kept.sample, found.sample], axis=1),
        kept.value.shape[1],
        1,
    )
    new = _Kept(best, who, when, jnp.minimum(kept.lowest, found.lowest))
    return new if everywhere is None else lax.with_sharding_constraint(new, everywhere)


@functools.partial(jax.jit, static_argnames=("count", "axis"))
def _selected(
    value: Float32[Array | np.ndarray, "*candidates"],
    utterance: Int32[Array | np.ndarray, "*candidates"],
    sample: Int32[Array | np.ndarray, "*candidates"],
    count: int,
    axis: int,
) -> tuple[Float32[Array, "*exemplars"], Int32[Array, "*exemplars"], Int32[Array, "*exemplars"]]:
    """The best of the candidates along an axis, one of each utterance, falling."""
    utterance, sample = jnp.asarray(utterance), jnp.asarray(sample)

    def take(left: Float32[Array, "*candidates"], _: None) -> tuple[Array, tuple[Array, ...]]:
        top = left.max(axis, keepdims=True)
        best = (left == top) & (top > -jnp.inf)
        who = jnp.where(best, utterance, _LAST).min(axis, keepdims=True)
        own = utterance == who
        when = jnp.where(best & own, sample, _LAST).min(axis, keepdims=True)
        none = who == _LAST
        found = top, jnp.where(none, _NONE, who), jnp.where(none, 0, when)
        return jnp.where(own, -jnp.inf, left), found

    _, found = lax.scan(take, jnp.asarray(value), length=count)
    best, who, when = (jnp.moveaxis(x.squeeze(axis + 1), 0, axis) for x in found)
    return best, who, when
