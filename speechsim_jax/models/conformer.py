"""The conformer: layers of attention and convolution; attribute paths are HF's names.

A layer is half a feed-forward part, self-attention, a convolution over time, and another half of a
feed-forward part (Gulati et al. 2020). Attention may know where frames are in one of three ways:

    rotary          the frames that queries and keys are made of are rotated by their number (Su et
                    al. 2021; transformers rotates before the linear maps, not after)
    relative        scores (q + u) . k + (q + v) . (W s), s the sinusoids of the distance (Dai et
                    al. 2019)
    relative_key    scores q . k + q . e, e the embedding of the distance (Shaw et al. 2018)

each times head_size^-1/2. Frames past the end of an utterance are zero before the convolution, so
that each utterance of a batch gets what it gets alone; transformers lets them leak.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.errors import UserError
from speechsim_jax.models import layers as modules
from speechsim_jax.models.architecture import Outputs, Transformed
from speechsim_jax.models.attention import attend
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.layers import ACTIVATIONS, FeedForward, Linear, layer_norm


@dataclasses.dataclass(frozen=True)
class ConformerConfig(EncoderConfig):
    """What conformer layers are described by; the field names are transformers' own.

    Attributes:
        intermediate_size: neurons between the two maps of a feed-forward part.
        layer_norm_eps: added to the variance by layer norms.
        hidden_act: the activation of feed-forward and convolution parts.
        position_embeddings_type: how attention knows where frames are; None for not at all.
        rotary_embedding_base: of the wavelengths of rotary positions.
        left_max_position_embeddings: frames before the query, from which on distances share an
            embedding ("relative_key").
        right_max_position_embeddings: the same after the query.
        conv_depthwise_kernel_size: taps of the convolution over time; odd.
        initializer_range: standard deviation of the initial linear maps.
    """

    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    position_embeddings_type: Literal["rotary", "relative", "relative_key"] | None = "relative"
    rotary_embedding_base: int = 10000
    left_max_position_embeddings: int = 64
    right_max_position_embeddings: int = 8
    conv_depthwise_kernel_size: int = 31
    initializer_range: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"config.json has hidden_act={self.hidden_act!r}; supported are "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise UserError(
                f"config.json has conv_depthwise_kernel_size={self.conv_depthwise_kernel_size}; "
                "expected an odd number"
            )
        if self.position_embeddings_type == "rotary" and self.head_size % 2:
            raise UserError(
                f"rotary positions need heads of an even size; config.json has {self.head_size}"
            )
        if self.position_embeddings_type == "relative" and self.hidden_size % 2:
            raise UserError(
                f"relative positions need an even hidden_size; config.json has {self.hidden_size}"
            )


def check_position_type(name: object, supported: tuple[str | None, ...]) -> None:
    """Raise UserError for a `position_embeddings_type` that a family does not have."""
    if name not in supported:
        names = ", ".join(repr(other) if other else "null" for other in supported)
        raise UserError(
            f"config.json has position_embeddings_type={name!r}; expected one of {names}"
        )


class ConformerAttention(nnx.Module):
    """Self-attention with rotary, relative or no positions."""

    def __init__(self, config: ConformerConfig, rngs: nnx.Rngs):
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.head_size, self.positions = config.head_size, config.position_embeddings_type
        self.base = config.rotary_embedding_base
        self.most = config.left_max_position_embeddings, config.right_max_position_embeddings
        self.linear_q = Linear(size, size, rngs)
        self.linear_k = Linear(size, size, rngs)
        self.linear_v = Linear(size, size, rngs)
        self.linear_out = Linear(size, size, rngs)
        if self.positions == "relative":
            self.linear_pos = Kernel((size, size), rngs)
            self.pos_bias_u = nnx.Param(jnp.zeros((self.heads, self.head_size)))
            self.pos_bias_v = nnx.Param(jnp.zeros((self.heads, self.head_size)))
        if self.positions == "relative_key":
            self.distance_embedding = nnx.Embed(sum(self.most) + 1, self.head_size, rngs=rngs)

    def __call__(self, x: Hidden, mask: FrameMask, maps: bool) -> tuple[Hidden, dict[str, Array]]:
        """Attend to all valid frames; what comes back is as from `attention.attend`."""
        split = (*x.shape[:2], self.heads, self.head_size)
        scale, dtype = self.head_size**-0.5, self.linear_v.kernel[...].dtype
        turned = x
        if self.positions == "rotary":
            turned = rotate(x.reshape(split), self.base).reshape(x.shape)
        queries = self.linear_q(turned).reshape(split)
        keys = self.linear_k(turned).reshape(split).astype(dtype)
        values = self.linear_v(x).reshape(split).astype(dtype)
        position_queries = None
        if self.positions == "relative":
            position_queries = ((queries + self.pos_bias_v[...]) * scale).astype(dtype)
            queries = queries + self.pos_bias_u[...]
        context, inputs = attend(
            (queries * scale).astype(dtype),
            keys,
            values,
            mask,
            maps,
            position_queries=position_queries,
            position_keys=self.position_keys(x.shape[1], dtype),
        )
        return self.linear_out(context.reshape(x.shape)), inputs

    def position_keys(self, frames: int, dtype) -> Float[Array, "_head distance neuron"] | None:
        """One key per distance from 1 - frames to frames - 1 of key from query; None for no keys.

        Args:
            frames: of the padded batch.
            dtype: of the keys.
        """
        distances = np.arange(1 - frames, frames)
        if self.positions == "relative":
            keys = self.linear_pos(sinusoids(-distances, self.heads * self.head_size))
            return keys.reshape(-1, self.heads, self.head_size).swapaxes(0, 1).astype(dtype)
        if self.positions == "relative_key":
            left, right = self.most
            table = self.distance_embedding.embedding[...]
            return table[np.clip(distances, -left, right) + left][None].astype(dtype)
        return None


def rotate(
    x: Float[Array, "batch frame head neuron"], base: int
) -> Float[Array, "batch frame head neuron"]:
    """Turn each pair (i, i + n/2) of the n neurons of a head by frame / base^(2i / n) radians.

    Source: Su et al. 2021, with the pairs of transformers' Wav2Vec2Conformer.
    """
    frames, size = x.shape[1], x.shape[-1]
    angles = jnp.arange(frames, dtype=jnp.float32)[:, None, None] * rotary_frequencies(size, base)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotary_frequencies(size: int, base: int) -> Float[np.ndarray, " pair"]:
    """Radians per frame of each pair of neurons of a head of `size` neurons.

    Rounded as torch rounds them: an angle is up to thousands of times one.
    """
    powers = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1) / (base ** powers.astype(np.float64)).astype(np.float32)


def sinusoids(positions: np.ndarray, size: int) -> Float[Array, "position neuron"]:
    """sin and cos of position / 10000^(i / size), for even i in turns.

    Source: Vaswani et al. 2017; Dai et al. 2019.
    """
    steps = np.arange(0, size, 2, dtype=np.float32) * np.float32(-math.log(10000) / size)
    frequencies = np.exp(steps.astype(np.float64)).astype(np.float32)  # as torch rounds them
    angles = jnp.asarray(positions, jnp.float32)[:, None] * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions), size)


class Kernel(nnx.Module):
    """A linear map without bias, or the kernel of a convolution over one frame."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), shape))

    def __call__(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
        """x @ kernel."""
        kernel = self.kernel[...]
        return modules.product(x, kernel.reshape(kernel.shape[-2:]))


class DepthwiseConv(nnx.Module):
    """A convolution over time of each neuron by itself, of unchanged length."""

    def __init__(self, size: int, taps: int, causal: bool, rngs: nnx.Rngs):
        self.before = taps - 1 if causal else taps // 2
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (taps, 1, size)))

    def __call__(self, x: Hidden) -> Hidden:
        """Convolve; zeros before and after, or all of them before (causal).

        A tap at a time: with one channel in each group, lax.conv takes 25 times as long on a CPU.
        """
        kernel = self.kernel[...]
        taps, frames = len(kernel), x.shape[1]
        dtype = modules.accumulation_dtype(kernel)
        padding = (0, 0), (self.before, taps - 1 - self.before), (0, 0)
        padded = jnp.pad(x.astype(kernel.dtype), padding).astype(dtype)
        weights = kernel[:, 0].astype(dtype)

        def add(tap: Array, total: Array) -> Array:
            return total + lax.dynamic_slice_in_dim(padded, tap, frames, axis=1) * weights[tap]

        return lax.fori_loop(0, taps, add, jnp.zeros(x.shape, dtype))


