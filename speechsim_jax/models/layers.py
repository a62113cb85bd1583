"""Building blocks of a wav2vec 2.0 style encoder; attribute paths are transformers' weight names.

Every layer of these families (Baevski et al. 2020; Hsu et al. 2021; Chen et al. 2022) is built
from these. All of them act on each utterance of a batch as if it were alone: statistics over time
run over the utterance's own frames, padded frames are zero before the positional convolution, and
padded keys get no attention. (torch's group-norm models lack this property: their GroupNorm runs
over the padding.)

All convolutions are [batch, time, channel]; XLA on CPU is slow with channels first.

Kernels may be bfloat16 (`SpeechEncoder.astype`): a product then rounds its input, and sums in
float32. Everything else (residual sums, norms, softmax) is float32 whatever the kernels are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from speechsim_jax._jax_compat import matmul_precision
from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.models.config import Wav2Vec2Config

# torch's default: layer_norm_eps does not apply to the norms of the convolutions.
_CONV_NORM_EPS = 1e-5
# Added to the variance of the samples, as in Wav2Vec2FeatureExtractor.
_SAMPLE_VARIANCE_EPS = 1e-7
# Frames in memory at once while the variance of the first convolution is summed.
_FRAMES_AT_ONCE = 1024


def normalize(
    samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch sample"]:
    """Normalise each utterance to mean 0 and variance 1 over its own samples.

        (x - mean) / sqrt(var + 1e-7)

    Args:
        samples: the padded batch.
        lengths: samples of each utterance.

    Returns:
        The normalised samples, 0 past the end of an utterance.

    Source: transformers, Wav2Vec2FeatureExtractor, of an utterance alone.
    """
    inside = jnp.arange(samples.shape[1]) < lengths[:, None]
    count = jnp.maximum(lengths, 1).astype(samples.dtype)[:, None]
    mean = jnp.sum(samples, axis=1, keepdims=True, where=inside) / count
    centred = jnp.where(inside, samples - mean, 0)
    var = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count
    return centred * lax.rsqrt(var + _SAMPLE_VARIANCE_EPS)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x Phi(x), computed by erf as in torch.

    jax.nn.gelu uses erfc, which takes a third longer, or tanh, which is off by 5e-4.

    Source: Hendrycks & Gimpel 2016.
    """
    return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


Activation = Callable[[Array], Array]
"""Function of every number of an array."""

ACTIVATIONS: dict[str, Activation] = {"gelu": gelu, "silu": jax.nn.silu, "swish": jax.nn.silu}
"""By transformers' names (`hidden_act` in config.json)."""

Dropout = Callable[[str, Array], Array]
"""Function of the name of a place in a layer and the numbers there (dropout in training)."""


def no_dropout(place: str, x: Array) -> Array:
    """The `Dropout` of inference: `x` unchanged."""
    return x


class Stack(nnx.Module):
    """A list of modules, under the attribute names "0", "1", ...

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
    """GroupNorm with one channel per group: each channel over the utterance's own frames."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def of_product(
        self,
        windows: Float[Array, "batch frame tap"],
        kernel: Float[Array, "tap features"],
        count: Int[Array, " batch"],
    ) -> Float[Array, "batch frame features"]:
        """The norm of y = windows @ kernel (a bias would cancel), over the first `count` frames.

            (y - mean) / sqrt(var + eps) * scale + bias

        y has a hundred times as many numbers as the audio has samples, so it is never stored for
        its statistics: the mean is subtracted from the windows, the variance is summed over blocks
        of frames, and the gain goes into the kernel.
        """
        n = jnp.maximum(count, 1).astype(windows.dtype)[:, None, None]
        inside = (jnp.arange(windows.shape[1]) < count[:, None])[:, :, None]
        mean = jnp.sum(windows, axis=1, keepdims=True, where=inside) / n
        centred = jnp.where(inside, windows - mean, 0)
        gain = self.scale[...] * lax.rsqrt(_sum_of_squares(centred, kernel) / n + _CONV_NORM_EPS)
        scaled = (kernel * gain).astype(kernel.dtype)
        return product(centred, scaled) + self.bias[...]


