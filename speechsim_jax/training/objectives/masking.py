"""Masks of spans, in time for pretraining, in time and over neurons for fine-tuning.

Spans may overlap. Their starts are drawn without replacement; how many there are is

    floor(probability * n / length + u),  u ~ U(0, 1),

at least `minimum`, at most n // length and never more than there are starts. n is the number of
valid frames of the utterance, so masks fall on valid frames only and do not depend on the padding.
transformers takes the padded length for the second bound and one u for a batch, which is the same
for an utterance alone.

Source: Baevski et al. 2020, section 4.2 and appendix A; SpecAugment, Park et al. 2019;
`_compute_mask_indices` of transformers.
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
    """How much is masked. The defaults are those of wav2vec 2.0; HuBERT has a probability of 0.8.

    Attributes:
        probability: Upper bound of the masked share, as spans overlap.
        length: Frames or neurons of a span.
        minimum: Least number of spans.

    Raises:
        UserError: A length below 1, or a probability outside [0, 1].
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


def span_count(spans: Spans, n: Int[Array, ""], u: Float[Array, ""]) -> Int[Array, ""]:
    """The number of spans among n positions, rounded up or down by u in [0, 1)."""
    count = jnp.floor(np.float32(spans.probability / spans.length) * n + u).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(count, spans.minimum), n // spans.length)
    return jnp.clip(count, 0, jnp.maximum(n - spans.length + 1, 0))


def span_mask(
    keys: Keys, sizes: Int[Array, " batch"], width: int, spans: Spans
) -> Bool[Array, "batch _width"]:
    """Masks that are True inside the spans.

    Args:
        keys: The key of each row.
        sizes: Number of positions of each row that can be masked, from its beginning.
        width: Positions of a row.
        spans: How much to mask.
    """
    return jax.vmap(lambda key, n: _mask_of_row(key, n, width, spans))(keys, sizes)


def _mask_of_row(
    key: Key[Array, ""], n: Int[Array, ""], width: int, spans: Spans
) -> Bool[Array, " _width"]:
    for_count, for_starts = jax.random.split(key)
    count = span_count(spans, n, jax.random.uniform(for_count))
    position = jnp.arange(width)
    # The positions of the smallest uniform random numbers: a draw without replacement.
    uniform = jax.random.bits(for_starts, (width,), jnp.uint32)
    possible = position <= n - spans.length
    order = jnp.lexsort((uniform, ~possible))
    starts = jnp.zeros(width, jnp.int32).at[order].set((position < count).astype(jnp.int32))
    begun = jnp.cumsum(starts)
    ended = jnp.pad(begun, (spans.length, 0))[:width]
    return begun > ended