class ConvolutionModule(nnx.Module):
    """Layer norm, gated linear map, convolution over time, norm, activation and linear map.

    Families say how the convolution is padded and normed (`causal`, `normed`).
    """

    causal: bool

    def __init__(self, config: ConformerConfig, norm_eps: float, rngs: nnx.Rngs):
        size = config.hidden_size
        self.activation = ACTIVATIONS[config.hidden_act]
        self.layer_norm = layer_norm(size, norm_eps, rngs)
        self.pointwise_conv1 = Kernel((1, size, 2 * size), rngs)
        taps = config.conv_depthwise_kernel_size
        self.depthwise_conv = DepthwiseConv(size, taps, self.causal, rngs)
        self.pointwise_conv2 = Kernel((1, size, size), rngs)

    def __call__(self, x: Hidden, mask: FrameMask) -> Hidden:
        """`mask`: valid frames; the others count as zero padding."""
        values, gates = jnp.split(self.pointwise_conv1(self.layer_norm(x)), 2, axis=-1)
        x = jnp.where(mask[:, :, None], values * jax.nn.sigmoid(gates), 0)
        return self.pointwise_conv2(self.activation(self.normed(self.depthwise_conv(x))))

    def normed(self, x: Hidden) -> Hidden:
        """The norm of the convolution's output."""
        raise NotImplementedError


