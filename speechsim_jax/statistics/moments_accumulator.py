"""Rows on their way into a statistic: gathered into a buffer of fixed size, then added at once.

One product over thousands of rows runs several times faster than many over a few hundred, and a
buffer of one shape means one compiled update, whatever the batches look like.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from speechsim_jax._jax_compat import x64
from speechsim_jax.array_types import HiddenStates
from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments, moments_merge, moments_on_mesh
from speechsim_jax.statistics.accumulator import Snapshot
from speechsim_jax.statistics.moments import ModelShape, Moments, Tile
from speechsim_jax.statistics.moments_finished import FinishedMoments
from speechsim_jax.statistics.moments_on_mesh import Programs, pack


class MomentsAccumulator:
    """Adds frames of all models to `Moments`, `rows_per_update` at a time.

    The first full buffer (or all there is) gives the pilot. Buffers and state are made at once and
    donated, so device memory is constant. On a `mesh` of several devices each has a buffer of
    `rows_per_update` rows, for the frames of its own utterances; when one is full, all are added.
    `tiles`: the layer pairs to accumulate, all unless given. Raises UserError for models that the
    mesh cannot divide.
    """

    def __init__(
        self,
        streams: tuple[ModelShape, ...],
        rows_per_update: int,
        stats_dtype: str = "float32",
        rows_dtype: str = "float32",
        mesh: Mesh | None = None,
        tiles: tuple[Tile, ...] | None = None,
    ):
        self._x64 = "float64" in (stats_dtype, rows_dtype)
        self._dtypes = stats_dtype, rows_dtype
        several = mesh if mesh is not None and mesh.size > 1 else None
        self._programs = _one_device() if several is None else moments_on_mesh.on_mesh(several)
        self._mesh = [1, 1] if several is None else list(several.devices.shape)
        self._fills = [0] * self._programs.devices
        self._has_pilot = False
        self._size = rows_per_update
        with x64(self._x64):
            self._buffers = self._programs.buffers(streams, rows_per_update, rows_dtype)
            self._state = self._programs.zero(streams, tiles, stats_dtype)

    @property
    def rows(self) -> int:
        """Rows added so far, those in the buffers included."""
        return sum(self._fills) + moments.count_of(self._state)

    def append(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, " row"]
    ) -> None:
        """Add the frames at `positions` of the flattened [batch * frame] axis of each stream.

        On a mesh, batch is divided over all devices (`sharding.place_batch`).
        """
        waiting = self._by_device(hidden[0], positions)
        while any(map(len, waiting)):
            source = np.full((len(waiting), self._size), -1, np.int32)
            for device, (fill, frames) in enumerate(zip(self._fills, waiting)):
                taken = frames[: self._size - fill]
                source[device, fill : fill + len(taken)] = taken
                self._fills[device] += len(taken)
                waiting[device] = frames[len(taken) :]
            with x64(self._x64):
                self._buffers = self._programs.pack(self._buffers, hidden, source.reshape(-1))
            if max(self._fills) == self._size:
                self._flush()

    def _by_device(
        self, hidden: HiddenStates, positions: Int64[np.ndarray, " row"]
    ) -> list[Int64[np.ndarray, " _"]]:
        """The positions that lie in each device's utterances, counted from its first frame."""
        share = hidden.shape[1] * hidden.shape[2] // self._programs.devices
        device, position = np.divmod(positions, share)
        return [position[device == d] for d in range(self._programs.devices)]

    def _flush(self) -> None:
        valid = np.array(self._fills, np.int32)
        with x64(self._x64):
            if not self._has_pilot:
                pilot = self._programs.pilot_mean(self._buffers, valid)
                self._state = moments.with_pilot(self._state, pilot)
                self._has_pilot = True
            self._state = self._programs.update(self._state, self._buffers, valid)
        self._fills = [0] * len(self._fills)

    def wait(self) -> None:
        """Block until everything appended so far has been computed."""
        jax.block_until_ready((self._buffers, self._state))

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the stream may go on."""
        return {
            "kind": self._kind(),
            "mesh": self._mesh,
            "fills": list(self._fills),
            "has_pilot": self._has_pilot,
            "state": [np.asarray(x) for x in jax.tree.leaves(self._state)],
            "buffers": [np.asarray(x) for x in self._buffers],
        }

    def _kind(self) -> str:
        """What streams must share for one to go on with the other's snapshot."""
        return repr((self._state.streams, self._state.tiles, self._dtypes))

    def restore(self, found: Snapshot) -> None:
        """Go on where `snapshot` was taken; this stream must have heard nothing yet.

        On a mesh of the same shape every bit is as it was; on another the sums of all devices are
        added up, and the rows in the buffers divided anew. Raises UserError for a snapshot of other
        models, layer pairs or precision.
        """
        if found["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other models, layer pairs or numbers than this stream; start "
                "anew, or with what it was made with"
            )
        empty, structure = jax.tree.flatten(self._state)
        state = jax.tree.unflatten(structure, found["state"])
        for array in empty:  # room for what takes its place
            array.delete()
        self._has_pilot = bool(found["has_pilot"])
        rows = self._size * self._programs.devices
        same = list(found["mesh"]) == self._mesh and found["buffers"][0].shape[1] == rows
        with x64(self._x64):
            if same:
                self._state = self._programs.place_state(state)
                self._buffers = self._programs.place_rows(tuple(found["buffers"]))
                self._fills = list(found["fills"])
            else:
                on_first = moments_on_mesh.of_one_device(state, self._mesh[0])
                self._state = self._programs.place_state(on_first)
                self._append_rows(found["buffers"], found["fills"])

    def _append_rows(self, buffers: list[np.ndarray], fills: list[int]) -> None:
        """Add the first rows of each device's part of the buffers, divided over all devices."""
        size = buffers[0].shape[1] // len(fills)
        kept = np.concatenate([np.arange(fill) + d * size for d, fill in enumerate(fills)])
        if not len(kept):
            return
        devices = self._programs.devices
        padded = np.resize(kept, -(-len(kept) // devices) * devices)
        rows = [x[:, padded].reshape(len(x), devices, -1, x.shape[2]) for x in buffers]
        self.append(self._programs.place_rows(tuple(rows)), np.arange(len(kept)))

    def close(self) -> Moments:
        """Add what is left in the buffers, free them, and return the state.

        Of several devices all sums but the cross moments are on the host, in one part.
        """
        if any(self._fills):
            self._flush()
        self._buffers = ()
        return _small_on_host(self._state) if self._programs.devices > 1 else self._state

    def finish(self, rank_tolerance: float | None = None) -> FinishedMoments:
        """The finished statistic; the stream is used up."""
        return FinishedMoments(self.close(), rank_tolerance)


def _small_on_host(state: Moments) -> Moments:
    """All but the cross moments summed over devices; these are when read, block by block."""
    sums = dataclasses.replace(state.sums, cross=())
    small = moments_merge.on_host(dataclasses.replace(state, sums=sums, tiles=()))
    sums = dataclasses.replace(small.sums, cross=state.sums.cross)
    return dataclasses.replace(small, sums=sums, tiles=state.tiles)


def _one_device() -> Programs:
    def buffers(streams: tuple[ModelShape, ...], size: int, dtype: str) -> moments_on_mesh.Buffers:
        return tuple(jnp.zeros((s.layers, size, s.neurons), dtype) for s in streams)

    return Programs(
        devices=1,
        zero=moments.zero,
        buffers=buffers,
        pack=_pack,
        pilot_mean=_pilot_mean,
        update=_update,
        # Copies: what is given may stay in use, and the state is written over.
        place_state=lambda state: jax.tree.map(jnp.array, state),
        place_rows=lambda rows: tuple(map(jnp.array, rows)),
    )


_pack = jax.jit(pack, donate_argnums=0)
_update = jax.jit(moments.update, donate_argnums=0)
_pilot_mean = jax.jit(moments.pilot_mean)
