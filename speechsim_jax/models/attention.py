"""Self-attention over valid frames, and the rows of its maps.

    maps[query, key] = softmax over keys of queries . keys + gate[query] bias[key - query]

with queries scaled by head_size^-1/2 (Vaswani et al. 2017); the bias is WavLM's (Chen et al. 2022,
section III-A), one value per head and distance, shared by all layers, gated by each layer's input.
A row needs one query and all keys, so rows are computed a block at a time wherever the maps
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
        inputs = {"queries": queries, "keys": keys}
        gates = self.gates(x.reshape(split))
        if gates is not None:
            inputs["gates"] = gates

        def attend(queries: Array, gates: Array | None, frames: Array) -> tuple[Array, Array]:
            by_head = queries.swapaxes(1, 2), keys.transpose(0, 2, 3, 1)
            rows = attention_rows(*by_head, mask, gates, position_bias, frames)
            return _mix(rows, values), rows

        if maps:
            context, inputs["attentions"] = attend(queries, gates, jnp.arange(x.shape[1]))
        else:
            context = _by_blocks(lambda *block: attend(*block)[0], queries, gates)
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
