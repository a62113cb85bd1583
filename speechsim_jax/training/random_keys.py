"""Random keys of training: one key an utterance, from which everything drawn for it follows.

    key = fold_in(fold_in(key(seed), step), index of the utterance)

Draws for different purposes are kept apart by a hash of the purpose's name. Draws run along frames
first and threefry is a function of key and counter, so those of the first frames do not depend on
the padding: what is drawn for an utterance does not depend on what it is batched with, nor on the
devices that share the batch.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Keys = Key[Array, " batch"]

# The rate that applies at each place of the encoder. The names of the places, like all purposes of
# `key_for`, are part of the keys: with other names a training draws other numbers.
_RATE_AT = {
    "projection": "feat_proj_dropout",
    "positions": "hidden_dropout",
    "attended": "hidden_dropout",
    "activation": "activation_dropout",
    "fed": "hidden_dropout",
    "quantizer": "feat_quantizer_dropout",
    "last": "final_dropout",
}


def utterance_keys(
    seed: int, step: int | Int[Array, ""], indices: Int[Array | np.ndarray, " batch"]
) -> Keys:
    """The key of each utterance of a step, by its index in the batch."""
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(of_step, jnp.asarray(indices))


def key_for(keys: Keys, purpose: str) -> Keys:
    """The keys of utterances for one purpose."""
    number = np.uint32(zlib.crc32(purpose.encode()))
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


@dataclasses.dataclass(frozen=True)
class DropoutRates:
    """Probability of dropping a number at each place; names are transformers', defaults 0."""

    feat_proj_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    feat_quantizer_dropout: float | int = 0.0
    final_dropout: float | int = 0.0
    layerdrop: float | int = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout at the named places of an encoder, or of one of its transformer layers.

    Attributes:
        rates: Probabilities.
        keys: The key of each utterance.
        layer: Number of the transformer layer; None outside of them.

    Source: Srivastava et al. 2014.
    """

    rates: DropoutRates
    keys: Keys
    layer: int | None = None

    def __call__(self, place: str, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """x / (1 - rate), or 0 where a number is dropped."""
        rate = getattr(self.rates, _RATE_AT[place])
        if not rate:
            return x
        return jnp.where(self._keep(place, rate, x.shape[1:]), x / (1 - rate), 0)

    def in_layer(self, layer: int) -> "Dropout":
        """The dropout of a transformer layer; each layer has different draws."""
        return dataclasses.replace(self, layer=layer)

    def layer_drop(
        self, x: Float[Array, "batch frame neuron"], output: Float[Array, "batch frame neuron"]
    ) -> Float[Array, "batch frame neuron"]:
        """LayerDrop: a layer's output, or its input x where the layer is skipped.

        Drawn per utterance; transformers and fairseq draw once a batch, which saves the work of the
        layer but makes utterances depend on each other.

        Source: Fan et al. 2020.
        """
        rate = self.rates.layerdrop
        return jnp.where(self._keep("layer", rate, (1, 1)), output, x) if rate else output

    def _keep(self, place: str, rate: float | int, shape: tuple[int, ...]) -> Array:
        keys = key_for(self.keys, f"dropout {place} {self.layer}")
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