def _sum_of_squares(
    x: Float[Array, "batch frame tap"], kernel: Float[Array, "tap features"]
) -> Float[Array, "batch 1 features"]:
    """Sum over frames of (x @ kernel)^2, a block of frames at a time."""
    batch, frames, taps = x.shape
    blocks = -(-frames // _FRAMES_AT_ONCE)
    x = jnp.pad(x, ((0, 0), (0, blocks * _FRAMES_AT_ONCE - frames), (0, 0)))
    x = x.reshape(batch, blocks, _FRAMES_AT_ONCE, taps)

    def step(total: Array, block: Array) -> tuple[Array, None]:
        y = product(block, kernel)
        return total + jnp.sum(jnp.square(y), axis=1, keepdims=True), None

    zero = jnp.zeros((batch, 1, kernel.shape[1]), accumulation_dtype(kernel))
    return lax.scan(step, zero, x.swapaxes(0, 1))[0]


class ConvLayer(nnx.Module):
    """One layer of the feature encoder: convolution, norm (group, layer or none), GELU."""

    def __init__(self, config: Wav2Vec2Config, index: int, rngs: nnx.Rngs):
        self.first = index == 0
        channels = config.conv_dim[index]
        self.stride = config.conv_stride[index]
        self.conv = nnx.Conv(
            1 if self.first else config.conv_dim[index - 1],
            channels,
            kernel_size=(config.conv_kernel[index],),
            use_bias=config.conv_bias,
            rngs=rngs,
        )
        if config.feat_extract_norm == "layer":
            self.layer_norm = layer_norm(channels, _CONV_NORM_EPS, rngs)
        else:
            self.layer_norm = MaskedGroupNorm(channels) if self.first else None

    def __call__(
        self, x: Float[Array, "batch time channel"], count: Int[Array, " batch"]
    ) -> Float[Array, "batch frame features"]:
        """`count`: valid output frames of each utterance."""
        kernel = self.conv.kernel[...]
        if self.first:  # with one channel, a matrix product is faster than lax.conv on a CPU
            cut, kernel = windows(x[:, :, 0], kernel.shape[0], self.stride), kernel[:, 0, :]
            if isinstance(self.layer_norm, MaskedGroupNorm):
                return gelu(self.layer_norm.of_product(cut, kernel, count))
            x = product(cut, kernel)
        else:
            x = convolution(x, kernel, self.stride)
        if self.conv.bias is not None:
            x = x + self.conv.bias[...]
        return gelu(x if self.layer_norm is None else self.layer_norm(x))


def windows(
    x: Float[Array, "batch sample"], taps: int, stride: int
) -> Float[Array, "batch frame tap"]:
    """Every `stride`-th window of `taps` samples: blocks of one stride, side by side.

    Args:
        x: the samples.
        taps: samples of a window.
        stride: samples between the starts of two windows.
    """
    frames = (x.shape[1] - taps) // stride + 1
    across = -(-taps // stride)
    samples = (frames + across - 1) * stride
    blocks = jnp.pad(x, ((0, 0), (0, max(samples - x.shape[1], 0))))[:, :samples]
    blocks = blocks.reshape(x.shape[0], -1, stride)
    cut = jnp.concatenate([blocks[:, i : i + frames] for i in range(across)], axis=-1)
    return cut[:, :, :taps]


def convolution(
    x: Float[Array, "batch time channel"],
    kernel: Float[Array, "tap fan_in features"],
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "batch frame features"]:
    """x * kernel along time (a correlation, as in torch).

    Args:
        x: rounded to the kernel's type; sums are float32.
        kernel: its taps, input channels of one group, and output channels.
        stride: frames between two outputs.
        padding: zeros before and after.
        groups: of channels that are convolved separately.

    Algorithms of products (`jax.lax.DotAlgorithmPreset`) are none of convolutions, which jax would
    compute in TF32 or bfloat16 instead; where one is asked for, convolutions have full precision.
    """
    algorithm = matmul_precision() in lax.DotAlgorithmPreset.__members__
    return lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        window_strides=(stride,),
        padding=[padding],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST if algorithm else None,
        preferred_element_type=accumulation_dtype(kernel),
    )


class FeatureExtractor(nnx.Module):
    """Strided convolutions (seven in released models): 16 kHz samples -> a vector every 20 ms."""

    def __init__(self, config: Wav2Vec2Config, rngs: nnx.Rngs):
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
    """LayerNorm (except in distilled HuBERT) and a linear map to the model's width."""

    def __init__(self, channels: int, size: int, eps: float, rngs: nnx.Rngs, normed: bool = True):
        self.normed = normed
        if normed:
            self.layer_norm = layer_norm(channels, eps, rngs)
        self.projection = Linear(channels, size, rngs)

    def __call__(self, x: Hidden) -> tuple[Hidden, Hidden]:
        """The projection, and its normed input (`extract_features` in transformers)."""
        features = self.layer_norm(x) if self.normed else x
        return self.projection(features), features


class WeightNormConv(nnx.Module):
    """A grouped convolution whose kernel is g v / |v|, one norm per tap (Salimans & Kingma 2016).

    Parameters are split as in checkpoints: `weight_g` [tap, 1, 1], `weight_v` [tap, fan_in, out].
    """

    def __init__(self, features: int, taps: int, groups: int, rngs: nnx.Rngs, stride: int = 1):
        self.groups, self.stride = groups, stride
        shape = (taps, features // groups, features)
        self.weight_g = nnx.Param(jnp.ones((taps, 1, 1)))
        self.weight_v = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Hidden) -> Float[Array, "batch kept neuron"]:
        """Convolve with the kernel folded in float32; padding as `same_pad_conv`."""
        v = self.weight_v[...]
        norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=(1, 2), keepdims=True))
        kernel = self.weight_g[...] * v / norm
        return same_pad_conv(x, kernel, self.groups, self.stride) + self.bias[...]


