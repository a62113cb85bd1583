"""wav2vec 2.0 with conformer layers.

Files hold a positional convolution, which transformers does not use either.

Source: Wang et al. 2020 (fairseq S2T), with the conformer of Gulati et al. 2020.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.models import layers
from speechsim_jax.models.architecture import Outputs, Transformed
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.conformer import (
    Conformer,
    ConformerConfig,
    ConformerLayer,
    ConvolutionModule,
    check_position_type,
    rotary_frequencies,
)
from speechsim_jax.models.families import wav2vec2
from speechsim_jax.models.families.draws import draw, draw_conformer
from speechsim_jax.models.families.family import Weight

# Norms of the layers have torch's default, whatever layer_norm_eps is.
_LAYER_EPS = 1e-5
# Fields of the bases that this family's config.json does not have.
_OTHERS = ("do_stable_layer_norm", "left_max_position_embeddings", "right_max_position_embeddings")


@dataclasses.dataclass(frozen=True)
class Wav2Vec2ConformerConfig(ConformerConfig, Wav2Vec2Config):
    """The fields of both; names and defaults are those of transformers' class of this name."""

    only_gelu: ClassVar[tuple[str, ...]] = ("feat_extract_activation",)

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
    ) -> "Wav2Vec2ConformerConfig":
        """As `Wav2Vec2Config.from_hf`."""
        check_position_type(
            config.get("position_embeddings_type", "relative"), ("relative", "rotary", None)
        )
        read = super().from_hf({k: v for k, v in config.items() if k not in _OTHERS}, preprocessor)
        assert isinstance(read, cls)
        return read

    def to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.to_hf`."""
        return {name: value for name, value in super().to_hf().items() if name not in _OTHERS}


class BatchNormedConvolution(ConvolutionModule):
    """Centred, with a batch norm in evaluation mode."""

    causal = False

    def __init__(self, config: ConformerConfig, norm_eps: float, rngs: nnx.Rngs):
        super().__init__(config, norm_eps, rngs)
        self.batch_norm = layers.BatchNorm(config.hidden_size)

    def normed(self, x: Hidden) -> Hidden:
        """As `ConvolutionModule.normed`."""
        return self.batch_norm(x)


class Layer(ConformerLayer):
    """A layer of this family."""

    convolution_type = BatchNormedConvolution


class Encoder(Conformer):
    """Layers, a norm after the last one, and a positional convolution that is not used."""

    layer_type = Layer

    def __init__(self, config: Wav2Vec2ConformerConfig, rngs: nnx.Rngs):
        super().__init__(config, _LAYER_EPS, rngs)
        self.depth = config.num_hidden_layers
        self.pos_conv_embed = layers.PositionalConv(config, rngs)
        self.layer_norm = layers.layer_norm(config.hidden_size, config.layer_norm_eps, rngs)

    def __call__(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """As `Conformer`, and the norm of the last state."""
        made = super().__call__(x, mask, outputs)
        if outputs.last_layer == "normed" and len(made.states) > self.depth:
            made.states[-1] = self.layer_norm(made.states[-1])
        return made


class Wav2Vec2ConformerNetwork(wav2vec2.Wav2Vec2Network):
    """Convolutions of samples, then a conformer."""

    transformer_type = Encoder


def _draw(config: Wav2Vec2ConformerConfig, row: Weight, seed: int) -> np.ndarray:
    return (draw_conformer if "layers" in row.path[:2] else draw)(config, row, seed)


def _buffers(config: Wav2Vec2ConformerConfig) -> dict[str, np.ndarray]:
    """What files of transformers hold beside the parameters."""
    if config.position_embeddings_type != "rotary":
        return {}
    frequencies = rotary_frequencies(config.head_size, config.rotary_embedding_base)
    return {"encoder.embed_positions.inv_freq": frequencies}


FAMILY = dataclasses.replace(
    wav2vec2.FAMILY,
    model_type="wav2vec2-conformer",
    class_stem="Wav2Vec2Conformer",
    config=Wav2Vec2ConformerConfig,
    network=Wav2Vec2ConformerNetwork,
    draw=_draw,
    ignored=re.compile(r"encoder\.embed_positions\.inv_freq$"),
    buffers=_buffers,
)
