"""The architecture of an encoder: the fields of `config.json` that this package reads."""

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
    "unispeech-sat": "it is not implemented",
    "unispeech": "it is not implemented",
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
    The last two fields describe the initial weights only. They are part of the architecture's
    record because `random_like` reads them from a checkpoint's config.json and `save` writes them.

    Attributes:
        family: model_type in config.json.
        hidden_size: neurons of a layer.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of a layer; a divisor of `hidden_size`.
        intermediate_size: neurons between the two maps of a feed-forward part.
        layer_norm_eps: added to the variance by layer norms, except those of the convolutions.
        feat_extract_norm: a group norm after the first convolution, or a layer norm after each.
        feat_proj_layer_norm: a layer norm before the projection (HuBERT may lack it).
        conv_dim: channels of each convolution.
        conv_kernel: taps of each convolution.
        conv_stride: stride of each convolution.
        conv_bias: the convolutions have biases.
        num_conv_pos_embeddings: taps of the positional convolution.
        num_conv_pos_embedding_groups: groups of the positional convolution.
        conv_pos_batch_norm: batch norm instead of weight norm in that convolution (HuBERT).
        do_stable_layer_norm: layer norms before the branches (large models), not after the sums.
        num_buckets: buckets of WavLM's relative positions.
        max_bucket_distance: distance in frames beyond which they share a bucket.
        do_normalize: samples are normalised per utterance (from preprocessor_config.json).
        initializer_range: standard deviation of the initial linear maps. 0.02 suits 768 neurons;
            with 96, attention and feed-forward parts would add next to nothing.
        convolutions: initial convolutions: drawn at random, or the first is a filterbank, or all
            are its cepstrum (`models.filterbank`). Not a field of transformers.
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
        """Read `config.json` and `preprocessor_config.json`.

        Args:
            config: the parsed config.json.
            preprocessor: the parsed preprocessor_config.json. Without it samples are normalised,
                the default of `Wav2Vec2FeatureExtractor`.

        Raises:
            UserError: an architecture that this package does not implement.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            reason = _REFUSED_FAMILIES.get(str(family), "it is not a speech encoder known here")
            raise UserError(
                f"model_type {family!r} in config.json is not supported: {reason} "
                f"(supported: {', '.join(FAMILIES)})"
            )
        _refuse_variants(config)
        rate = (preprocessor or {}).get("sampling_rate", _SAMPLE_RATE_HZ)
        if rate != _SAMPLE_RATE_HZ:
            raise UserError(
                f"the feature extractor has sampling_rate={rate!r}; only models that were trained "
                f"on {_SAMPLE_RATE_HZ} Hz are supported"
            )
        names = {field.name for field in dataclasses.fields(cls)} - {"family", "do_normalize"}
        values = {name: config[name] for name in names & config.keys()}
        for name in values:
            values[name] = _checked(name, values[name], getattr(cls, name))
        if family != "hubert":
            values.pop("feat_proj_layer_norm", None)
            values.pop("conv_pos_batch_norm", None)
        normalize = _checked("do_normalize", (preprocessor or {}).get("do_normalize", True), True)
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
        """Samples in the receptive field of one frame; a shorter input has no frame."""
        window = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride)):
            window = (window - 1) * stride + kernel
        return window

    def frames(self, samples, layers: int | None = None):
        """Frames of an input, after the first `layers` convolutions.

            l -> (l - kernel) // stride + 1 for each convolution

        Args:
            samples: length of the input; an integer or an integer array (numpy or JAX).
            layers: how many convolutions to apply (default: all).

        Returns:
            The number of frames, of the same type; 0 for inputs too short for a frame.
        """
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)

    def frame_centres_seconds(self, count: int) -> Float64[np.ndarray, " frame"]:
        """Centre of each of the first `count` frames' windows, (t hop + window / 2) / 16000 s."""
        starts = np.arange(count) * self.hop_samples
        return (starts + self.window_samples / 2) / _SAMPLE_RATE_HZ


def _checked(name: str, value: Any, default: Any) -> Any:
    """A field of config.json in the type of its default; raises UserError that names the field."""

    def whole(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and 1 <= number < 2**31

    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, expected = whole(value), "a whole number from 1 on"
    elif isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, expected = number and 0 < value < math.inf, "a number above 0"
    elif isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and len(value) > 0 and all(map(whole, value))
        expected = "a list of whole numbers from 1 on"
    else:
        fits, expected = isinstance(value, str), "text"
    if not fits:
        raise UserError(f"config.json has {name}={value!r}; expected {expected}")
    return tuple(value) if isinstance(value, list) else value


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise UserError for options of a known family that are not implemented."""
    quantised = config.get("quantization_config") or config.get("quantization")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"config.json says that the weights are quantised ({method or 'quantization'}); load "
            "the model without quantisation and save it again"
        )
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
