"""The transformer of the wav2vec 2.0 family, and its layers; attribute paths are HF's names."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from speechsim_jax.array_types import FrameMask, Hidden, PositionBias
from speechsim_jax.models import layers as modules
from speechsim_jax.models.architecture import Outputs, Transformed
from speechsim_jax.models.attention import Attention
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.layers import Dropout, FeedForward, layer_norm, no_dropout


class EncoderLayer(nnx.Module):
    """A transformer layer; norms after the residual sums (base) or before the branches (stable)."""

    attention_type: type[Attention] = Attention

    def __init__(self, config: Wav2Vec2Config, index: int, rngs: nnx.Rngs):
        self.stable = config.do_stable_layer_norm
        self.attention = self.attention_type(config, index, rngs)
        self.layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, rngs)
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


class Transformer(nnx.Module):
    """Positional convolution and transformer layers, with one layer norm before or after them."""

    layer_type: type[EncoderLayer] = EncoderLayer
    positions_type: Callable[..., Any] = modules.PositionalConv

    def __init__(self, config: Wav2Vec2Config, rngs: nnx.Rngs):
        self.config = config
        self.pos_conv_embed = self.positions_type(config, rngs)
        self.layer_norm = modules.layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
        self.layers = modules.Stack(
            self.layer_type(config, i, rngs) for i in range(config.num_hidden_layers)
        )

    def __call__(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """Hidden states 0 to the highest one requested, and attention's inputs of each block."""
        states, blocks = [self.first_state(x, mask)], []
        bias = self.position_bias(x.shape[1])
        assert outputs.layers is not None
        for layer in list(self.layers)[: max(outputs.layers)]:
            x, inputs = layer(states[-1], mask, bias, outputs.attentions)
            states.append(x)
            blocks.append(inputs)
        if (
            self.config.do_stable_layer_norm
            and outputs.last_layer == "normed"
            and len(states) > self.config.num_hidden_layers
        ):
            states[-1] = self.layer_norm(states[-1])
        return Transformed(states, blocks, bias)

    def first_state(self, x: Hidden, mask: FrameMask) -> Hidden:
        """Hidden state 0, the input of the first layer.

        Args:
            x: frames of a padded batch.
            mask: the valid ones.
        """
        x = jnp.where(mask[:, :, None], x, 0)
        x = x + self.pos_conv_embed(x, mask)
        return x if self.config.do_stable_layer_norm else self.layer_norm(x)

    def position_bias(self, frames: int) -> PositionBias | None:
        """What all layers add to their scores, by head and distance; None for nothing.

        Args:
            frames: of the padded batch.
        """
        return None
