"""data2vec-audio: wav2vec 2.0 whose positional convolution is a stack of layers.

Source: Baevski et al. 2022 (data2vec).
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.models import layers
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import draws, wav2vec2
from speechsim_jax.models.families.family import Weight
from speechsim_jax.models.transformer import Transformer

_POSITIONS = "encoder.pos_conv_embed."


@dataclasses.dataclass(frozen=True)
class Data2VecAudioConfig(Wav2Vec2Config):
    """The architecture of data2vec-audio; field names and defaults are transformers' own.

    All convolutions have a layer norm, and the norms of the transformer follow the sums.

    Attributes:
        num_conv_pos_embeddings: layers of the positional convolution.
        conv_pos_kernel_size: taps of each of them.
    """

    num_conv_pos_embeddings: int = 5
    conv_pos_kernel_size: int = 19
    feat_extract_norm: Literal["group", "layer"] = "layer"

    lacking: ClassVar[tuple[str, ...]] = ("feat_extract_norm", "do_stable_layer_norm")


class PositionalLayer(nnx.Module):
    """Grouped convolution, layer norm without parameters, GELU."""

    def __init__(self, config: Data2VecAudioConfig, rngs: nnx.Rngs):
        size, groups = config.hidden_size, config.num_conv_pos_embedding_groups
        self.conv = layers.PlainConv(size, config.conv_pos_kernel_size, groups, rngs)
        self.layer_norm = nnx.LayerNorm(
            size, epsilon=1e-5, use_bias=False, use_scale=False, use_fast_variance=False, rngs=rngs
        )

    def __call__(self, x: Hidden) -> Hidden:
        """[batch, frame, neuron] to the same; frames that are zero are padding."""
        return layers.gelu(self.layer_norm(self.conv(x)))


class PositionalStack(nnx.Module):
    """Convolutional relative positions, by several layers."""

    def __init__(self, config: Data2VecAudioConfig, rngs: nnx.Rngs):
        self.layers = layers.Stack(
            PositionalLayer(config, rngs) for _ in range(config.num_conv_pos_embeddings)
        )

    def __call__(self, x: Hidden, mask: FrameMask) -> Hidden:
        """`mask`: valid frames; the others count as zero padding, before every layer."""
        for layer in self.layers:
            x = layer(jnp.where(mask[:, :, None], x, 0))
        return x


class Data2VecAudioTransformer(Transformer):
    """The transformer of data2vec-audio."""

    positions_type = PositionalStack


class Data2VecAudioNetwork(wav2vec2.Wav2Vec2Network):
    """The network of data2vec-audio."""

    transformer_type = Data2VecAudioTransformer


def draw(config: Data2VecAudioConfig, row: Weight, seed: int) -> np.ndarray:
    """As `draws.draw`; positional kernels are He normal, their biases 0.

    Args:
        config: the architecture.
        row: the parameter.
        seed: of the draw.
    """
    if not row.name.startswith(_POSITIONS):
        return draws.draw(config, row, seed)
    shape = row.shape[::-1] if row.transposed else row.shape
    if row.path[-1] == "bias":
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng([seed, *config.family.encode(), *row.name.encode()])
    return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)


FAMILY = dataclasses.replace(
    wav2vec2.FAMILY,
    model_type="data2vec-audio",
    class_stem="Data2VecAudio",
    config=Data2VecAudioConfig,
    network=Data2VecAudioNetwork,
    draw=draw,
)
