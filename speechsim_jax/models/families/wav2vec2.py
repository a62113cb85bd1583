"""wav2vec 2.0: strided convolutions of samples, a positional convolution, a transformer."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.models import layers
from speechsim_jax.models.architecture import Frames, Network, Outputs, Transformed
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families.draws import draw
from speechsim_jax.models.families.family import Family
from speechsim_jax.models.transformer import Transformer


class Wav2Vec2Network(Network):
    """Feature extractor, projection and transformer.

    Source: Baevski et al. 2020.
    """

    config: Wav2Vec2Config
    transformer_type: type[Any] = Transformer

    def __init__(self, config: Wav2Vec2Config, rngs: nnx.Rngs):
        self.config = config
        self.feature_extractor = layers.FeatureExtractor(config, rngs)
        self.feature_projection = layers.FeatureProjection(
            config.conv_dim[-1],
            config.hidden_size,
            config.layer_norm_eps,
            rngs,
            config.feat_proj_layer_norm,
        )
        self.encoder = self.transformer_type(config, rngs)

    def read(self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]) -> Frames:
        """As `Network.read`."""
        if self.config.do_normalize:
            samples = layers.normalize(samples, lengths)
        x, features = self.feature_projection(self.feature_extractor(samples, lengths))
        mask = jnp.arange(x.shape[1]) < self.config.frames(lengths)[:, None]
        return Frames(x, mask, features)

    def transform(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """As `Network.transform`."""
        return self.encoder(x, mask, outputs)


FAMILY = Family(
    model_type="wav2vec2",
    class_stem="Wav2Vec2",
    config=Wav2Vec2Config,
    network=Wav2Vec2Network,
    draw=draw,
)
