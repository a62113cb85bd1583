"""Rows on their way into a statistic: gathered into a buffer of fixed size, then added at once.

One product over thousands of rows runs several times faster than many over a few hundred, and a
buffer of one shape means one compiled update, whatever the batches look like.
"""

import contextlib
import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Int64

from speechsim_jax.statistics import moments
from speechsim_jax.statistics.finished import FinishedMoments
from speechsim_jax.statistics.moments import Stream
from speechsim_jax.typing import HiddenStates, StreamRows


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which JAX keeps 64-bit types, under the name it has in this release."""
    if not enabled:
        return contextlib.nullcontext()
    switch = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return switch.enable_x64(True)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchRows:
    """Which frames of a batch are rows of the statistics, and where they come from.

    `positions`: on the flattened [batch * frame] axis, rising. `utterance`: index into `ids`, the
    utterances of the batch, or the pieces of long ones; `wholes` are the utterances that these are
    of ("" where not known). `number`: of the frame (or segment) within its utterance; with the id
    it names the row.
    """

    positions: Int64[np.ndarray, " row"]
    utterance: Int64[np.ndarray, " row"]
    number: Int64[np.ndarray, " row"]
    ids: tuple[str, ...]
    wholes: tuple[str, ...]


class MomentsStream:
    """Adds frames of all models to `Moments`, `rows_per_update` at a time.

    The first full buffer (or all there is) gives the pilot. Buffers and state are made at once and
    donated, so device memory is constant.
    """

    def __init__(
        self,
        streams: tuple[Stream, ...],
        rows_per_update: int,
        stats_dtype: str = "float32",
        rows_dtype: str = "float32",
    ):
        self._x64 = "float64" in (stats_dtype, rows_dtype)
        self._fill = 0
        self._has_pilot = False
        self._size = rows_per_update
        with x64(self._x64):
            self._buffers = tuple(
                jnp.zeros((s.layers, rows_per_update, s.neurons), rows_dtype) for s in streams
            )
            self._state = moments.zero(streams, dtype=stats_dtype)

    @property
    def rows(self) -> int:
        """Rows added so far, those in the buffer included."""
        return self._fill + moments.count_of(self._state)

    def append(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, " row"]
    ) -> None:
        """Add the frames at `positions` of the flattened [batch * frame] axis of each stream."""
        start = 0
        while start < len(positions):
            taken = min(self._size - self._fill, len(positions) - start)
            source = np.full(self._size, -1, np.int32)
            source[self._fill : self._fill + taken] = positions[start : start + taken]
            with x64(self._x64):
                self._buffers = _pack(self._buffers, hidden, source)
            self._fill += taken
            start += taken
            if self._fill == self._size:
                self._flush()

    def _flush(self) -> None:
        with x64(self._x64):
            valid = jnp.asarray(self._fill, jnp.int32)
            if not self._has_pilot:
                pilot = _pilot_mean(self._buffers, valid)
                self._state = moments.with_pilot(self._state, pilot)
                self._has_pilot = True
            self._state = _update(self._state, self._buffers, valid)
        self._fill = 0

    def wait(self) -> None:
        """Block until everything appended so far has been computed."""
        jax.block_until_ready((self._buffers, self._state))

    def finish(self, rank_tolerance: float | None = None) -> FinishedMoments:
        """Add what is left in the buffer, free it, and return the finished statistic."""
        if self._fill:
            self._flush()
        self._buffers = ()
        return FinishedMoments(self._state, rank_tolerance)


def pack(
    buffers: tuple[StreamRows, ...],
    hidden: tuple[HiddenStates, ...],
    source: Int32[Array | np.ndarray, " row"],
) -> tuple[StreamRows, ...]:
    """buffer[:, r] = hidden frame source[r] (index into batch * frame); kept where source is -1."""
    source = jnp.asarray(source)

    def fill(buffer: StreamRows, states: HiddenStates) -> StreamRows:
        frames = states.reshape(states.shape[0], -1, states.shape[-1])
        chosen = jnp.take(frames, jnp.maximum(source, 0), axis=1)
        return jnp.where((source >= 0)[:, None], chosen.astype(buffer.dtype), buffer)

    return tuple(fill(buffer, states) for buffer, states in zip(buffers, hidden))


_pack = jax.jit(pack, donate_argnums=0)
_update = jax.jit(moments.update, donate_argnums=0)
_pilot_mean = jax.jit(moments.pilot_mean)
