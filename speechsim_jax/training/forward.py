"""The forward pass in training: spans masked, numbers dropped, gradients scaled.

    X -> f(X) = Z -> Z with masked frames replaced -> transformer -> C

(wav2vec 2.0, figure 1; HuBERT, figure 1.) The modules are those of the encoder; without masks and
dropout the last hidden state is the encoder's, to the last bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from speechsim_jax.array_types import FrameMask, Hidden, Lengths, Waveforms
from speechsim_jax.models.architecture import Network, normalize
from speechsim_jax.training.model import Model
from speechsim_jax.training.random_keys import Dropout


class Encoded(NamedTuple):
    """What objectives read; frames where `frame_mask` is False mean nothing.

    `last`: the last hidden state (after the final norm); `features`: the normed outputs of the
    convolutions, unmasked, which are quantized; `convolved`: the outputs themselves, whose mean
    square is the penalty of fairseq.
    """

    last: Hidden
    features: Hidden
    convolved: Hidden
    frame_mask: FrameMask


class Masks(NamedTuple):
    """What the transformer does not see: whole frames, whole neurons of the projection."""

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
    """Encode a padded batch of 16 kHz samples; length 0 marks a filler row.

    Masked frames become `masked_spec_embed`, masked neurons 0 (`_mask_hidden_states` of
    transformers). `feature_grad_mult` scales the gradient of the convolutions (fairseq); at 0 they
    are frozen and no gradient is computed.
    """
    network: Network = nnx.merge(graph, model.encoder)
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


def _transform(network: Network, x: Hidden, mask: FrameMask, dropout: Dropout | None) -> Hidden:
    """`Transformer`, layer by layer, with dropout."""
    transformer, stable = network.encoder, network.config.do_stable_layer_norm
    x = jnp.where(mask[:, :, None], x, 0)
    x = x + transformer.pos_conv_embed(x, mask)
    x = x if stable else transformer.layer_norm(x)
    x = dropout("positions", x) if dropout else x
    bias = transformer.position_bias(x.shape[1])
    for index, layer in enumerate(transformer.layers):
        if dropout:
            noise = dropout.in_layer(index)
            x = noise.or_skip(x, layer(x, mask, bias, False, noise)[0])
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
    """Sum over valid frames of the mean square of the convolutions' outputs."""
    power = jnp.mean(jnp.square(encoded.convolved.astype(jnp.float32)), -1)
    return jnp.sum(power, where=encoded.frame_mask)


def count(mask: Bool[Array, "*shape"]) -> Int[Array, ""]:
    """How many are True."""
    return jnp.sum(mask, dtype=jnp.int32)


def unit_vectors(x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """x / max(|x|, 1e-8), as torch's cosine similarity has it."""
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))
