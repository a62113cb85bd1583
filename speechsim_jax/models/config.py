"""What an encoder looks like: the fields of a `config.json` that change what it computes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from speechsim_jax.errors import UserError

FAMILIES = ("wav2vec2", "hubert", "wavlm")

_SAMPLE_RATE_HZ = 16_000  # what all these families are trained on

_REFUSED_FAMILIES = {
    "data2vec-audio": "its positional convolution is a stack of five",
    "unispeech-sat": "it is not ported",
    "unispeech": "it is not ported",
    "wav2vec2-conformer": "its layers are conformer blocks",
    "wav2vec2-bert": "it reads mel features, not samples",
    "whisper": "it reads mel features, not samples",
    "sew": "it squeezes its frames",
    "sew-d": "it squeezes its frames",
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The architecture of one encoder; the field names and defaults are transformers' own.

    The defaults are the class defaults of `Wav2Vec2Config`, `HubertConfig` and `WavLMConfig`
    (transformers 5.23), which agree on every field here: released files of 2021 leave many out.

    The last two say how an encoder starts, before training, and nothing else. `initializer_range`
    is the standard deviation of linear maps; 0.02 suits 768 neurons: of 96, attention and
    feed-forward parts then add next to nothing. `convolutions`, which transformers does not have:
    drawn at random, or the first is a filterbank, or all are its cepstrum (`models.filterbank`).
    """

    family: Literal["wav2vec2", "hubert", "wavlm"]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-5
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_proj_layer_norm: bool = True
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_pos_batch_norm: bool = False
    do_stable_layer_norm: bool = False
    num_buckets: int = 320
    max_bucket_distance: int = 800
    do_normalize: bool = True
    initializer_range: float = 0.02
    convolutions: Literal["drawn", "gabor", "cepstrum"] = "drawn"

    def __post_init__(self):
        sizes = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(sizes) != 1:
            raise UserError("conv_dim, conv_kernel and conv_stride differ in length in config.json")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads} in config.json"
            )
        if self.convolutions == "cepstrum" and not (
            self.conv_bias and self.feat_extract_norm == "group"
        ):
            raise UserError("convolutions='cepstrum' needs conv_bias and feat_extract_norm='group'")

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
    ) -> "EncoderConfig":
        """Read `config.json` and `preprocessor_config.json` (already parsed).

        Without a preprocessor file the samples are normalised, which is what
        `Wav2Vec2FeatureExtractor` does by default. Raises UserError for an architecture that
        this package does not port.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            reason = _REFUSED_FAMILIES.get(str(family), "it is not a speech encoder known here")
            raise UserError(
                f"model_type {family!r} in config.json is not supported: {reason} "
                f"(supported: {', '.join(FAMILIES)})"
            )
        _refuse_variants(config)
        names = {field.name for field in dataclasses.fields(cls)} - {"family", "do_normalize"}
        values = {name: config[name] for name in names & config.keys()}
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            if name in values:
                values[name] = tuple(values[name])
        if family != "hubert":
            values.pop("feat_proj_layer_norm", None)
            values.pop("conv_pos_batch_norm", None)
        normalize = bool((preprocessor or {}).get("do_normalize", True))
        return cls(family=family, do_normalize=normalize, **values)

    @property
    def head_size(self) -> int:
        """Neurons of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two frames."""
        return math.prod(self.conv_stride)

    @property
    def window_samples(self) -> int:
        """Samples that one frame sees; a shorter input has no frame."""
        window = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride)):
            window = (window - 1) * stride + kernel
        return window

    def frames(self, samples, layers: int | None = None):
        """Frames of an input of `samples` samples, after the first `layers` convolutions (all).

        l -> (l - kernel) // stride + 1 for each convolution; 0 for inputs too short for a frame.
        Takes and gives integers or integer arrays (numpy or JAX).
        """
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)

    def frame_centres_seconds(self, count: int) -> Float64[np.ndarray, " frame"]:
        """Centre of each of the first `count` frames' windows, (t hop + window / 2) / 16000 s."""
        starts = np.arange(count) * self.hop_samples
        return (starts + self.window_samples / 2) / _SAMPLE_RATE_HZ


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise UserError for the options of a known family that change the network beyond the port."""
    if config.get("add_adapter"):
        raise UserError("config.json has add_adapter=true; adapter models are not supported")
    if config.get("adapter_attn_dim") is not None:
        raise UserError(
            "config.json sets adapter_attn_dim (an MMS checkpoint); "
            "per-language adapters are not supported"
        )
    for name in ("hidden_act", "feat_extract_activation"):
        if config.get(name, "gelu") != "gelu":
            raise UserError(f"config.json has {name}={config[name]!r}; only 'gelu' is supported")
    if config.get("feat_extract_norm", "group") not in ("group", "layer"):
        raise UserError(
            f"config.json has feat_extract_norm={config['feat_extract_norm']!r}; "
            "expected 'group' or 'layer'"
        )
    if config.get("convolutions", "drawn") not in ("drawn", "gabor", "cepstrum"):
        raise UserError(
            f"config.json has convolutions={config['convolutions']!r}; "
            "expected 'drawn', 'gabor' or 'cepstrum'"
        )
