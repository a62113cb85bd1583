"""Gathers rows into a buffer of fixed size, and adds a full buffer to the moments.

One product over thousands of rows runs several times faster than many over a few hundred, and a
buffer of one shape means one compiled update for batches of any shape.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from speechsim_jax._jax_compat import x64
from speechsim_jax.array_types import HiddenStates
from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments, moments_merge, moments_on_mesh
from speechsim_jax.statistics.accumulator import EncodedBatch, LayerIndex, Snapshot, all_layers
from speechsim_jax.statistics.moments import ModelShape, Moments, Tile
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.moments_on_mesh import Programs, pack


class MomentsAccumulator:
    """Accumulates `Moments` over the rows of all models: an `Accumulator`.

    The first full buffer (or all rows, if there are fewer) gives the reference shift. Buffers and
    state are allocated at the start and donated, so device memory is constant. On a mesh of several
    devices each has its own buffer, for the frames of its utterances; when one is full, all are
    added.

    Args:
      shapes: layers and width of each model.
      rows_per_update: rows of each device's buffer.
      stats_dtype: type of the sums, "float32" (compensated) or "float64" (on a CPU).
      rows_dtype: type of the rows in the buffers.
      mesh: devices; one if None.
      tiles: layer pairs to accumulate; all if None.
      layers: index of each layer among all that are compared; by default those of `shapes` are all.
      precision: of the products of float32 numbers (`product_precision`); float64 ignores it.

    Raises:
      UserError: the mesh cannot divide the width of a model.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        rows_per_update: int,
        stats_dtype: str = "float32",
        rows_dtype: str = "float32",
        mesh: Mesh | None = None,
        tiles: tuple[Tile, ...] | None = None,
        layers: tuple[LayerIndex, ...] | None = None,
        precision: str = "highest",
    ):
        self._x64 = "float64" in (stats_dtype, rows_dtype)
        self._dtypes = stats_dtype, rows_dtype
        several = mesh if mesh is not None and mesh.size > 1 else None
        self._programs = _one_device() if several is None else moments_on_mesh.on_mesh(several)
        self._mesh = [1, 1] if several is None else list(several.devices.shape)
        self._layers = all_layers(shapes) if layers is None else layers
        self._fills = [0] * self._programs.devices
        self._has_reference = False
        self._precision = "highest" if self._x64 else precision
        self._size = rows_per_update
        with x64(self._x64):
            self._buffers = self._programs.buffers(shapes, rows_per_update, rows_dtype)
            self._state = self._programs.zero(shapes, tiles, stats_dtype)

    @property
    def rows(self) -> int:
        """Rows added so far, those in the buffers included."""
        return sum(self._fills) + moments.count_of(self._state)

    def update(self, batch: EncodedBatch) -> None:
        """Add the rows of a batch."""
        self.append(batch.hidden, batch.rows.positions)

    def append(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, " row"]
    ) -> None:
        """Add frames of each model.

        Args:
          hidden: of each model; on a mesh, the batch axis is divided over all devices
            (`runtime.mesh.place_batch`).
          positions: which frames, on the flattened [batch * frame] axis.
        """
        self.append_each(hidden, np.tile(positions, (len(hidden), 1)))

    def append_each(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, "model row"]
    ) -> None:
        """Add rows that are made of other frames in each model.

        Args:
          hidden: of each model, as in `append`; of all the same batch and frames.
          positions: which frames of each model; those of one row are on one device.
        """
        waiting = self._by_device(hidden[0], positions)
        while any(frames.size for frames in waiting):
            source = np.full((len(hidden), len(waiting), self._size), -1, np.int32)
            for device, (fill, frames) in enumerate(zip(self._fills, waiting)):
                taken = frames[:, : self._size - fill]
                count = taken.shape[1]
                source[:, device, fill : fill + count] = taken
                self._fills[device] += count
                waiting[device] = frames[:, count:]
            with x64(self._x64):
                sources = tuple(source.reshape(len(hidden), -1))
                self._buffers = self._programs.pack(self._buffers, hidden, sources)
            if max(self._fills) == self._size:
                self._flush()

    def _by_device(
        self, hidden: HiddenStates, positions: Int64[np.ndarray, "model row"]
    ) -> list[Int64[np.ndarray, "model _"]]:
        """The positions in each device's utterances, counted from its first frame."""
        share = hidden.shape[1] * hidden.shape[2] // self._programs.devices
        device, position = np.divmod(positions, share)
        return [position[:, device[0] == d] for d in range(self._programs.devices)]

    def _flush(self) -> None:
        valid = np.array(self._fills, np.int32)
        with x64(self._x64):
            if not self._has_reference:
                reference = self._programs.reference_mean(self._buffers, valid)
                self._state = moments.with_reference(self._state, reference)
                self._has_reference = True
            self._state = self._programs.update(
                self._state, self._buffers, valid, precision=self._precision
            )
        self._fills = [0] * len(self._fills)

    def share_reference(self, other: "MomentsAccumulator") -> None:
        """Give the reference shift to another accumulator of the same models that has none yet."""
        if self._has_reference and not other._has_reference:
            with x64(self._x64):
                # A copy: states are written over.
                reference = jax.tree.map(jnp.array, self._state.reference)
                other._state = moments.with_reference(other._state, reference)
            other._has_reference = True

    def flush(self) -> None:
        """Add what is in the buffers to the sums."""
        if any(self._fills):
            self._flush()

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        jax.block_until_ready((self._buffers, self._state))

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        return {
            "kind": self._kind(),
            "mesh": self._mesh,
            "fills": list(self._fills),
            "has_reference": self._has_reference,
            "state": [np.asarray(x) for x in jax.tree.leaves(self._state)],
            "buffers": [np.asarray(x) for x in self._buffers],
        }

    def _kind(self) -> str:
        """What two accumulators must share for one to resume from the other's snapshot."""
        return repr((self._state.shapes, self._state.tiles, self._dtypes))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; nothing may have been added yet.

        On a mesh of the same shape the state is bit-equal; on another, the sums of all devices are
        added up and the rows in the buffers are divided over the current devices.

        Raises:
          UserError: a snapshot of other models, layer pairs or precision.
        """
        if snapshot["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models, layer pairs or precision; start from the "
                "beginning, or use the settings it was made with"
            )
        empty, structure = jax.tree.flatten(self._state)
        state = jax.tree.unflatten(structure, snapshot["state"])
        for array in empty:  # make room for what replaces it
            array.delete()
        self._has_reference = bool(snapshot["has_reference"])
        rows = self._size * self._programs.devices
        same = list(snapshot["mesh"]) == self._mesh and snapshot["buffers"][0].shape[1] == rows
        with x64(self._x64):
            if same:
                self._state = self._programs.place_state(state)
                self._buffers = self._programs.place_rows(tuple(snapshot["buffers"]))
                self._fills = list(snapshot["fills"])
            else:
                on_first = moments_on_mesh.of_one_device(state, self._mesh[0])
                self._state = self._programs.place_state(on_first)
                self._append_rows(snapshot["buffers"], snapshot["fills"])

    def append_host(self, rows: tuple[np.ndarray, ...]) -> None:
        """Add rows of each model that are on the host, [layer, row, neuron]."""
        with x64(self._x64):
            self._append_rows(list(rows), [rows[0].shape[1]])

    def _append_rows(self, buffers: list[np.ndarray], fills: list[int]) -> None:
        """Add the first rows of each device's part of the buffers, divided over all devices."""
        size = buffers[0].shape[1] // len(fills)
        filled = np.concatenate([np.arange(fill) + d * size for d, fill in enumerate(fills)])
        if not len(filled):
            return
        devices = self._programs.devices
        padded = np.resize(filled, -(-len(filled) // devices) * devices)
        rows = [x[:, padded].reshape(len(x), devices, -1, x.shape[2]) for x in buffers]
        self.append(self._programs.place_rows(tuple(rows)), np.arange(len(filled)))

    def result(self) -> MomentsState:
        """The sums over all rows; the buffers are freed.

        On several devices all sums except the cross moments are moved to the host, in one part.
        """
        self.flush()
        self._buffers = ()
        state = _small_on_host(self._state) if self._programs.devices > 1 else self._state
        return MomentsState.of(state, self._layers)


def _small_on_host(state: Moments) -> Moments:
    """All sums except the cross moments, added up over devices; these when read, pair by pair."""
    sums = dataclasses.replace(state.sums, cross=())
    small = moments_merge.on_host(dataclasses.replace(state, sums=sums, tiles=()))
    sums = dataclasses.replace(small.sums, cross=state.sums.cross)
    return dataclasses.replace(small, sums=sums, tiles=state.tiles)


def _one_device() -> Programs:
    return Programs(
        devices=1,
        zero=moments.zero,
        buffers=_buffers,
        pack=_pack,
        reference_mean=_reference_mean,
        update=_update,
        # Copies: the arguments may stay in use, and the state is written over.
        place_state=lambda state: jax.tree.map(jnp.array, state),
        place_rows=lambda rows: tuple(map(jnp.array, rows)),
    )


@functools.partial(jax.jit, static_argnames=("shapes", "size", "dtype"))
def _buffers(shapes: tuple[ModelShape, ...], size: int, dtype: str) -> moments_on_mesh.Buffers:
    return tuple(jnp.zeros((s.layers, size, s.neurons), dtype) for s in shapes)


_pack = jax.jit(pack, donate_argnums=0)
_update = jax.jit(moments.update, donate_argnums=0, static_argnames="precision")
_reference_mean = jax.jit(moments.reference_mean)
