"""The forward pass in training: with masks, dropout and scaled gradients.

    X -> f(X) = Z -> Z with masked frames replaced -> transformer -> C

The modules are those of the encoder; without masks and dropout the last hidden state is the
encoder's, to the last bit.

Source: wav2vec 2.0 (Baevski et al. 2020), figure 1; HuBERT (Hsu et al. 2021), figure 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden, Lengths, Waveforms
from speechsim_jax.models.families.wav2vec2 import Wav2Vec2Network
from speechsim_jax.models.layers import normalize
from speechsim_jax.training.model import Model
from speechsim_jax.training.random_keys import Dropout


class Encoded(NamedTuple):
    """Input of the objectives; frames where `frame_mask` is False are undefined.

    Attributes:
        last: The last hidden state, after the final norm.
        features: The normed outputs of the convolutions, unmasked, which are quantized.
        convolved: The outputs of the convolutions, whose mean square is fairseq's penalty.
        frame_mask: Valid frames.
    """

    last: Hidden
    features: Hidden
    convolved: Hidden
    frame_mask: FrameMask


class Masks(NamedTuple):
    """Frames, and neurons of the feature projection, that are hidden from the transformer."""

    frames: Bool[Array, "batch frame"] | None = None
    neurons: Bool[Array, "batch neuron"] | None = None


UNMASKED = Masks()


def encode(
    graph: nnx.GraphDef,
    model: Model,
    samples: Waveforms,
    lengths: Lengths,
    masks: Masks = UNMASKED,
    dropout: Dropout | None = None,
    feature_grad_mult: float | int = 1.0,
) -> Encoded:
    """Encode a padded batch with masks and dropout.

    Args:
        graph: The encoder's modules.
        model: Parameters.
        samples: 16 kHz waveforms.
        lengths: Valid samples of each row, 0 for filler rows.
        masks: Masked frames become `masked_spec_embed`, masked neurons 0, as in
            `_mask_hidden_states` of transformers.
        dropout: Dropout; default none.
        feature_grad_mult: Factor of the convolutions' gradient, as in fairseq; at 0 none is
            computed.
    """
    network: Wav2Vec2Network = nnx.merge(graph, model.encoder)
    samples, lengths = jnp.asarray(samples), jnp.asarray(lengths)
    samples = jnp.where(jnp.arange(samples.shape[1]) < lengths[:, None], samples, 0)
    if network.config.do_normalize:
        samples = normalize(samples, lengths)
    convolved = scale_gradient(network.feature_extractor(samples, lengths), feature_grad_mult)
    frame_mask = jnp.arange(convolved.shape[1]) < network.config.frames(lengths)[:, None]
    x, features = network.feature_projection(convolved)
    if dropout:
        x, features = dropout("projection", x), dropout("quantizer", features)
    if masks.frames is not None:
        x = jnp.where(masks.frames[:, :, None], model.masked_spec_embed, x)
    if masks.neurons is not None:
        x = jnp.where(masks.neurons[:, None, :], 0, x)
    return Encoded(_transform(network, x, frame_mask, dropout), features, convolved, frame_mask)


def _transform(
    network: Wav2Vec2Network, x: Hidden, mask: FrameMask, dropout: Dropout | None
) -> Hidden:
    """`Transformer` layer by layer, with dropout."""
    transformer, stable = network.encoder, network.config.do_stable_layer_norm
    x = jnp.where(mask[:, :, None], x, 0)
    x = x + transformer.pos_conv_embed(x, mask)
    x = x if stable else transformer.layer_norm(x)
    x = dropout("positions", x) if dropout else x
    bias = transformer.position_bias(x.shape[1])
    for index, layer in enumerate(transformer.layers):
        if dropout:
            noise = dropout.in_layer(index)
            x = noise.layer_drop(x, layer(x, mask, bias, False, noise)[0])
        else:
            x = layer(x, mask, bias, False)[0]
    x = transformer.layer_norm(x) if stable else x
    return dropout("last", x) if dropout else x


def scale_gradient(x: Float[Array, "*shape"], scale: float | int) -> Float[Array, "*shape"]:
    """x, with its gradient multiplied by `scale`."""
    if scale == 1:
        return x
    fixed = jax.lax.stop_gradient(x)
    return scale * (x - fixed) + fixed if scale else fixed


def feature_power(encoded: Encoded) -> Float[Array, ""]:
    """Sum over valid frames of the mean square of the convolutions' outputs (fairseq's penalty)."""
    power = jnp.mean(jnp.square(encoded.convolved.astype(jnp.float32)), -1)
    return jnp.sum(power, where=encoded.frame_mask)


def count(mask: Bool[Array, "*shape"]) -> Int[Array, ""]:
    """The number of True elements."""
    return jnp.sum(mask, dtype=jnp.int32)


def unit_vectors(x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """x / max(|x|, 1e-8), as in torch's cosine similarity."""
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))
