"""Self-attention over valid frames, and the rows of its maps.

    maps[query, key] = softmax over keys of
        queries . keys + gate[query] bias[key - query] + position_queries . positions[key - query]

with queries scaled by head_size^-1/2 (Vaswani et al. 2017). The bias is WavLM's (Chen et al. 2022,
section III-A), one value per head and distance, shared by all layers, gated by each layer's input.
The positions are one vector per distance, of the conformer families (Shaw et al. 2018; Dai et al.
2019). A row needs one query and all keys, so rows are computed a block at a time wherever the maps
themselves are not requested.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden, PositionBias
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.layers import Linear, accumulation_dtype

# Query rows in memory at once when the maps are not requested.
_ROWS_AT_ONCE = 512

Rows = Float[Array, "batch head row key"]


def attention_rows(
    queries: Float[Array, "batch head row neuron"],
    keys: Float[Array, "batch head neuron key"],
    mask: FrameMask,
    gates: Float[Array, "batch head row"] | None,
    position_bias: PositionBias | None,
    frames: Int[Array, " row"],
    position_queries: Float[Array, "batch head row neuron"] | None = None,
    position_keys: Float[Array, "#batch #head neuron distance"] | None = None,
) -> Rows:
    """Rows of attention maps.

        softmax over keys of
            queries . keys + gates bias[key - query] + position_queries . position_keys[key - query]

    Args:
        queries: the queries of the rows, already scaled.
        keys: all keys.
        mask: valid frames.
        gates: WavLM's gates of the bias for these queries; None in the other families.
        position_bias: WavLM's bias by head and distance, before gating; None likewise.
        frames: number of each row's frame.
        position_queries: what is multiplied with `position_keys`, already scaled; None for the
            queries themselves.
        position_keys: one key per distance, in the order of `Activations.position_keys`; None in
            families without.

    Returns:
        Rows that sum to 1 over the valid keys and are exactly 0 at the others.

    Source: Vaswani et al. 2017; Shaw et al. 2018; Dai et al. 2019; Chen et al. 2022, section III-A.
    """
    scores = jnp.matmul(queries, keys, preferred_element_type=accumulation_dtype(keys))
    if position_bias is not None and gates is not None:
        offset = jnp.arange(keys.shape[-1]) - frames[:, None] + keys.shape[-1] - 1
        # Rows past the last frame pad a block, and their bias is not used: clipping is safe.
        bias = jnp.take(position_bias, offset, axis=1, mode="clip")
        scores = scores + gates[..., None] * bias
    if position_keys is not None:
        if position_queries is None:
            position_queries = queries
        by_distance = jnp.matmul(
            position_queries, position_keys, preferred_element_type=accumulation_dtype(keys)
        )
        scores = scores + _of_keys(by_distance, frames, keys.shape[-1])
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def _of_keys(
    by_distance: Float[Array, "batch head row distance"], frames: Int[Array, " row"], keys: int
) -> Rows:
    """Scores by distance as scores of keys: those of a row start where its frame says."""

    def of_row(row: Float[Array, "batch head distance"], frame: Int[Array, ""]) -> Array:
        # The start of a row past the last frame, which pads a block, is moved into the array.
        return lax.dynamic_slice_in_dim(row, keys - 1 - frame, keys, axis=-1)

    return jax.vmap(of_row, in_axes=(2, 0), out_axes=2)(by_distance, frames)


def attend(
    queries: Float[Array, "batch frame head neuron"],
    keys: Float[Array, "batch frame head neuron"],
    values: Float[Array, "batch frame head neuron"],
    mask: FrameMask,
    maps: bool,
    *,
    gates: Float[Array, "batch head frame"] | None = None,
    position_bias: PositionBias | None = None,
    position_queries: Float[Array, "batch frame head neuron"] | None = None,
    position_keys: Float[Array, "#head distance neuron"] | None = None,
) -> tuple[Float[Array, "batch frame head neuron"], dict[str, Array]]:
    """Attend to all valid frames.

    Args:
        queries: already scaled.
        keys: of all frames.
        values: of all frames.
        mask: valid frames.
        maps: return the attention maps as well.
        gates: as in `attention_rows`, and so are the others.
        position_bias: before gating.
        position_queries: already scaled.
        position_keys: of this layer.

    Returns:
        The weighted values, and by name those of the arguments that maps are computed from and
        differ by layer, and with `maps` the `attentions` [batch, head, query, key].
    """
    inputs = {"queries": queries, "keys": keys}
    more = {"gates": gates, "position_queries": position_queries, "position_keys": position_keys}
    inputs |= {name: array for name, array in more.items() if array is not None}
    keys_by_head = keys.transpose(0, 2, 3, 1)
    of_distances = None if position_keys is None else position_keys.swapaxes(-1, -2)[None]

    def rows_of(queries: Array, gates: Array | None, others: Array | None, frames: Array) -> Rows:
        return attention_rows(
            queries.swapaxes(1, 2),
            keys_by_head,
            mask,
            None if gates is None else gates.swapaxes(1, 2),
            position_bias,
            frames,
            None if others is None else others.swapaxes(1, 2),
            of_distances,
        )

    by_frame = (queries, None if gates is None else gates.swapaxes(1, 2), position_queries)
    if maps:
        rows = inputs["attentions"] = rows_of(*by_frame, jnp.arange(queries.shape[1]))
        return _mix(rows, values), inputs
    return _by_blocks(lambda *block: _mix(rows_of(*block), values), by_frame), inputs


class Attention(nnx.Module):
    """Multi-head self-attention over valid frames."""

    def __init__(self, config: EncoderConfig, index: int, rngs: nnx.Rngs):
        size, self.heads, self.head_size = (
            config.hidden_size,
            config.num_attention_heads,
            config.head_size,
        )
        self.q_proj = Linear(size, size, rngs)
        self.k_proj = Linear(size, size, rngs)
        self.v_proj = Linear(size, size, rngs)
        self.out_proj = Linear(size, size, rngs)

    def __call__(
        self, x: Hidden, mask: FrameMask, position_bias: PositionBias | None, maps: bool
    ) -> tuple[Hidden, dict[str, Array]]:
        """Attend to all valid frames.

        Args:
            x: input of the layer.
            mask: valid frames.
            position_bias: WavLM's bias before gating.
            maps: return the attention maps as well.

        Returns:
            The output, and by name: `queries` (scaled) and `keys` [batch, frame, head, neuron],
            `gates` [batch, head, frame] (WavLM), and with `maps` the `attentions` [batch, head,
            query, key].
        """
        split = (*x.shape[:2], self.heads, self.head_size)
        dtype = self.v_proj.kernel[...].dtype
        queries = (self.q_proj(x).reshape(split) * self.head_size**-0.5).astype(dtype)
        keys = self.k_proj(x).reshape(split).astype(dtype)
        values = self.v_proj(x).reshape(split).astype(dtype)
        gates = self.gates(x.reshape(split))
        context, inputs = attend(
            queries, keys, values, mask, maps, gates=gates, position_bias=position_bias
        )
        return self.out_proj(context.reshape(x.shape)), inputs

    def gates(
        self, x: Float[Array, "batch frame head neuron"]
    ) -> Float[Array, "batch head frame"] | None:
        """Of the position bias, from the layer's input; None for no gates."""
        return None


