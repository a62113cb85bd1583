"""SEW: wav2vec 2.0 whose transformer has a frame for every few frames of the convolutions.

The frames are averaged ("squeezed"), and for a CTC head made as many as before ("upsampled").
Hidden states have the rate of the squeezed frames.

Source: Wu et al. 2022 (Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech
Recognition).
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.models import layers
from speechsim_jax.models.architecture import Frames, Network, Outputs, Transformed
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import draws
from speechsim_jax.models.families.family import Family, Weight
from speechsim_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class SEWConfig(Wav2Vec2Config):
    """The architecture of SEW; field names and defaults are transformers' own.

    Attributes:
        squeeze_factor: frames of the convolutions in a frame of the transformer.
    """

    conv_dim: tuple[int, ...] = (64, *(128,) * 4, *(256,) * 4, *(512,) * 4)
    conv_kernel: tuple[int, ...] = (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1)
    conv_stride: tuple[int, ...] = (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
    squeeze_factor: int = 2

    lacking: ClassVar[tuple[str, ...]] = ("do_stable_layer_norm",)

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two frames."""
        return super().hop_samples * self.squeeze_factor

    @property
    def window_samples(self) -> int:
        """Samples in the receptive field of one frame; a shorter input has no frame."""
        return super().window_samples + (self.squeeze_factor - 1) * super().hop_samples

    def frames(self, samples: Any, layers: int | None = None) -> Any:
        """Squeezed frames of an input, or frames after the first `layers` convolutions.

        Frames that are left over, fewer than `squeeze_factor`, make no squeezed frame.

        Args:
            samples: as in `Wav2Vec2Config.frames`.
            layers: how many convolutions to apply (default: all, and squeeze).
        """
        frames = super().frames(samples, layers)
        return frames // self.squeeze_factor if layers is None else frames

    def logit_frames(self, samples: Any) -> Any:
        """As `EncoderConfig.logit_frames`: the frames of the convolutions."""
        return super().frames(samples)


class SqueezingConv(nnx.Module):
    """The positional convolution, for every `squeeze_factor`-th frame."""

    def __init__(self, config: SEWConfig, rngs: nnx.Rngs):
        taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        size, stride = config.hidden_size, config.squeeze_factor
        self.conv = layers.WeightNormConv(size, taps, groups, rngs, stride)

    def __call__(self, x: Hidden) -> Float[Array, "batch squeezed neuron"]:
        """`x`: frames of the convolutions; those that are zero are padding."""
        return layers.gelu(self.conv(x))


class Upsampling(nnx.Module):
    """As many frames as the convolutions have: each becomes `factor`, a linear map and GELU."""

    def __init__(self, config: SEWConfig, rngs: nnx.Rngs):
        self.factor = config.squeeze_factor
        self.projection = layers.Linear(config.hidden_size, config.hidden_size * self.factor, rngs)

    def __call__(self, x: Hidden) -> Float[Array, "batch upsampled neuron"]:
        """[batch, frame, neuron] to [batch, factor * frame, neuron]."""
        batch, frames, size = x.shape
        return layers.gelu(self.projection(x)).reshape(batch, frames * self.factor, size)


class SEWTransformer(Transformer):
    """Squeezing, a transformer, and upsampling for a CTC head."""

    positions_type = SqueezingConv

    def __init__(self, config: SEWConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.factor = config.squeeze_factor
        self.upsample = Upsampling(config, rngs)

    def squeeze(self, x: Hidden) -> Float[Array, "batch squeezed neuron"]:
        """The means of every `factor` frames, and positions.

        Args:
            x: frames of the convolutions; those past the utterance are zero.
        """
        batch, frames, size = x.shape
        count = frames // self.factor
        whole = x[:, : count * self.factor].reshape(batch, count, self.factor, size)
        return whole.mean(2) + self.pos_conv_embed(x)[:, :count]

    def first_state(self, x: Hidden, mask: FrameMask) -> Hidden:
        """As `Transformer.first_state`; positions have been added by `squeeze`."""
        return self.layer_norm(x)


class SEWNetwork(Network):
    """Feature extractor, squeezing and transformer."""

    config: SEWConfig

    def __init__(self, config: SEWConfig, rngs: nnx.Rngs):
        self.config = config
        channels = config.conv_dim[-1]
        self.feature_extractor = layers.FeatureExtractor(config, rngs)
        self.layer_norm = layers.layer_norm(channels, config.layer_norm_eps, rngs)
        self.projected = channels != config.hidden_size
        if self.projected:
            self.feature_projection = layers.Linear(channels, config.hidden_size, rngs)
        self.encoder = SEWTransformer(config, rngs)

    def read(self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]) -> Frames:
        """As `Network.read`."""
        if self.config.do_normalize:
            samples = layers.normalize(samples, lengths)
        x = self.layer_norm(self.feature_extractor(samples, lengths))
        x = self.feature_projection(x) if self.projected else x
        count = self.config.frames(lengths, len(self.config.conv_dim))
        inside = jnp.arange(x.shape[1]) < count[:, None]
        x = self.encoder.squeeze(jnp.where(inside[:, :, None], x, 0))
        mask = jnp.arange(x.shape[1]) < self.config.frames(lengths)[:, None]
        return Frames(x, mask, None)

    def transform(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """As `Network.transform`."""
        return self.encoder(x, mask, outputs)

    def head_input(
        self, last: Hidden, lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch upsampled neuron"]:
        """As `Network.head_input`: upsampled; frames that were left over by squeezing are 0."""
        factor = self.config.squeeze_factor
        x = jnp.pad(self.encoder.upsample(last), ((0, 0), (0, factor - 1), (0, 0)))
        count = factor * self.config.frames(lengths)
        inside = jnp.arange(x.shape[1]) < count[:, None]
        return jnp.where(inside[:, :, None], x, 0)


def draw(config: SEWConfig, row: Weight, seed: int) -> np.ndarray:
    """As `draws.draw`: positions as in wav2vec 2.0, everything else as in HuBERT.

    Args:
        config: the architecture.
        row: the parameter.
        seed: of the draw.
    """
    plain = not row.name.startswith("encoder.pos_conv_embed.")
    return draws.draw(config, row, seed, plain)


FAMILY = Family(model_type="sew", class_stem="SEW", config=SEWConfig, network=SEWNetwork, draw=draw)
