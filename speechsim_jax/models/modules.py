"""The parts of a wav2vec 2.0 style encoder, named so that paths equal transformers' weight names.

Every layer of the three families (Baevski et al. 2020; Hsu et al. 2021; Chen et al. 2022) is built
from these. All of them act on each utterance of a batch as if it were alone: statistics over time
run over the utterance's own frames, padded frames are zero before the positional convolution, and
padded keys get no attention. (torch's group-norm models lack this property: their GroupNorm runs
over the padding.)

All convolutions are [batch, time, channel]; XLA on CPU is slow with channels first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.typing import FrameMask, Hidden

# torch's default, which the norms among the convolutions keep whatever layer_norm_eps is.
_CONV_NORM_EPS = 1e-5


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x Phi(x), as torch's default; jax's own default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


class Stack(nnx.Module):
    """Modules in a row, under the attribute names "0", "1", ...

    Plain lists of modules are refused by flax >= 0.12 and `nnx.List` is missing from 0.11.
    """

    def __init__(self, modules):
        self.size = 0
        for index, module in enumerate(modules):
            setattr(self, str(index), module)
            self.size = index + 1

    def __iter__(self):
        return (getattr(self, str(index)) for index in range(self.size))


def layer_norm(size: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm with a two-pass variance; E[x^2] - E[x]^2 loses digits to a large mean."""
    return nnx.LayerNorm(size, epsilon=eps, use_fast_variance=False, rngs=rngs)


class MaskedGroupNorm(nnx.Module):
    """GroupNorm with one channel per group: each channel over the utterance's own frames.

    y = (x - mean) / sqrt(var + eps) * scale + bias, mean and var over the first `count` frames.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self, x: Float[Array, "batch time channel"], count: Int[Array, " batch"]
    ) -> Float[Array, "batch time channel"]:
        """Normalise; frames past `count` are scaled alike and mean nothing."""
        n = jnp.maximum(count, 1).astype(x.dtype)[:, None, None]
        inside = (jnp.arange(x.shape[1]) < count[:, None])[:, :, None]
        mean = jnp.sum(x, axis=1, keepdims=True, where=inside) / n
        centred = x - mean
        var = jnp.sum(jnp.square(centred), axis=1, keepdims=True, where=inside) / n
        gain = lax.rsqrt(var + _CONV_NORM_EPS) * self.scale[...]
        return centred * gain + self.bias[...]


class ConvLayer(nnx.Module):
    """One layer of the feature encoder: convolution, norm (group, layer or none), GELU."""

    def __init__(self, config: EncoderConfig, index: int, rngs: nnx.Rngs):
        channels_in = 1 if index == 0 else config.conv_dim[index - 1]
        channels = config.conv_dim[index]
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nnx.Conv(
            channels_in,
            channels,
            kernel_size=(kernel,),
            strides=(stride,),
            padding="VALID",
            use_bias=config.conv_bias,
            rngs=rngs,
        )
        self.by_blocks = channels_in == 1 and kernel % stride == 0
        self.stride = stride
        if config.feat_extract_norm == "layer":
            self.layer_norm = layer_norm(channels, _CONV_NORM_EPS, rngs)
        else:
            self.layer_norm = MaskedGroupNorm(channels) if index == 0 else None

    def __call__(
        self, x: Float[Array, "batch time channel"], count: Int[Array, " batch"]
    ) -> Float[Array, "batch frame features"]:
        """`count`: valid output frames of each utterance."""
        x = self._convolve_blocks(x) if self.by_blocks else self.conv(x)
        if isinstance(self.layer_norm, MaskedGroupNorm):
            x = self.layer_norm(x, count)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return gelu(x)

    def _convolve_blocks(self, x: Float[Array, "batch time 1"]) -> Float[Array, "batch frame out"]:
        """A one-channel convolution with kernel = k strides as one matrix product.

        The samples are cut into blocks of one stride; a window is k blocks side by side. On a
        CPU `lax.conv` is slow with a single input channel.
        """
        kernel = self.conv.kernel[...]
        width = kernel.shape[0] // self.stride
        frames = (x.shape[1] - kernel.shape[0]) // self.stride + 1
        whole = x[:, : (frames + width - 1) * self.stride, 0]
        blocks = whole.reshape(x.shape[0], -1, self.stride)
        windows = jnp.concatenate([blocks[:, i : i + frames] for i in range(width)], axis=-1)
        out = windows @ kernel[:, 0, :]
        return out if self.conv.bias is None else out + self.conv.bias[...]


class FeatureExtractor(nnx.Module):
    """Seven strided convolutions: samples at 16 kHz -> one vector every 20 ms."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.conv_layers = Stack(ConvLayer(config, i, rngs) for i in range(len(config.conv_dim)))

    def __call__(
        self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]
    ) -> Hidden:
        """`lengths`: valid samples of each utterance."""
        x = samples[:, :, None]
        for index, layer in enumerate(self.conv_layers):
            x = layer(x, self.config.frames(lengths, index + 1))
        return x


