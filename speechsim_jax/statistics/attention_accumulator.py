"""Accumulates the attention sums of batches on the devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
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
from speechsim_jax.statistics.accumulator import EncodedBatch, Snapshot
from speechsim_jax.statistics.attention_finished import AttentionState
from speechsim_jax.statistics.attention_sums import AttentionSums, Rows
from speechsim_jax.statistics.moments import ModelShape

AttentionInputs = Any
"""A pytree that maps are computed from: queries and keys, or the maps themselves."""

MakeRows = Callable[[AttentionInputs, Int[Array, ""], Int[Array, " row"]], Rows]
"""(inputs, utterance of the batch, queries) -> rows of the maps of all heads."""


class AttentionAccumulator:
    """Adds the attention maps of batches to `AttentionSums`: an `Accumulator`. No map is stored.

    On a mesh every device adds its share of the utterances to its share of the sums, which are
    further parts of one state.

    Args:
      shapes: layers and heads (as `neurons`) of every model, in the order of `make_rows`' heads.
      make_rows: computes rows of the maps of all heads from a batch's inputs.
      needed: names of the sums that are computed (`attention_sums.update`).
      stats_dtype: type of the sums.
      mesh: devices; one if None.
      batch_axis: by field name of the inputs, the axis that runs over utterances and is divided
        over the devices; the first for a field not named, none for None.
      group_of: utterance -> its group, from 0 on, where sums are kept for each of several groups.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        make_rows: MakeRows,
        needed: tuple[str, ...],
        stats_dtype: str = "float32",
        mesh: Mesh | None = None,
        batch_axis: Mapping[str, int | None] = {},
        group_of: Mapping[str, int] = {},
    ):
        self._group_of = group_of
        self._shapes, self._needed, self._dtype = shapes, needed, stats_dtype
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._update = _program(make_rows, needed, self._mesh, tuple(batch_axis.items()))
        self._lengths: list[int] = []
        self._groups: list[int] = []  # of each utterance
        with x64(stats_dtype == "float64"):
            self._state = attention_sums.zero(
                sum(s.layers * s.neurons for s in shapes),
                stats_dtype,
                1 + max(group_of.values(), default=0),
            )
            if self._mesh is not None:
                self._state = self._placed(jax.tree.map(np.asarray, self._state))

    def _placed(self, state: AttentionSums) -> AttentionSums:
        """A state on the host, from any number of devices, placed on the current devices."""
        devices = 1 if self._mesh is None else self._mesh.size
        if len(state.gram) != 2 * devices:
            state = jax.tree.map(lambda x: moments_on_mesh.first_of(x, devices), state)
        if self._mesh is None:
            return jax.tree.map(jnp.array, state)
        layout = NamedSharding(self._mesh, P(AXES))
        return jax.tree.map(lambda x: jax.device_put(x, layout), state)

    def update(self, batch: EncodedBatch) -> None:
        """Add the utterances of a batch whose attention is read; none if it has no inputs."""
        if batch.attention is not None:
            assert batch.lengths is not None
            groups = [self._group_of.get(name, 0) for name in batch.rows.utterances]
            fillers = len(batch.lengths) - len(groups)
            self.append(
                batch.attention, batch.lengths, batch.hidden[0].shape[2], groups + fillers * [0]
            )

    def append(
        self,
        inputs: AttentionInputs,
        lengths: Int[np.ndarray, " batch"],
        frames: int,
        groups: Sequence[int] | None = None,
    ) -> None:
        """Add a batch of utterances.

        Args:
          inputs: of their maps.
          lengths: frames of each utterance; 0 for a filler.
          frames: of each utterance, padding included.
          groups: of each utterance; by default the first.
        """
        groups = [0] * len(lengths) if groups is None else groups
        with x64(self._dtype == "float64"):
            counts, numbers = (jnp.asarray(values, jnp.int32) for values in (lengths, groups))
            self._state = self._update(self._state, inputs, counts, numbers, frames=frames)
        self._lengths += [int(length) for length in lengths if length]
        self._groups += [group for group, length in zip(groups, lengths, strict=True) if length]

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        jax.block_until_ready(self._state)

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the accumulator may continue."""
        return {
            "kind": self._kind(),
            "lengths": list(self._lengths),
            "groups": list(self._groups),
            "state": [np.asarray(x) for x in jax.tree.leaves(self._state)],
        }

    def _kind(self) -> str:
        """What two accumulators must share for one to resume from the other's snapshot."""
        return repr((self._shapes, self._needed, self._dtype, sorted(self._group_of.items())))

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot, on the same number of devices or another.

        Raises:
          UserError: a snapshot of other heads, sums or precision.
        """
        if snapshot["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other attention heads, sums or precision; start from the "
                "beginning, or use the settings it was made with"
            )
        state = jax.tree.unflatten(jax.tree.structure(self._state), snapshot["state"])
        with x64(self._dtype == "float64"):
            self._state = self._placed(state)
        self._lengths, self._groups = list(snapshot["lengths"]), list(snapshot["groups"])

    def result(self) -> AttentionState:
        """The sums over all utterances, on the host."""
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), self._state)
        return AttentionState(
            self._shapes, self._needed, self._dtype, sums, tuple(self._lengths), tuple(self._groups)
        )


@functools.lru_cache(maxsize=16)
def _program(
    make_rows: MakeRows,
    needed: tuple[str, ...],
    mesh: Mesh | None,
    batch_axis: tuple[tuple[str, int | None], ...],
) -> Callable[..., AttentionSums]:
    """The compiled function that adds a batch to the sums, shared by all accumulators like this."""
    update = functools.partial(_update, make_rows, needed)
    if mesh is not None:
        update = functools.partial(_update_on_mesh, mesh, dict(batch_axis), update)
    return jax.jit(update, static_argnames="frames", donate_argnums=0)


def _update(
    make_rows: MakeRows,
    needed: tuple[str, ...],
    state: AttentionSums,
    inputs: AttentionInputs,
    lengths: Int[Array, " batch"],
    groups: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    rows = functools.partial(make_rows, inputs)
    return attention_sums.update(state, rows, lengths, frames, needed, groups=groups)


def _update_on_mesh(
    mesh: Mesh,
    batch_axis: Mapping[str, int | None],
    update: Callable[..., AttentionSums],
    state: AttentionSums,
    inputs: AttentionInputs,
    lengths: Int[Array, " batch"],
    groups: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    """`update` on every device: its share of the sums by its share of the utterances."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(inputs)

    def layout(path: tuple) -> P:
        axis = batch_axis.get(getattr(path[-1], "name", ""), 0) if path else 0
        return P() if axis is None else P(*(None,) * axis, AXES)

    def on_device(
        state: AttentionSums, leaves: list[Array], lengths: Array, groups: Array
    ) -> AttentionSums:
        return update(state, jax.tree.unflatten(structure, leaves), lengths, groups, frames=frames)

    layouts = [layout(path) for path, _ in leaves]
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(AXES), layouts, P(AXES), P(AXES)),
        out_specs=P(AXES),
        check_vma=False,
    )
    return mapped(state, [leaf for _, leaf in leaves], lengths, groups)
