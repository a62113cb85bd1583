"""The architecture of an encoder: the fields of `config.json` that this package reads."""

import abc
import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64

from speechsim_jax.errors import UserError

SAMPLE_RATE_HZ = 16_000
"""What all encoders are trained on."""

# The lowest rung of the lengths that waveforms are padded to, and rungs from one power of 2 to the
# next.
_FEWEST_FRAMES, _RUNGS = 16, 4


@dataclasses.dataclass(frozen=True)
class EncoderConfig(abc.ABC):
    """What is known of every encoder: its size, and which samples each of its frames is about.

    Frame t is centred at sample `first_centre_samples` + t `hop_samples`.

    Attributes:
        family: model_type in config.json.
        hidden_size: neurons of a layer.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of a layer; a divisor of `hidden_size`.
    """

    family: str
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12

    without_preprocessor: ClassVar[str] = ""
    """What is taken for granted without a preprocessor_config.json; empty for nothing."""

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads} in config.json"
            )

    @classmethod
    @abc.abstractmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> "EncoderConfig":
        """Read `config.json` and `preprocessor_config.json`.

        Args:
            config: the parsed config.json, of a family of this class.
            preprocessor: the parsed preprocessor_config.json; empty if there is none.

        Raises:
            UserError: an option that this package does not implement, or a senseless value.
        """

    @abc.abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The fields of `config.json`, without the names of family and class."""

    @abc.abstractmethod
    def preprocessor_to_hf(self) -> dict[str, Any]:
        """The fields of `preprocessor_config.json`."""

    @property
    @abc.abstractmethod
    def hop_samples(self) -> int:
        """Samples between the starts of two frames."""

    @property
    @abc.abstractmethod
    def window_samples(self) -> int:
        """Samples in the receptive field of one frame; a shorter input has no frame."""

    @property
    def first_centre_samples(self) -> float:
        """Where the first frame is centred, in samples from the start of the input."""
        return self.window_samples / 2

    @property
    def longest_samples(self) -> int | None:
        """Samples of the longest input that the model takes; None for any."""
        return None

    @abc.abstractmethod
    def frames(self, samples: Any) -> Any:
        """Frames of an input.

        Args:
            samples: length of the input; an integer or an integer array (numpy or JAX).

        Returns:
            The number of frames, of the same type; 0 for inputs too short for a frame.
        """

    def map_frames(self, samples: Any) -> Any:
        """Frames that attention maps are over; those of a fixed window are more than `frames`.

        Args:
            samples: as in `frames`.

        Returns:
            The number of frames, of the same type.
        """
        return self.frames(samples)

    def logit_frames(self, samples: Any) -> Any:
        """Frames of a CTC head's logits, which may have another rate than hidden states (SEW).

        Args:
            samples: as in `frames`.

        Returns:
            The number of frames, of the same type.
        """
        return self.frames(samples)

    def padded_samples(self, samples: int) -> int:
        """What waveforms are padded to, so that those of any lengths share few compiled programs.

        The rungs are 16, 20, 24 and 28 frames, twice as many, and so on: of most models 27 up to
        30 s. More than 16 frames become at most a quarter more. A model that reads a window of
        fixed length has one rung, its window.

        Args:
            samples: of the longest waveform; it has a frame.

        Returns:
            The most samples that make the frames of the next rung.
        """
        if self.longest_samples is not None:
            return self.longest_samples
        frames = max(int(self.frames(samples)), _FEWEST_FRAMES)
        octave = 2 ** (frames - 1).bit_length() // 2
        step = octave // _RUNGS
        rung = -(-frames // step) * step
        return self.window_samples + rung * self.hop_samples - 1

    def makes_frames_of(self, other: "EncoderConfig") -> bool:
        """Whether the frames of another encoder are at the same places, of an input of any length.

        Args:
            other: configuration of the other encoder.
        """
        ours, theirs = (
            (config.hop_samples, config.first_centre_samples, config.window_samples)
            for config in (self, other)
        )
        lengths = self.window_samples + np.arange(2 * self.hop_samples)
        return ours == theirs and np.array_equal(self.frames(lengths), other.frames(lengths))

    @property
    def frames_in_words(self) -> str:
        """How long frames are and where they lie, for messages."""
        return (
            f"{self.window_samples} samples every {self.hop_samples}, centred from sample "
            f"{self.first_centre_samples:g} on"
        )

    @property
    def head_size(self) -> int:
        """Neurons of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def frame_centres_seconds(self, count: int) -> Float64[np.ndarray, " frame"]:
        """Centre of each of the first `count` frames, (t hop + first centre) / 16000 s."""
        return (np.arange(count) * self.hop_samples + self.first_centre_samples) / SAMPLE_RATE_HZ


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config(EncoderConfig):
    """An encoder of wav2vec 2.0's kind: strided convolutions of samples, then a transformer.

    The field names and defaults are transformers' own: the class defaults of `Wav2Vec2Config`,
    `HubertConfig`, `WavLMConfig`, `UniSpeechConfig` and `UniSpeechSatConfig` (transformers 5.23),
    which agree on every field here: released files of 2021 leave many out. Families with other
    defaults have a class of their own. The last two fields describe the initial weights only. They
    are part of the architecture's record because `random_like` reads them from a checkpoint's
    config.json and `save` writes them.

    Attributes:
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
        adapter_attn_dim: neurons between the two maps of a language's adapter, which follows each
            layer (MMS, wav2vec2 only); None for no adapters.
        do_normalize: samples are normalised per utterance (from preprocessor_config.json).
        initializer_range: standard deviation of the initial linear maps. 0.02 suits 768 neurons;
            with 96, attention and feed-forward parts would add next to nothing.
        convolutions: initial convolutions: drawn at random, or the first is a filterbank, or all
            are its cepstrum (`models.filterbank`). Not a field of transformers.
    """

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
    adapter_attn_dim: int | None = None
    do_normalize: bool = True
    initializer_range: float = 0.02
    convolutions: Literal["drawn", "gabor", "cepstrum"] = "drawn"

    lacking: ClassVar[tuple[str, ...]] = ()
    """Fields that are no options of the family: they keep their defaults."""
    without_preprocessor: ClassVar[str] = "samples are normalised (do_normalize=True)"
    only_gelu: ClassVar[tuple[str, ...]] = ("hidden_act", "feat_extract_activation")
    """The fields that name an activation which has to be GELU."""

    def __post_init__(self):
        super().__post_init__()
        sizes = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(sizes) != 1:
            raise UserError("conv_dim, conv_kernel and conv_stride differ in length in config.json")
        if self.convolutions == "cepstrum" and not (
            self.conv_bias and self.feat_extract_norm == "group"
        ):
            raise UserError("convolutions='cepstrum' needs conv_bias and feat_extract_norm='group'")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in self.lacking:
            if getattr(self, name) != defaults[name]:
                raise UserError(f"{name} is no option of {self.family}, only {defaults[name]!r}")
        if self.adapter_attn_dim is not None and not self.do_stable_layer_norm:
            raise UserError(
                "config.json sets adapter_attn_dim without do_stable_layer_norm; only layers with "
                "their norms before the branches have adapters"
            )

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
    ) -> "Wav2Vec2Config":
        """As `EncoderConfig.from_hf`; without `do_normalize` samples are normalised.

        That is the default of `Wav2Vec2FeatureExtractor`.
        """
        refuse_variants(config, cls.only_gelu)
        check_sample_rate(preprocessor)
        family = config["model_type"]
        without = {"do_normalize", "adapter_attn_dim", *cls._left_out(family)}
        values = read_fields(cls, config, without)
        normalize = checked("do_normalize", preprocessor.get("do_normalize", True), True)
        adapter = config.get("adapter_attn_dim")
        if adapter is not None:
            adapter = checked("adapter_attn_dim", adapter, 1)
        return cls(family=family, do_normalize=normalize, adapter_attn_dim=adapter, **values)

    @classmethod
    def _left_out(cls, family: str) -> set[str]:
        """The fields that a config.json of the family does not have."""
        others = _ONLY_OF.keys() - {family}
        return {*cls.lacking, *(name for other in others for name in _ONLY_OF[other])}

    def to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.to_hf`."""
        values = dataclasses.asdict(self)
        for name in ("family", "do_normalize"):
            del values[name]
        if self.convolutions == "drawn":  # the only kind in transformers, which has no such field
            del values["convolutions"]
        values = {k: v for k, v in values.items() if k not in self._left_out(self.family)}
        # Above 0, transformers expects the embedding of masked frames, which the encoder lacks.
        return values | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}

    def preprocessor_to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.preprocessor_to_hf`."""
        return {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": SAMPLE_RATE_HZ,
            "padding_value": 0.0,
            "padding_side": "right",
            "do_normalize": self.do_normalize,
            # Group-norm models were trained without a mask (transformers' documentation).
            "return_attention_mask": self.feat_extract_norm == "layer",
        }

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

    def frames(self, samples: Any, layers: int | None = None) -> Any:
        """Frames of an input, after the first `layers` convolutions.

            l -> (l - kernel) // stride + 1 for each convolution

        of which several are one, with the window and the hop that they have together. In a program
        that is no small thing: XLA repeats these integers in each fusion that a mask goes into.

        Args:
            samples: length of the input; an integer or an integer array (numpy or JAX).
            layers: how many convolutions to apply (default: all).

        Returns:
            The number of frames, of the same type; 0 for inputs too short for a frame.
        """
        window = hop = 1
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride))[:layers]:
            window, hop = window + (kernel - 1) * hop, hop * stride
        return ((samples - window) // hop + 1) * (samples >= window)


# Fields that mean something in one family only.
_ONLY_OF = {
    "wav2vec2": ("adapter_attn_dim",),
    "hubert": ("feat_proj_layer_norm", "conv_pos_batch_norm"),
    "wavlm": ("num_buckets", "max_bucket_distance"),
}


def read_fields(
    config_type: type[EncoderConfig], config: Mapping[str, Any], without: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a class that a config.json states, each in the type of its default.

    Args:
        config_type: its fields have transformers' names.
        config: the parsed config.json.
        without: fields that are not read.

    Raises:
        UserError: a value of another type, by the field's name.
    """
    names = {field.name for field in dataclasses.fields(config_type)} - {"family", *without}
    nullable = {
        field.name
        for field in dataclasses.fields(config_type)
        if types.NoneType in typing.get_args(field.type)
    }
    return {
        name: None
        if config[name] is None and name in nullable
        else checked(name, config[name], getattr(config_type, name))
        for name in names & config.keys()
    }