def _mix(rows: Rows, values: Float[Array, "batch key head neuron"]) -> Float[Array, "..."]:
    """The values, weighted by the rows: [batch, row, head, neuron]."""
    return jnp.einsum(
        "bhrk,bkhn->brhn",
        rows.astype(values.dtype),
        values,
        preferred_element_type=accumulation_dtype(values),
    )


def _by_blocks(mix, by_frame: tuple[Array | None, ...]) -> Float[Array, "..."]:
    """`mix` over blocks of query rows of equal size, so that no complete map is in memory.

    Args:
        mix: function of a block of each array of `by_frame` and of the numbers of its frames.
        by_frame: arrays [batch, frame, ...].
    """
    batch, frames = jax.tree.leaves(by_frame)[0].shape[:2]
    blocks = -(-frames // _ROWS_AT_ONCE)
    if blocks == 1:
        return mix(*by_frame, jnp.arange(frames))
    size = -(-frames // blocks)

    def in_blocks(x: Array) -> Array:
        missing = [(0, 0), (0, blocks * size - frames)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, missing).reshape(batch, blocks, size, *x.shape[2:]).swapaxes(0, 1)

    numbers = jnp.arange(blocks * size).reshape(blocks, size)
    mixed = lax.map(lambda block: mix(*block), (*jax.tree.map(in_blocks, by_frame), numbers))
    mixed = mixed.swapaxes(0, 1)
    return mixed.reshape(batch, blocks * size, *mixed.shape[3:])[:, :frames]
