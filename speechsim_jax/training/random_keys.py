"""All that training draws: one key an utterance, from which everything drawn for it follows.

    key = fold_in(fold_in(key(seed), step), number of the utterance)

What is drawn for several purposes is told apart by a hash of their names. Draws run along frames
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

# Which rate holds at which place of the network.
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
    seed: int, step: int | Int[Array, ""], numbers: Int[Array | np.ndarray, " batch"]
) -> Keys:
    """The key of each utterance of a step; `numbers` tell the utterances of a batch apart."""
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(of_step, jnp.asarray(numbers))


def key_for(keys: Keys, purpose: str) -> Keys:
    """The keys for one purpose."""
    number = np.uint32(zlib.crc32(purpose.encode()))
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


@dataclasses.dataclass(frozen=True)
class Rates:
    """How often each kind of number is dropped; names are transformers', nothing by default."""

    feat_proj_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    feat_quantizer_dropout: float | int = 0.0
    final_dropout: float | int = 0.0
    layerdrop: float | int = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout (Srivastava et al. 2014) at the named places of a network or of one layer."""

    rates: Rates
    keys: Keys
    layer: int | None = None

    def __call__(self, place: str, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """x / (1 - rate) where it is kept, 0 where it is dropped."""
        rate = getattr(self.rates, _RATE_AT[place])
        if not rate:
            return x
        return jnp.where(self._kept(place, rate, x.shape[1:]), x / (1 - rate), 0)

    def in_layer(self, layer: int) -> "Dropout":
        """The same with noise of its own for a transformer layer."""
        return dataclasses.replace(self, layer=layer)

    def or_skip(
        self, x: Float[Array, "batch frame neuron"], through: Float[Array, "batch frame neuron"]
    ) -> Float[Array, "batch frame neuron"]:
        """`through` the layer, or x as it came: LayerDrop (Fan et al. 2020), drawn per utterance.

        (transformers and fairseq draw once a batch, which saves the work but ties utterances.)
        """
        rate = self.rates.layerdrop
        return jnp.where(self._kept("layer", rate, (1, 1)), through, x) if rate else through

    def _kept(self, place: str, rate: float | int, shape: tuple[int, ...]) -> Array:
        keys = key_for(self.keys, f"dropout {place} {self.layer}")
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
