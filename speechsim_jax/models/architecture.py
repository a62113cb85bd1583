"""Network architecture of the wav2vec 2.0 family: samples in, activations out."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax._jax_compat import concatenate_in_place
from speechsim_jax.array_types import (
    Attentions,
    FrameMask,
    Gates,
    Hidden,
    HiddenStates,
    PositionBias,
    Projections,
)
from speechsim_jax.errors import UserError
from speechsim_jax.models import attention
from speechsim_jax.models import layers as modules
from speechsim_jax.models.attention import Attention
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.layers import Dropout, FeedForward, layer_norm, no_dropout


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a forward pass returns; layers above the last one named are not computed.

    Attributes:
        layers: hidden states by number (0 is the input of the first transformer layer); all if
            None.
        attentions: attention maps.
        projections: queries and keys, and in WavLM gates and position bias.
        features: the normed outputs of the convolutions.
        last_layer: how the last hidden state of a stable-layer-norm model is read: "normed" is
            after the encoder's final layer norm (transformers 4, the published analysis), "raw"
            before it (transformers 5). No difference for post-norm models.
    """

    layers: tuple[int, ...] | None = None
    attentions: bool = False
    projections: bool = False
    features: bool = False
    last_layer: Literal["normed", "raw"] = "normed"

    def resolve(self, config: EncoderConfig) -> "Outputs":
        """The same outputs with `layers` listed.

        Args:
            config: the architecture of the model.

        Raises:
            UserError: the model lacks one of the layers, or none is named.
        """
        depth = config.num_hidden_layers
        layers = tuple(range(depth + 1)) if self.layers is None else self.layers
        unknown = [layer for layer in layers if not 0 <= layer <= depth]
        if unknown or not layers:
            raise UserError(f"no layer {unknown}: the model has layers 0 to {depth}")
        return dataclasses.replace(self, layers=layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """Output of an encoder for a batch; frames where `frame_mask` is False are undefined.

    Attributes:
        hidden_states: [layer, batch, frame, neuron], the layers that were asked for.
        frame_mask: [batch, frame], True for the frames of the utterance.
        attentions: [block, batch, head, query, key]; each row sums to 1 over the valid keys.
        queries: [block, batch, frame, head, neuron], already scaled; with `keys`, and in WavLM
            `gates` and `position_bias`, the inputs of `models.attention.attention_rows`.
        keys: shaped as `queries`.
        gates: [block, batch, head, frame], WavLM's gates of the position bias.
        position_bias: [head, distance]; index d stands for key - query = d - (frames - 1).
        features: [batch, frame, neuron], the normed outputs of the convolutions
            (`extract_features` in transformers).

    >>> encoder = ss.load_encoder("facebook/hubert-base-ls960")
    >>> acts = encoder([np.zeros(16000, np.float32)], attentions=True)
    >>> int(acts.frame_mask.sum()), acts.queries is None
    (49, True)
    """

    hidden_states: HiddenStates
    frame_mask: FrameMask
    attentions: Attentions | None = None
    queries: Projections | None = None
    keys: Projections | None = None
    gates: Gates | None = None
    position_bias: PositionBias | None = None
    features: Hidden | None = None


class Transformer(nnx.Module):
    """Positional convolution and transformer layers, with one layer norm before or after them."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.pos_conv_embed = modules.PositionalConv(config, rngs)
        self.layer_norm = modules.layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
        self.layers = modules.Stack(
            EncoderLayer(config, i, rngs) for i in range(config.num_hidden_layers)
        )

    def __call__(
        self, x: Hidden, mask: FrameMask, outputs: Outputs
    ) -> tuple[list[Hidden], list[dict[str, Array]]]:
        """Hidden states 0 to the highest one requested, and attention's inputs of each block."""
        stable = self.config.do_stable_layer_norm
        x = jnp.where(mask[:, :, None], x, 0)
        x = x + self.pos_conv_embed(x, mask)
        states = [x if stable else self.layer_norm(x)]
        blocks = []
        bias = self.position_bias(x.shape[1])
        assert outputs.layers is not None
        for layer in list(self.layers)[: max(outputs.layers)]:
            x, inputs = layer(states[-1], mask, bias, outputs.attentions)
            states.append(x)
            blocks.append(inputs)
        if (
            stable
            and outputs.last_layer == "normed"
            and len(states) > self.config.num_hidden_layers
        ):
            states[-1] = self.layer_norm(states[-1])
        return states, blocks

    def position_bias(self, frames: int) -> PositionBias | None:
        """WavLM's bias before gating: the first layer's embedding of the bucketed distance.

        Args:
            frames: of the padded batch.
        """
        if self.config.family != "wavlm":
            return None
        table = next(iter(self.layers)).attention.rel_attn_embed.embedding[...]
        return attention.position_bias_of(table, frames, self.config.max_bucket_distance)


class Network(nnx.Module):
    """Feature extractor, projection and transformer; parameter paths are transformers' names."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.feature_extractor = modules.FeatureExtractor(config, rngs)
        self.feature_projection = modules.FeatureProjection(config, rngs)
        self.encoder = Transformer(config, rngs)

    def __call__(
        self,
        samples: Float[Array, "batch sample"],
        lengths: Int[Array, " batch"],
        outputs: Outputs,
        out: Activations | None = None,
    ) -> Activations:
        """Encode a padded batch.

        Args:
            samples: 16 kHz in [-1, 1]; ignored past `lengths`.
            lengths: samples of each utterance; 0 marks a filler row.
            outputs: what to return.
            out: a result of the same shapes to write over.
        """
        outputs = outputs.resolve(self.config)
        inside = jnp.arange(samples.shape[1]) < lengths[:, None]
        samples = jnp.where(inside, samples, 0)
        if self.config.do_normalize:
            samples = normalize(samples, lengths)
        x, features = self.feature_projection(self.feature_extractor(samples, lengths))
        mask = jnp.arange(x.shape[1]) < self.config.frames(lengths)[:, None]
        states, blocks = self.encoder(x, mask, outputs)
        assert outputs.layers is not None

        def of_blocks(name: str, requested: bool) -> Array | None:
            arrays = [inputs[name] for inputs in blocks if name in inputs]
            return stacked(name, arrays) if requested and arrays else None

        def stacked(name: str, arrays: Sequence[Array]) -> Array:
            return _stack(name, arrays, None if out is None else getattr(out, name))

        return Activations(
            hidden_states=stacked("hidden_states", [states[layer] for layer in outputs.layers]),
            frame_mask=mask,
            attentions=of_blocks("attentions", outputs.attentions),
            queries=of_blocks("queries", outputs.projections),
            keys=of_blocks("keys", outputs.projections),
            gates=of_blocks("gates", outputs.projections),
            position_bias=self.encoder.position_bias(x.shape[1]) if outputs.projections else None,
            features=features if outputs.features else None,
        )


def _stack(name: str, arrays: Sequence[Array], out: Array | None) -> Array:
    """The arrays along a new first axis, written into `out` if there is one."""
    shape, dtype = (len(arrays), *arrays[0].shape), arrays[0].dtype
    if out is not None and (out.shape, out.dtype) != (shape, dtype):
        raise UserError(
            f"out.{name} is {out.dtype} {list(out.shape)}, but these waveforms and outputs "
            f"give {dtype} {list(shape)}: pass the result of a batch of the same shape, or nothing"
        )
    return concatenate_in_place([array[None] for array in arrays], out)


class EncoderLayer(nnx.Module):
    """A transformer layer; norms after the residual sums (base) or before the branches (stable)."""

    def __init__(self, config: EncoderConfig, index: int, rngs: nnx.Rngs):
        self.stable = config.do_stable_layer_norm
        self.attention = Attention(config, index, rngs)
        self.layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.final_layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)

    def __call__(
        self,
        x: Hidden,
        mask: FrameMask,
        position_bias: PositionBias | None,
        maps: bool,
        drop: Dropout = no_dropout,
    ) -> tuple[Hidden, dict[str, Array]]:
        """The next hidden state, and queries, keys, ... of its attention (its maps if `maps`)."""
        if self.stable:
            attended, parts = self.attention(self.layer_norm(x), mask, position_bias, maps)
            x = x + drop("attended", attended)
            return x + drop("fed", self.feed_forward(self.final_layer_norm(x), drop)), parts
        attended, parts = self.attention(x, mask, position_bias, maps)
        x = self.layer_norm(x + drop("attended", attended))
        return self.final_layer_norm(x + drop("fed", self.feed_forward(x, drop))), parts


# Added to the variance of the samples, as in Wav2Vec2FeatureExtractor.
_SAMPLE_VARIANCE_EPS = 1e-7


def normalize(
    samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch sample"]:
    """Normalise each utterance to mean 0 and variance 1 over its own samples.

        (x - mean) / sqrt(var + 1e-7)

    Args:
        samples: the padded batch.
        lengths: samples of each utterance.

    Returns:
        The normalised samples, 0 past the end of an utterance.

    Source: transformers, Wav2Vec2FeatureExtractor, of an utterance alone.
    """
    inside = jnp.arange(samples.shape[1]) < lengths[:, None]
    count = jnp.maximum(lengths, 1).astype(samples.dtype)[:, None]
    mean = jnp.sum(samples, axis=1, keepdims=True, where=inside) / count
    centred = jnp.where(inside, samples - mean, 0)
    var = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count
    return centred * jax.lax.rsqrt(var + _SAMPLE_VARIANCE_EPS)
