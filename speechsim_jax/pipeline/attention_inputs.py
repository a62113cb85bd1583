"""What attention maps are computed from: queries and keys of models, or the maps themselves."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from speechsim_jax._jax_compat import concatenate_in_place
from speechsim_jax.array_types import Gates, Lengths, PositionBias
from speechsim_jax.measures.base import Measure
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.attention import attention_rows
from speechsim_jax.statistics.attention_sums import Rows

BATCH_AXIS = {
    "queries": 1,
    "keys": 1,
    "gates": 1,
    "position_bias": None,
    "lengths": 0,
    "position_queries": 1,
    "position_keys": None,
}
"""Which axis of the fields of `Projected` runs over the utterances of a batch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """What one model's maps are computed from, for the blocks that are compared; heads first.

    Attributes:
      queries, keys: of every block.
      gates: of WavLM's position bias; None for other families.
      position_bias: the same; None for other families.
      lengths: frames of each utterance.
      position_queries: of conformers, where they are not the queries themselves; None otherwise.
      position_keys: of conformers with relative positions; None for other families.
    """

    queries: Float[Array, "block batch head frame neuron"]
    keys: Float[Array, "block batch head neuron frame"]
    gates: Gates | None
    position_bias: PositionBias | None
    lengths: Lengths
    position_queries: Float[Array, "block batch head frame neuron"] | None = None
    position_keys: Float[Array, "block _head neuron distance"] | None = None


@functools.partial(jax.jit, static_argnames="blocks")
def projected(acts: Activations, blocks: Sequence[int], lengths: Lengths) -> Projected:
    """The inputs of one model's maps.

    Args:
      acts: the model's activations, with projections.
      blocks: transformer layers, 1 is the first; a tuple or a range.
      lengths: frames of each utterance.
    """
    chosen = np.array(blocks) - 1
    assert acts.queries is not None and acts.keys is not None
    by_position, of_distances = acts.position_queries, acts.position_keys
    # In this layout blocks of rows are matrix products without a copy; transposing the keys again
    # for every block would take longer than the products.
    return Projected(
        queries=acts.queries[chosen].swapaxes(2, 3),
        keys=acts.keys[chosen].transpose(0, 1, 3, 4, 2),
        gates=None if acts.gates is None else acts.gates[chosen],
        position_bias=acts.position_bias,
        lengths=jnp.asarray(lengths),
        position_queries=None if by_position is None else by_position[chosen].swapaxes(2, 3),
        position_keys=None if of_distances is None else of_distances[chosen].swapaxes(2, 3),
    )


def rows_of_projections(
    models: tuple[Projected, ...], utterance: Int[Array, ""], queries: Int[Array, " row"]
) -> Rows:
    """Rows of the maps of all heads of all models, from their queries and keys.

    Args:
      models: inputs of each model's maps; its layers act as a batch.
      utterance: of the batch.
      queries: the rows.
    """
    rows = []
    for model in models:
        blocks, frames = len(model.queries), model.queries.shape[3]
        mask = jnp.arange(frames) < model.lengths[utterance]
        by_position = model.position_queries
        maps = attention_rows(
            model.queries[:, utterance][:, :, queries],
            model.keys[:, utterance],
            jnp.broadcast_to(mask, (blocks, frames)),
            None if model.gates is None else model.gates[:, utterance][:, :, queries],
            model.position_bias,
            queries,
            None if by_position is None else by_position[:, utterance][:, :, queries],
            model.position_keys,
        )
        rows.append(maps.reshape(-1, *maps.shape[2:]))
    return concatenate_in_place(rows)


def rows_of_maps(
    maps: Float[Array, "batch head query key"],
    utterance: Int[Array, ""],
    queries: Int[Array, " row"],
) -> Rows:
    """Rows of the maps of all heads, from whole maps."""
    return maps[utterance][:, queries]


def needed_sums(measures: Sequence[Measure]) -> tuple[str, ...]:
    """The attention sums that these measures read."""
    return tuple(dict.fromkeys(m.needs for m in measures if m.needs))
