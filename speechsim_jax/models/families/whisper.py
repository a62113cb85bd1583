"""The encoder of Whisper: log-mel spectra of a window of 30 s, two convolutions, a transformer.

A shorter utterance is padded with silence to the window, as in training: the convolutions and the
attention read the whole window, and its frames up to the utterance's end are returned. The decoder
is left out.

Source: Radford et al. 2022.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden
from speechsim_jax.errors import UserError
from speechsim_jax.models import mel
from speechsim_jax.models.architecture import Frames, Network, Outputs, Transformed
from speechsim_jax.models.attention import Attention
from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig, checked, refuse_quantised
from speechsim_jax.models.families.family import Family, Weight
from speechsim_jax.models.layers import Linear, Stack, convolution, gelu, layer_norm

_NORM_EPS = 1e-5  # torch's default
_STRIDE = 2  # of the second convolution
_HOP_SAMPLES = mel.HOP_SAMPLES * _STRIDE
_FRAMES_A_SECOND = SAMPLE_RATE_HZ // _HOP_SAMPLES
_LONGEST_PERIOD = 10_000  # of the positions' sinusoids, over 2 pi, in frames

# Our names of the fields of config.json.
_HF_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "num_mel_bins": "num_mel_bins",
    "max_source_positions": "max_source_positions",
    "init_std": "init_std",
}


@dataclasses.dataclass(frozen=True)
class WhisperConfig(EncoderConfig):
    """The encoder of a Whisper; defaults are those of transformers' `WhisperConfig`.

    Frame t is centred at sample 320 t, and an utterance has the frames that are centred within it.

    Attributes:
        intermediate_size: neurons between the two maps of a feed-forward part (encoder_ffn_dim).
        num_mel_bins: bands of the log-mel spectrum: 80, or 128 since large-v3.
        max_source_positions: frames of the window, 50 a second.
        init_std: standard deviation of the initial weights.
    """

    family: str = "whisper"
    hidden_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        if self.max_source_positions % _FRAMES_A_SECOND:
            raise UserError(
                f"config.json has max_source_positions={self.max_source_positions}; expected a "
                f"multiple of {_FRAMES_A_SECOND}, frames of whole seconds"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> "WhisperConfig":
        """As `EncoderConfig.from_hf`; without a preprocessor_config.json, it fits config.json."""
        refuse_quantised(config)
        activation = config.get("activation_function", "gelu")
        if activation != "gelu":
            raise UserError(
                f"config.json has activation_function={activation!r}; only 'gelu' is supported"
            )
        # scale_embedding concerns the decoder's tokens only.
        values = {
            ours: checked(theirs, config[theirs], getattr(cls, ours))
            for ours, theirs in _HF_NAMES.items()
            if theirs in config
        }
        read = cls(**values)
        if preprocessor:
            read._check_preprocessor(preprocessor)
        return read

    def _check_preprocessor(self, preprocessor: Mapping[str, Any]) -> None:
        """Raise UserError for a feature extractor that is not the one computed here."""
        defaults = WhisperConfig().preprocessor_to_hf()
        for name, expected in self.preprocessor_to_hf().items():
            value = preprocessor.get(name, defaults[name])
            if value != expected:
                raise UserError(
                    f"preprocessor_config.json has {name}={value!r}; expected {expected!r} for "
                    f"num_mel_bins={self.num_mel_bins} and "
                    f"max_source_positions={self.max_source_positions} in config.json"
                )

    def to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.to_hf`."""
        return {theirs: getattr(self, ours) for ours, theirs in _HF_NAMES.items()}

    def preprocessor_to_hf(self) -> dict[str, Any]:
        """As `EncoderConfig.preprocessor_to_hf`."""
        return {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": self.num_mel_bins,
            "sampling_rate": SAMPLE_RATE_HZ,
            "n_fft": mel.WINDOW_SAMPLES,
            "hop_length": mel.HOP_SAMPLES,
            "chunk_length": self.max_source_positions // _FRAMES_A_SECOND,
            "padding_value": 0.0,
            "dither": 0.0,
        }

    @property
    def hop_samples(self) -> int:
        """Samples between the centres of two frames."""
        return _HOP_SAMPLES

    @property
    def window_samples(self) -> int:
        """Samples of one mel frame; a shorter input has no frame.

        The two convolutions read five mel frames (1040 samples), and attention reads everything.
        """
        return mel.WINDOW_SAMPLES

    @property
    def first_centre_samples(self) -> float:
        """0: the spectra are centred, and the convolutions are padded."""
        return 0.0

    @property
    def longest_samples(self) -> int:
        """Samples of the window."""
        return self.max_source_positions * _HOP_SAMPLES

    def frames(self, samples: Any) -> Any:
        """Frames that are centred within an input, at most those of the window.

        Args:
            samples: length of the input; an integer or an integer array (numpy or JAX).

        Returns:
            The number of frames, of the same type; 0 for inputs of less than 400 samples.
        """
        within = -(-samples // _HOP_SAMPLES)
        excess = within - self.max_source_positions
        return (within - excess * (excess > 0)) * (samples >= self.window_samples)

    def map_frames(self, samples: Any) -> Any:
        """As `EncoderConfig.map_frames`: those of the window."""
        return samples * 0 + self.max_source_positions


class WhisperAttention(Attention):
    """Self-attention without a bias of the keys."""

    def __init__(self, config: WhisperConfig, index: int, rngs: nnx.Rngs):
        super().__init__(config, index, rngs)
        self.k_proj = Linear(config.hidden_size, config.hidden_size, rngs, bias=False)


class WhisperLayer(nnx.Module):
    """A transformer layer with norms before the branches."""

    def __init__(self, config: WhisperConfig, index: int, rngs: nnx.Rngs):
        self.self_attn = WhisperAttention(config, index, rngs)
        self.self_attn_layer_norm = layer_norm(config.hidden_size, _NORM_EPS, rngs)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rngs)
        self.final_layer_norm = layer_norm(config.hidden_size, _NORM_EPS, rngs)

    def __call__(self, x: Hidden, mask: FrameMask, maps: bool) -> tuple[Hidden, dict[str, Array]]:
        """The next hidden state, and queries and keys of its attention (its maps if `maps`)."""
        attended, parts = self.self_attn(self.self_attn_layer_norm(x), mask, None, maps)
        x = x + attended
        return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x)))), parts


