"""Self-attention over valid frames, and the rows of its maps.

    maps[query, key] = softmax over keys of queries . keys + gate[query] bias[key - query]

with queries scaled by head_size^-1/2 (Vaswani et al. 2017); the bias is WavLM's (Chen et al. 2022,
section III-A), one value per head and distance, shared by all layers, gated by each layer's input.
A row needs one query and all keys, so rows are computed a block at a time wherever the maps
themselves are not requested.
"""

import jax
import jax.numpy as jnp
import numpy as np
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
) -> Rows:
    """Rows of attention maps.

        softmax over keys of queries . keys + gates bias[key - query]

    Args:
        queries: the queries of the rows, already scaled.
        keys: all keys.
        mask: valid frames.
        gates: WavLM's gates of the bias for these queries; None in the other families.
        position_bias: WavLM's bias by head and distance, before gating; None likewise.
        frames: number of each row's frame.

    Returns:
        Rows that sum to 1 over the valid keys and are exactly 0 at the others.

    Source: Vaswani et al. 2017; Chen et al. 2022, section III-A.
    """
    scores = jnp.matmul(queries, keys, preferred_element_type=accumulation_dtype(keys))
    if position_bias is not None and gates is not None:
        offset = jnp.arange(keys.shape[-1]) - frames[:, None] + keys.shape[-1] - 1
        # Rows past the last frame pad a block, and their bias is not used: clipping is safe.
        bias = jnp.take(position_bias, offset, axis=1, mode="clip")
        scores = scores + gates[..., None] * bias
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


class Attention(nnx.Module):
    """Multi-head self-attention over valid frames; in WavLM with a gated relative position bias."""

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
        self.gated = config.family == "wavlm"
        if self.gated:
            self.gru_rel_pos_const = nnx.Param(jnp.ones((1, self.heads, 1, 1)))
            self.gru_rel_pos_linear = Linear(self.head_size, 8, rngs)
            if index == 0:
                self.rel_attn_embed = nnx.Embed(config.num_buckets, self.heads, rngs=rngs)

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
        inputs = {"queries": queries, "keys": keys}
        gates = None
        if self.gated:
            gates = inputs["gates"] = self._gates(x.reshape(split))

        def attend(queries: Array, gates: Array | None, frames: Array) -> tuple[Array, Array]:
            by_head = queries.swapaxes(1, 2), keys.transpose(0, 2, 3, 1)
            rows = attention_rows(*by_head, mask, gates, position_bias, frames)
            return _mix(rows, values), rows

        if maps:
            context, inputs["attentions"] = attend(queries, gates, jnp.arange(x.shape[1]))
        else:
            context = _by_blocks(lambda *block: attend(*block)[0], queries, gates)
        return self.out_proj(context.reshape(x.shape)), inputs

    def _gates(
        self, x: Float[Array, "batch frame head neuron"]
    ) -> Float[Array, "batch head frame"]:
        """The gate of each query: update (reset const - 1) + 2 (Chen et al. 2022, III-A)."""
        projected = self.gru_rel_pos_linear(x)
        sums = projected.reshape(*projected.shape[:-1], 2, 4).sum(-1)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(sums), -1, 0)
        const = self.gru_rel_pos_const[...].reshape(self.heads)
        return (update * (reset * const - 1.0) + 2.0).transpose(0, 2, 1)


def _mix(rows: Rows, values: Float[Array, "batch key head neuron"]) -> Float[Array, "..."]:
    """The values, weighted by the rows: [batch, row, head, neuron]."""
    return jnp.einsum(
        "bhrk,bkhn->brhn",
        rows.astype(values.dtype),
        values,
        preferred_element_type=accumulation_dtype(values),
    )


def _by_blocks(attend, queries: Array, gates: Array | None) -> Float[Array, "..."]:
    """`attend` over blocks of query rows of equal size, so that no complete map is in memory."""
    batch, frames, *rest = queries.shape
    blocks = -(-frames // _ROWS_AT_ONCE)
    if blocks == 1:
        return attend(queries, gates, jnp.arange(frames))
    size = -(-frames // blocks)
    missing = blocks * size - frames
    queries = jnp.pad(queries, ((0, 0), (0, missing), (0, 0), (0, 0)))
    queries = queries.reshape(batch, blocks, size, *rest).swapaxes(0, 1)
    if gates is not None:
        gates = jnp.pad(gates, ((0, 0), (0, 0), (0, missing)))
        gates = jnp.moveaxis(gates.reshape(batch, -1, blocks, size), 2, 0)
    numbers = jnp.arange(blocks * size).reshape(blocks, size)
    mixed = lax.map(lambda block: attend(*block), (queries, gates, numbers))
    return mixed.swapaxes(0, 1).reshape(batch, blocks * size, *rest)[:, :frames]


def position_bias_of(
    table: Float[Array, "bucket head"], frames: int, max_distance: int
) -> PositionBias:
    """WavLM's bias before gating, for the distances 1 - frames to frames - 1 of key from query.

    Args:
        table: the embedding of the buckets.
        frames: of the padded batch.
        max_distance: beyond it, all distances share a bucket.

    Source: Chen et al. 2022, section III-A.
    """
    distances = np.arange(1 - frames, frames)
    return table[relative_position_buckets(distances, len(table), max_distance)].T


def relative_position_buckets(
    distance: Int[np.ndarray, "*shape"], num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*shape"]:
    """Buckets of key - query, int32: exact when near, logarithmic when far.

    Computed in float32 on the host: the rounding of the logarithm decides bucket boundaries.

    Args:
        distance: key - query, in frames.
        num_buckets: half of them are for positive distances.
        max_distance: beyond it, all distances share a bucket.

    Source: T5 (Raffel et al. 2020), as in transformers' WavLM.
    """
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    far = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum((np.float32(exact) + far).astype(np.int32), half - 1)
    bucket = np.where(size < exact, size, far)
    return (bucket + np.where(distance > 0, half, 0)).astype(np.int32)
