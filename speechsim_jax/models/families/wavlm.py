"""WavLM: wav2vec 2.0 with a gated relative position bias in its attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import PositionBias
from speechsim_jax.models.attention import Attention
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import wav2vec2
from speechsim_jax.models.layers import Linear
from speechsim_jax.models.transformer import EncoderLayer, Transformer


class GatedAttention(Attention):
    """Self-attention whose scores get a bias of the distance, gated by the layer's input.

    The first layer has the embedding of the distances, which all share.

    Source: Chen et al. 2022, section III-A.
    """

    def __init__(self, config: Wav2Vec2Config, index: int, rngs: nnx.Rngs):
        super().__init__(config, index, rngs)
        self.gru_rel_pos_const = nnx.Param(jnp.ones((1, self.heads, 1, 1)))
        self.gru_rel_pos_linear = Linear(self.head_size, 8, rngs)
        if index == 0:
            self.rel_attn_embed = nnx.Embed(config.num_buckets, self.heads, rngs=rngs)

    def gates(self, x: Float[Array, "batch frame head neuron"]) -> Float[Array, "batch head frame"]:
        """The gate of each query: update (reset const - 1) + 2 (Chen et al. 2022, III-A)."""
        projected = self.gru_rel_pos_linear(x)
        sums = projected.reshape(*projected.shape[:-1], 2, 4).sum(-1)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(sums), -1, 0)
        const = self.gru_rel_pos_const[...].reshape(self.heads)
        return (update * (reset * const - 1.0) + 2.0).transpose(0, 2, 1)


class GatedLayer(EncoderLayer):
    """A layer with gated attention."""

    attention_type = GatedAttention


class WavLMTransformer(Transformer):
    """The transformer of WavLM."""

    layer_type = GatedLayer

    def position_bias(self, frames: int) -> PositionBias:
        """The bias before gating: the first layer's embedding of the bucketed distance.

        Args:
            frames: of the padded batch.
        """
        table = next(iter(self.layers)).attention.rel_attn_embed.embedding[...]
        return position_bias_of(table, frames, self.config.max_bucket_distance)


class WavLMNetwork(wav2vec2.Wav2Vec2Network):
    """The network of WavLM."""

    transformer_type = WavLMTransformer


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


FAMILY = dataclasses.replace(
    wav2vec2.FAMILY, model_type="wavlm", class_stem="WavLM", network=WavLMNetwork
)