class WhisperNetwork(Network):
    """The encoder of Whisper, from samples on."""

    config: WhisperConfig

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        size = config.hidden_size
        self.config = config
        self.conv1 = nnx.Conv(config.num_mel_bins, size, kernel_size=(3,), rngs=rngs)
        self.conv2 = nnx.Conv(size, size, kernel_size=(3,), rngs=rngs)
        self.embed_positions = nnx.Embed(config.max_source_positions, size, rngs=rngs)
        self.layers = Stack(
            WhisperLayer(config, index, rngs) for index in range(config.num_hidden_layers)
        )
        self.layer_norm = layer_norm(size, _NORM_EPS, rngs)

    def read(self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]) -> Frames:
        """As `Network.read`: the frames of the whole window."""
        positions = self.config.max_source_positions
        x = mel.log_mel(samples, self.config.num_mel_bins, positions * _STRIDE)
        for conv, stride in ((self.conv1, 1), (self.conv2, _STRIDE)):
            assert conv.bias is not None
            x = gelu(convolution(x, conv.kernel[...], stride, (1, 1)) + conv.bias[...])
        x = x + self.embed_positions.embedding[...]
        mask = jnp.arange(positions) < self.config.frames(lengths)[:, None]
        return Frames(x, mask, None)

    def transform(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """As `Network.transform`; attention reads the silence behind the utterance, too."""
        window = jnp.ones_like(mask)
        states, blocks = [x], []
        assert outputs.layers is not None
        for layer in list(self.layers)[: max(outputs.layers)]:
            x, inputs = layer(states[-1], window, outputs.attentions)
            states.append(x)
            blocks.append(inputs)
        if outputs.last_layer == "normed" and len(states) > self.config.num_hidden_layers:
            states[-1] = self.layer_norm(states[-1])
        return Transformed(states, blocks)


def draw(config: WhisperConfig, row: Weight, seed: int) -> np.ndarray:
    """An initial parameter as a torch tensor: N(0, `init_std`), norms 1 and 0, sinusoids.

    Args:
        config: the architecture.
        row: the parameter.
        seed: of the draw.

    Source: transformers, `_init_weights` of Whisper.
    """
    shape = row.shape[::-1] if row.transposed else row.shape
    kind = row.path[-1]
    if kind == "embedding":
        return sinusoids(*shape)
    if kind == "scale":
        return np.ones(shape, np.float32)
    if kind == "bias":
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng([seed, *config.family.encode(), *row.name.encode()])
    return rng.normal(0, config.init_std, shape).astype(np.float32)


def sinusoids(frames: int, size: int) -> Float[np.ndarray, "frame neuron"]:
    """Positions: sines, then cosines of the frame's number, of periods from 2 pi to 20,000 pi.

    Args:
        frames: of the window.
        size: neurons; even.

    Source: Vaswani et al. 2017, section 3.5, as in Whisper.
    """
    periods = np.exp(np.linspace(0, math.log(_LONGEST_PERIOD), size // 2))
    angles = np.arange(frames)[:, None] / periods
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


FAMILY = Family(
    model_type="whisper",
    class_stem="Whisper",
    config=WhisperConfig,
    network=WhisperNetwork,
    draw=draw,
    first="conv1.weight",
    # WhisperForConditionalGeneration; WhisperModel and WhisperForAudioClassification.
    places=("model.encoder", "encoder"),
    encoder_class="Encoder",
    ctc=False,
)
