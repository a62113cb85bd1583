"""Masks of whole spans, in time for pretraining, in time and over neurons for fine-tuning.

Spans may overlap. Their starts are drawn without replacement; how many there are is

    floor(probability * n / length + u),  u ~ U(0, 1),

at least `minimum`, at most n // length and never more than there are places for a start (Baevski et
al. 2020, section 4.2 and appendix A; `_compute_mask_indices` of transformers; SpecAugment: Park et
al. 2019). n is the utterance's own number of frames, so masks fall on valid frames only and do not
depend on the padding. transformers takes the padded length for the second bound and one u for a
batch, which is the same for an utterance alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from speechsim_jax.errors import UserError
from speechsim_jax.training.random_keys import Keys


@dataclasses.dataclass(frozen=True)
class Spans:
    """How much is masked; `probability` is an upper bound of the share, as spans overlap.

    The defaults are those of wav2vec 2.0; HuBERT has a probability of 0.8. Raises UserError for a
    length below 1 and a probability outside [0, 1].
    """

    probability: float | int = 0.65
    length: int = 10
    minimum: int = 2

    def __post_init__(self):
        if self.length < 1 or self.minimum < 0 or not 0 <= self.probability <= 1:
            raise UserError(
                f"{self}: expected a length of 1 or more, a minimum of 0 or more and a "
                "probability between 0 and 1"
            )


def count_of(spans: Spans, n: Int[Array, ""], u: Float[Array, ""]) -> Int[Array, ""]:
    """The number of spans among n places, rounded up or down by u in [0, 1)."""
    count = jnp.floor(np.float32(spans.probability / spans.length) * n + u).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(count, spans.minimum), n // spans.length)
    return jnp.clip(count, 0, jnp.maximum(n - spans.length + 1, 0))


def span_mask(
    keys: Keys, sizes: Int[Array, " batch"], width: int, spans: Spans
) -> Bool[Array, "batch _width"]:
    """True inside the spans; of each row only the first `sizes` places can be masked."""
    return jax.vmap(lambda key, n: _mask_of_one(key, n, width, spans))(keys, sizes)


def _mask_of_one(
    key: Key[Array, ""], n: Int[Array, ""], width: int, spans: Spans
) -> Bool[Array, " _width"]:
    for_count, for_places = jax.random.split(key)
    count = count_of(spans, n, jax.random.uniform(for_count))
    place = jnp.arange(width)
    # The places with the smallest of equally distributed numbers: a draw without replacement.
    lots = jax.random.bits(for_places, (width,), jnp.uint32)
    possible = place <= n - spans.length
    order = jnp.lexsort((lots, ~possible))
    starts = jnp.zeros(width, jnp.int32).at[order].set((place < count).astype(jnp.int32))
    begun = jnp.cumsum(starts)
    ended = jnp.pad(begun, (spans.length, 0))[:width]
    return begun > ended