class PlainConv(nnx.Module):
    """A grouped convolution without weight norm, for checkpoints that batch-normalise its input."""

    def __init__(self, features: int, taps: int, groups: int, rngs: nnx.Rngs):
        self.groups = groups
        shape = (taps, features // groups, features)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Hidden) -> Hidden:
        """Convolve; padding as `same_pad_conv`."""
        return same_pad_conv(x, self.kernel[...], self.groups) + self.bias[...]


def same_pad_conv(
    x: Hidden, kernel: Float[Array, "tap fan_in neuron"], groups: int, stride: int = 1
) -> Float[Array, "batch kept neuron"]:
    """A convolution of unchanged length: taps // 2 zeros on both sides, one less after if even.

    With a stride, every `stride`-th frame of that, from the first on.
    """
    taps = kernel.shape[0]
    return convolution(x, kernel, stride, (taps // 2, taps // 2 - (taps % 2 == 0)), groups)


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

    def __init__(self, config: Wav2Vec2Config, rngs: nnx.Rngs):
        taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        self.batch_normed = config.conv_pos_batch_norm
        if self.batch_normed:
            self.batch_norm = BatchNorm(config.hidden_size)
        conv = PlainConv if self.batch_normed else WeightNormConv
        self.conv = conv(config.hidden_size, taps, groups, rngs)

    def __call__(self, x: Hidden, mask: FrameMask) -> Hidden:
        """`mask`: valid frames; the others count as zero padding."""
        if self.batch_normed:
            # The shift of a batch norm makes padding non-zero; an utterance alone has zeros there.
            x = jnp.where(mask[:, :, None], self.batch_norm(x), 0)
        return gelu(self.conv(x))


class FeedForward(nnx.Module):
    """Linear, activation, linear."""

    def __init__(
        self, size: int, intermediate_size: int, rngs: nnx.Rngs, activation: Activation = gelu
    ):
        self.activation = activation
        self.intermediate_dense = Linear(size, intermediate_size, rngs)
        self.output_dense = Linear(intermediate_size, size, rngs)

    def __call__(self, x: Hidden, drop: Dropout = no_dropout) -> Hidden:
        """[batch, frame, neuron] to the same."""
        return self.output_dense(drop("activation", self.activation(self.intermediate_dense(x))))


def accumulation_dtype(kernel: Float[Array, "..."]) -> DTypeLike:
    """The type that products with a kernel are summed in: float32, or the kernel's if wider."""
    return jnp.promote_types(kernel.dtype, jnp.float32)


def product(
    x: Float[Array, "... fan_in"], kernel: Float[Array, "... fan_in fan_out"]
) -> Float[Array, "... fan_out"]:
    """x @ kernel, or one kernel for each x of a batch.

    Args:
        x: rounded to the kernel's type.
        kernel: float32 or bfloat16; the sums are float32.
    """
    return jnp.matmul(
        x.astype(kernel.dtype), kernel, preferred_element_type=accumulation_dtype(kernel)
    )


class Linear(nnx.Module):
    """A linear map by `product`, and a bias unless there is none."""

    def __init__(self, size_in: int, size_out: int, rngs: nnx.Rngs, bias: bool = True):
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros(size_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
        """x @ kernel + bias."""
        mapped = product(x, self.kernel[...])
        return mapped if self.bias is None else mapped + self.bias[...]