def check_sample_rate(preprocessor: Mapping[str, Any]) -> None:
    """Raise UserError for a model that was trained on another rate than 16 kHz."""
    rate = preprocessor.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise UserError(
            f"the feature extractor has sampling_rate={rate!r}; only models that were trained "
            f"on {SAMPLE_RATE_HZ} Hz are supported"
        )


def checked(name: str, value: Any, default: Any) -> Any:
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


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint whose weights are quantised."""
    quantised = config.get("quantization_config") or config.get("quantization")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"config.json says that the weights are quantised ({method or 'quantization'}); load "
            "the model without quantisation and save it again"
        )


def refuse_variants(config: Mapping[str, Any], only_gelu: Collection[str]) -> None:
    """Raise UserError for options of a known family that are not implemented.

    Args:
        config: the parsed config.json.
        only_gelu: the fields that name an activation which has to be GELU.
    """
    refuse_quantised(config)
    if config.get("add_adapter"):
        raise UserError("config.json has add_adapter=true; adapter models are not supported")
    if config.get("adapter_attn_dim") is not None and config["model_type"] != "wav2vec2":
        raise UserError(
            f"config.json sets adapter_attn_dim; a {config['model_type']} with adapters is not "
            "supported, only a wav2vec2 (MMS)"
        )
    for name in only_gelu:
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