class FeatureProjection(nnx.Module):
    """LayerNorm (but for distilled HuBERT) and a linear map to the model's width."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        channels = config.conv_dim[-1]
        self.normed = config.feat_proj_layer_norm
        if self.normed:
            self.layer_norm = layer_norm(channels, config.layer_norm_eps, rngs)
        self.projection = nnx.Linear(channels, config.hidden_size, rngs=rngs)

    def __call__(self, x: Hidden) -> tuple[Hidden, Hidden]:
        """Return the projection and what it projects (`extract_features` in transformers)."""
        features = self.layer_norm(x) if self.normed else x
        return self.projection(features), features


class WeightNormConv(nnx.Module):
    """A grouped convolution whose kernel is g v / |v|, one norm per tap (Salimans & Kingma 2016).

    Parameters keep the checkpoint's split: `weight_g` [tap, 1, 1], `weight_v` [tap, fan_in, out].
    """

    def __init__(self, features: int, taps: int, groups: int, rngs: nnx.Rngs):
        self.groups = groups
        shape = (taps, features // groups, features)
        self.weight_g = nnx.Param(jnp.ones((taps, 1, 1)))
        self.weight_v = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Hidden) -> Hidden:
        """Convolve with the kernel folded in float32; padding as `same_pad_conv`."""
        v = self.weight_v[...]
        norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=(1, 2), keepdims=True))
        return same_pad_conv(x, self.weight_g[...] * v / norm, self.groups) + self.bias[...]


class PlainConv(nnx.Module):
    """A grouped convolution, for the checkpoints that batch-normalise its input instead."""

    def __init__(self, features: int, taps: int, groups: int, rngs: nnx.Rngs):
        self.groups = groups
        shape = (taps, features // groups, features)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Hidden) -> Hidden:
        """Convolve; padding as `same_pad_conv`."""
        return same_pad_conv(x, self.kernel[...], self.groups) + self.bias[...]


def same_pad_conv(x: Hidden, kernel: Float[Array, "tap fan_in neuron"], groups: int) -> Hidden:
    """A length-keeping convolution: taps // 2 zeros on both sides, one less at the end if even."""
    taps = kernel.shape[0]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(taps // 2, taps // 2 - (taps % 2 == 0))],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


class BatchNorm(nnx.Module):
    """BatchNorm1d of torch in evaluation mode: stored statistics, eps 1e-5."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.Param(jnp.zeros(features))
        self.var = nnx.Param(jnp.ones(features))

    def __call__(self, x: Hidden) -> Hidden:
        """(x - mean) / sqrt(var + eps) * scale + bias."""
        gain = self.scale[...] * lax.rsqrt(self.var[...] + 1e-5)
        return (x - self.mean[...]) * gain + self.bias[...]


class PositionalConv(nnx.Module):
    """Convolutional relative positions: x -> gelu(conv(x))."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        self.batch_normed = config.conv_pos_batch_norm
        if self.batch_normed:
            self.batch_norm = BatchNorm(config.hidden_size)
        conv = PlainConv if self.batch_normed else WeightNormConv
        self.conv = conv(config.hidden_size, taps, groups, rngs)

    def __call__(self, x: Hidden, mask: FrameMask) -> Hidden:
        """`mask`: valid frames; the others count as zero padding."""
        if self.batch_normed:
            # The shift of a batch norm makes padding non-zero; alone, an utterance has zeros there.
            x = jnp.where(mask[:, :, None], self.batch_norm(x), 0)
        return gelu(self.conv(x))


class Attention(nnx.Module):
    """Multi-head self-attention over valid frames; in WavLM with a gated relative position bias."""

    def __init__(self, config: EncoderConfig, index: int, rngs: nnx.Rngs):
        size, self.heads, self.head_size = (
            config.hidden_size,
            config.num_attention_heads,
            config.head_size,
        )
        self.q_proj = nnx.Linear(size, size, rngs=rngs)
        self.k_proj = nnx.Linear(size, size, rngs=rngs)
        self.v_proj = nnx.Linear(size, size, rngs=rngs)
        self.out_proj = nnx.Linear(size, size, rngs=rngs)
        self.gated = config.family == "wavlm"
        if self.gated:
            self.gru_rel_pos_const = nnx.Param(jnp.ones((1, self.heads, 1, 1)))
            self.gru_rel_pos_linear = nnx.Linear(self.head_size, 8, rngs=rngs)
            if index == 0:
                self.rel_attn_embed = nnx.Embed(config.num_buckets, self.heads, rngs=rngs)

    def __call__(
        self,
        x: Hidden,
        mask: FrameMask,
        position_bias: Float[Array, "head query key"] | None = None,
    ) -> tuple[Hidden, dict[str, Array]]:
        """Return the output and the parts that can be asked for.

        The parts: `queries` (scaled by head_size^-1/2) and `keys` [batch, frame, head, neuron],
        `attention_bias` [batch, head, query, key] (WavLM), `attentions` [batch, head, query, key].
        attentions = softmax over keys of queries . keys + bias, exactly 0 at padded keys.
        """
        batch, frames, _ = x.shape
        split = (batch, frames, self.heads, self.head_size)
        queries = self.q_proj(x).reshape(split) * self.head_size**-0.5
        keys = self.k_proj(x).reshape(split)
        values = self.v_proj(x).reshape(split)
        parts = {"queries": queries, "keys": keys}
        scores = jnp.einsum("bqhn,bkhn->bhqk", queries, keys)
        if position_bias is not None:
            parts["attention_bias"] = self._gate(x.reshape(split)) * position_bias
            scores = scores + parts["attention_bias"]
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        parts["attentions"] = jax.nn.softmax(scores, axis=-1)
        context = jnp.einsum("bhqk,bkhn->bqhn", parts["attentions"], values)
        return self.out_proj(context.reshape(x.shape)), parts

    def _gate(
        self, x: Float[Array, "batch frame head neuron"]
    ) -> Float[Array, "batch head frame 1"]:
        """How much of the position bias each query takes (Chen et al. 2022, section III-A)."""
        projected = self.gru_rel_pos_linear(x)
        sums = projected.reshape(*projected.shape[:-1], 2, 4).sum(-1)
        update, reset = jnp.split(jax.nn.sigmoid(sums), 2, axis=-1)
        const = self.gru_rel_pos_const[...][:, :, 0, :]
        gate = update * (reset * const - 1.0) + 2.0
        return gate.transpose(0, 2, 1, 3)


def relative_position_buckets(frames: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5-style buckets of key - query [query, key], int32: exact when near, logarithmic when far.

    Computed in float32 on the host: the rounding of the logarithm decides bucket boundaries.
    """
    distance = np.arange(frames)[None, :] - np.arange(frames)[:, None]
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    far = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum((np.float32(exact) + far).astype(np.int32), half - 1)
    bucket = np.where(size < exact, size, far)
    return (bucket + np.where(distance > 0, half, 0)).astype(np.int32)


class FeedForward(nnx.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.intermediate_dense = nnx.Linear(
            config.hidden_size, config.intermediate_size, rngs=rngs
        )
        self.output_dense = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """[batch, frame, neuron] to the same."""
        return self.output_dense(gelu(self.intermediate_dense(x)))


class EncoderLayer(nnx.Module):
    """A transformer layer; norms after the residual sums (base) or before the branches (stable)."""

    def __init__(self, config: EncoderConfig, index: int, rngs: nnx.Rngs):
        self.stable = config.do_stable_layer_norm
        self.attention = Attention(config, index, rngs)
        self.layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.final_layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)

    def __call__(
        self,
        x: Hidden,
        mask: FrameMask,
        position_bias: Float[Array, "head query key"] | None,
    ) -> tuple[Hidden, dict[str, Array]]:
        """Return the next hidden state and the attention's parts."""
        if self.stable:
            attended, parts = self.attention(self.layer_norm(x), mask, position_bias)
            x = x + attended
            return x + self.feed_forward(self.final_layer_norm(x)), parts
        attended, parts = self.attention(x, mask, position_bias)
        x = self.layer_norm(x + attended)
        return self.final_layer_norm(x + self.feed_forward(x)), parts
