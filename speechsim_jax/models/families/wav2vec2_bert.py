"""w2v-BERT 2.0: mel features, two frames of 10 ms side by side, then a causal conformer.

Source: Barrault et al. 2023 (Seamless), section 3.2.1; Chung et al. 2021.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.errors import UserError
from speechsim_jax.models import kaldi_mel, layers
from speechsim_jax.models.architecture import Frames, Network, Outputs, Transformed
from speechsim_jax.models.config import (
    SAMPLE_RATE_HZ,
    check_sample_rate,
    checked,
    read_fields,
    refuse_variants,
)
from speechsim_jax.models.conformer import (
    Conformer,
    ConformerConfig,
    ConformerLayer,
    ConvolutionModule,
    check_position_type,
)
from speechsim_jax.models.families.draws import draw_conformer, draw_projection
from speechsim_jax.models.families.family import Family, Weight

# Mel frames in one frame; the extractor's mask means nothing for other numbers.
_STRIDE = 2


@dataclasses.dataclass(frozen=True)
class Wav2Vec2BertConfig(ConformerConfig):
    """The fields and defaults of transformers' class of this name.

    Attributes:
        feature_projection_input_dim: numbers of one frame, two mel frames.
        num_mel_bins: numbers of one mel frame (from preprocessor_config.json).
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "swish"
    position_embeddings_type: Literal["rotary", "relative", "relative_key"] | None = "relative_key"
    feature_projection_input_dim: int = 160
    num_mel_bins: int = 80

    def __post_init__(self):
        super().__post_init__()
        if self.feature_projection_input_dim != _STRIDE * self.num_mel_bins:
            raise UserError(
                f"config.json has feature_projection_input_dim={self.feature_projection_input_dim};"
                f" expected {_STRIDE * self.num_mel_bins}, {_STRIDE} times the num_mel_bins of "
                "preprocessor_config.json"
            )

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
    ) -> "Wav2Vec2BertConfig":
        """As `EncoderConfig.from_hf`."""
        refuse_variants(config, ())
        if config.get("use_intermediate_ffn_before_adapter"):
            raise UserError(
                "config.json has use_intermediate_ffn_before_adapter=true; adapter models are not "
                "supported"
            )
        check_position_type(
            config.get("position_embeddings_type", "relative_key"),
            ("relative_key", "relative", "rotary", None),
        )
        check_sample_rate(preprocessor)
        if preprocessor.get("stride", _STRIDE) != _STRIDE:
            raise UserError(
                f"preprocessor_config.json has stride={preprocessor['stride']!r}; only {_STRIDE} "
                "is supported"
            )
        values = read_fields(cls, config, {"num_mel_bins"})
        bands = values.get("feature_projection_input_dim", 160) // _STRIDE
        stated = checked("num_mel_bins", preprocessor.get("num_mel_bins", bands), bands)
        return cls(family=config["model_type"], num_mel_bins=stated, **values)

    def to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.to_hf`."""
        values = dataclasses.asdict(self)
        del values["family"], values["num_mel_bins"]
        # Above 0, transformers expects the embedding of masked frames, which the encoder lacks.
        return values | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}

    def preprocessor_to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.preprocessor_to_hf`."""
        return {
            "feature_extractor_type": "SeamlessM4TFeatureExtractor",
            "feature_size": self.num_mel_bins,
            "num_mel_bins": self.num_mel_bins,
            "sampling_rate": SAMPLE_RATE_HZ,
            "stride": _STRIDE,
            "padding_value": 0.0,
            "padding_side": "right",
            "return_attention_mask": True,
        }

    @property
    def hop_samples(self) -> int:
        """As `EncoderConfig.hop_samples`: 20 ms."""
        return _STRIDE * kaldi_mel.HOP_SAMPLES

    @property
    def window_samples(self) -> int:
        """As `EncoderConfig.window_samples`: two mel frames, 35 ms."""
        return kaldi_mel.WINDOW_SAMPLES + (_STRIDE - 1) * kaldi_mel.HOP_SAMPLES

    def frames(self, samples: Any) -> Any:
        """As `EncoderConfig.frames`; a mel frame without a second one is not counted.

        So says the extractor's attention mask, which transformers' models have to be given.
        """
        return mel_frames(samples) // _STRIDE


def mel_frames(samples: Any) -> Any:
    """Mel frames of an input of so many samples; an integer or an integer array."""
    count = (samples - kaldi_mel.WINDOW_SAMPLES) // kaldi_mel.HOP_SAMPLES + 1
    return count * (count > 0)


class CausalConvolution(ConvolutionModule):
    """Padded before the utterance only, with a layer norm."""

    causal = True

    def __init__(self, config: ConformerConfig, norm_eps: float, rngs: nnx.Rngs):
        super().__init__(config, norm_eps, rngs)
        self.depthwise_layer_norm = layers.layer_norm(config.hidden_size, norm_eps, rngs)

    def normed(self, x: Hidden) -> Hidden:
        """As `ConvolutionModule.normed`."""
        return self.depthwise_layer_norm(x)


class Layer(ConformerLayer):
    """A layer of this family."""

    convolution_type = CausalConvolution


class Encoder(Conformer):
    """The layers; the last one ends with a norm, as all do."""

    layer_type = Layer


class Wav2Vec2BertNetwork(Network):
    """Mel features, projection and conformer."""

    config: Wav2Vec2BertConfig

    def __init__(self, config: Wav2Vec2BertConfig, rngs: nnx.Rngs):
        self.config = config
        eps = config.layer_norm_eps
        self.feature_projection = layers.FeatureProjection(
            config.feature_projection_input_dim, config.hidden_size, eps, rngs
        )
        self.encoder = Encoder(config, eps, rngs)

    def read(self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]) -> Frames:
        """As `Network.read`; the features are the normed mel features."""
        power = kaldi_mel.mel_power(samples, self.config.num_mel_bins)
        # The last mel frame of an odd number takes part in mean and variance, and nowhere else.
        mel = kaldi_mel.normalised_levels(power, mel_frames(lengths))
        frames = mel.shape[1] // _STRIDE
        pairs = mel[:, : frames * _STRIDE].reshape(len(mel), frames, -1)
        x, features = self.feature_projection(pairs)
        mask = jnp.arange(frames) < self.config.frames(lengths)[:, None]
        return Frames(x, mask, features)

    def transform(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """As `Network.transform`."""
        return self.encoder(x, mask, outputs)


def _draw(config: Wav2Vec2BertConfig, row: Weight, seed: int) -> np.ndarray:
    if row.name.startswith("feature_projection.projection"):
        return draw_projection(config.feature_projection_input_dim, config.family, row, seed)
    return draw_conformer(config, row, seed)


FAMILY = Family(
    model_type="wav2vec2-bert",
    class_stem="Wav2Vec2Bert",
    config=Wav2Vec2BertConfig,
    network=Wav2Vec2BertNetwork,
    draw=_draw,
    first="encoder.layers.0.conv_module.depthwise_conv.weight",
    ignored=re.compile(r"encoder\.embed_positions\.inv_freq$"),
)
