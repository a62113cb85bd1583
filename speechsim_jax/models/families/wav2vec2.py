"""wav2vec 2.0: strided convolutions of samples, a positional convolution, a transformer.

The checkpoints of MMS have a small adapter after each layer, one set of them for each language.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden, PositionBias
from speechsim_jax.models import layers
from speechsim_jax.models.architecture import Frames, Network, Outputs, Transformed
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families.draws import draw
from speechsim_jax.models.families.family import Family
from speechsim_jax.models.layers import Dropout, no_dropout
from speechsim_jax.models.transformer import EncoderLayer, Transformer


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
        adapted = config.adapter_attn_dim is not None
        self.encoder = (AdaptedTransformer if adapted else self.transformer_type)(config, rngs)

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


class Adapter(nnx.Module):
    """A language's part of a layer: x -> W2 relu(W1 norm(x) + b1) + b2.

    Source: Pratap et al. 2023 (MMS), section 4; Houlsby et al. 2019.
    """

    def __init__(self, size: int, inner_size: int, rngs: nnx.Rngs):
        self.norm = layers.layer_norm(size, 1e-5, rngs)
        self.linear_1 = layers.Linear(size, inner_size, rngs)
        self.linear_2 = layers.Linear(inner_size, size, rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """What is added to the layer's output."""
        return self.linear_2(jax.nn.relu(self.linear_1(self.norm(x))))


class AdaptedLayer(EncoderLayer):
    """A layer that ends with an adapter."""

    def __init__(self, config: Wav2Vec2Config, index: int, rngs: nnx.Rngs):
        super().__init__(config, index, rngs)
        assert config.adapter_attn_dim is not None
        self.adapter_layer = Adapter(config.hidden_size, config.adapter_attn_dim, rngs)

    def __call__(
        self,
        x: Hidden,
        mask: FrameMask,
        position_bias: PositionBias | None,
        maps: bool,
        drop: Dropout = no_dropout,
    ) -> tuple[Hidden, dict[str, Array]]:
        """As `EncoderLayer.__call__`."""
        x, parts = super().__call__(x, mask, position_bias, maps, drop)
        return x + self.adapter_layer(x), parts


class AdaptedTransformer(Transformer):
    """The transformer of MMS."""

    layer_type = AdaptedLayer


FAMILY = Family(
    model_type="wav2vec2",
    class_stem="Wav2Vec2",
    config=Wav2Vec2Config,
    network=Wav2Vec2Network,
    draw=draw,
)
