"""The attention sums of a whole stream, and what measures read at its end."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from speechsim_jax._jax_compat import x64
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.mesh import AXES
from speechsim_jax.statistics import attention_sums, moments_on_mesh
from speechsim_jax.statistics.accumulator import Snapshot
from speechsim_jax.statistics.attention_finished import (
    FinishedAttention,
    HeadSums,
    finish_attention,
)
from speechsim_jax.statistics.attention_sums import AttentionSums, Rows
from speechsim_jax.statistics.moments import ModelShape

AttentionInputs = Any
"""A pytree that maps are made of: queries and keys, or the maps themselves."""

MakeRows = Callable[[AttentionInputs, Int[Array, ""], Int[Array, " row"]], Rows]
"""(parts, utterance of the batch, queries) -> rows of the maps of all heads."""


class AttentionAccumulator:
    """Adds the attention of batches to `AttentionSums`; only the sums stay.

    `streams`: layers and heads (as `neurons`) of every model, in the order of the heads that
    `make_rows` gives. `wanted`: the sums that are needed (`attention.update`). On a `mesh` every
    device adds its own utterances of a batch to its own sums, which lie side by side as more parts;
    `batch_axis` names, by field, the axis of the parts that is divided: the first where it does not
    say, none for None.
    """

    def __init__(
        self,
        streams: tuple[ModelShape, ...],
        make_rows: MakeRows,
        wanted: tuple[str, ...],
        stats_dtype: str = "float32",
        mesh: Mesh | None = None,
        batch_axis: Mapping[str, int | None] = {},
    ):
        self._streams, self._wanted, self._dtype = streams, wanted, stats_dtype
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._update = _program(make_rows, wanted, self._mesh, tuple(batch_axis.items()))
        self._lengths: list[int] = []
        with x64(stats_dtype == "float64"):
            self._state = attention_sums.zero(
                sum(s.layers * s.neurons for s in streams), stats_dtype
            )
            if self._mesh is not None:
                self._state = self._placed(jax.tree.map(np.asarray, self._state))

    def _placed(self, state: AttentionSums) -> AttentionSums:
        """A state on the host, of as many devices as it was made on, on the devices there are."""
        devices = 1 if self._mesh is None else self._mesh.size
        if len(state.gram) != 2 * devices:
            state = jax.tree.map(lambda x: moments_on_mesh.first_of(x, devices), state)
        if self._mesh is None:
            return jax.tree.map(jnp.array, state)
        layout = NamedSharding(self._mesh, P(AXES))
        return jax.tree.map(lambda x: jax.device_put(x, layout), state)

    @property
    def utterances(self) -> int:
        """Utterances added so far."""
        return len(self._lengths)

    def append(
        self, parts: AttentionInputs, lengths: Int[np.ndarray, " batch"], frames: int
    ) -> None:
        """Add a batch of utterances of `lengths` frames (0 for a filler), padded to `frames`."""
        with x64(self._dtype == "float64"):
            self._state = self._update(
                self._state, parts, jnp.asarray(lengths, jnp.int32), frames=frames
            )
        self._lengths += [int(length) for length in lengths if length]

    def wait(self) -> None:
        """Block until everything appended so far has been computed."""
        jax.block_until_ready(self._state)

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the stream may go on."""
        return {
            "kind": self._kind(),
            "lengths": list(self._lengths),
            "state": [np.asarray(x) for x in jax.tree.leaves(self._state)],
        }

    def _kind(self) -> str:
        """What streams must share for one to go on with the other's snapshot."""
        return repr((self._streams, self._wanted, self._dtype))

    def restore(self, found: Snapshot) -> None:
        """Go on where `snapshot` was taken, on this number of devices or another.

        Raises UserError for a snapshot of other heads, sums or precision.
        """
        if found["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other attention heads, sums or numbers than this stream; start "
                "anew, or with what it was made with"
            )
        state = jax.tree.unflatten(jax.tree.structure(self._state), found["state"])
        with x64(self._dtype == "float64"):
            self._state = self._placed(state)
        self._lengths = list(found["lengths"])

    def close(self) -> "HeadSums":
        """What was added, on the host; the stream is used up."""
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), self._state)
        return HeadSums(self._streams, self._wanted, self._dtype, sums, tuple(self._lengths))

    def finish(self, rank_tolerance: float | None = None) -> "FinishedAttention":
        """The finished statistic."""
        return finish_attention(self.close(), rank_tolerance)


@functools.lru_cache(maxsize=16)
def _program(
    make_rows: MakeRows,
    wanted: tuple[str, ...],
    mesh: Mesh | None,
    batch_axis: tuple[tuple[str, int | None], ...],
) -> Callable[..., AttentionSums]:
    """What adds a batch to the sums; streams of the same maps share what is compiled."""
    update = functools.partial(_update, make_rows, wanted)
    if mesh is not None:
        update = functools.partial(_update_on_mesh, mesh, dict(batch_axis), update)
    return jax.jit(update, static_argnames="frames", donate_argnums=0)


def _update(
    make_rows: MakeRows,
    wanted: tuple[str, ...],
    state: AttentionSums,
    parts: AttentionInputs,
    lengths: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    return attention_sums.update(
        state, functools.partial(make_rows, parts), lengths, frames, wanted
    )


def _update_on_mesh(
    mesh: Mesh,
    batch_axis: Mapping[str, int | None],
    update: Callable[..., AttentionSums],
    state: AttentionSums,
    parts: AttentionInputs,
    lengths: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    """`update` on every device, of its own sums by its own utterances."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(parts)

    def layout(path: tuple) -> P:
        axis = batch_axis.get(getattr(path[-1], "name", ""), 0) if path else 0
        return P() if axis is None else P(*(None,) * axis, AXES)

    def own(state: AttentionSums, leaves: list[Array], lengths: Array) -> AttentionSums:
        return update(state, jax.tree.unflatten(structure, leaves), lengths, frames=frames)

    layouts = [layout(path) for path, _ in leaves]
    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(P(AXES), layouts, P(AXES)),
        out_specs=P(AXES),
        check_vma=False,
    )
    return mapped(state, [leaf for _, leaf in leaves], lengths)