class ConformerLayer(nnx.Module):
    """A conformer layer.

    Source: Gulati et al. 2020.
    """

    convolution_type: type[ConvolutionModule]

    def __init__(self, config: ConformerConfig, norm_eps: float, rngs: nnx.Rngs):
        sizes = config.hidden_size, config.intermediate_size
        activation = ACTIVATIONS[config.hidden_act]
        self.ffn1_layer_norm = layer_norm(config.hidden_size, norm_eps, rngs)
        self.ffn1 = FeedForward(*sizes, rngs, activation)
        self.self_attn_layer_norm = layer_norm(config.hidden_size, norm_eps, rngs)
        self.self_attn = ConformerAttention(config, rngs)
        self.conv_module = self.convolution_type(config, norm_eps, rngs)
        self.ffn2_layer_norm = layer_norm(config.hidden_size, norm_eps, rngs)
        self.ffn2 = FeedForward(*sizes, rngs, activation)
        self.final_layer_norm = layer_norm(config.hidden_size, norm_eps, rngs)

    def __call__(self, x: Hidden, mask: FrameMask, maps: bool) -> tuple[Hidden, dict[str, Array]]:
        """The next hidden state, and queries, keys, ... of its attention (its maps if `maps`)."""
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        attended, parts = self.self_attn(self.self_attn_layer_norm(x), mask, maps)
        x = x + attended
        x = x + self.conv_module(x, mask)
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        return self.final_layer_norm(x), parts


class Conformer(nnx.Module):
    """Conformer layers.

    Attributes:
        layer_type: of the family.
    """

    layer_type: type[ConformerLayer]

    def __init__(self, config: ConformerConfig, norm_eps: float, rngs: nnx.Rngs):
        self.layers = modules.Stack(
            self.layer_type(config, norm_eps, rngs) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """Hidden states 0 to the highest one requested, and attention's inputs of each block."""
        states, blocks = [jnp.where(mask[:, :, None], x, 0)], []
        assert outputs.layers is not None
        for layer in list(self.layers)[: max(outputs.layers)]:
            x, inputs = layer(states[-1], mask, outputs.attentions)
            states.append(x)
            blocks.append(inputs)
        return Transformed(states, blocks)
