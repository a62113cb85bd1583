"""Hidden states of every utterance of a corpus, for analyses that need single frames."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32

from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, Skipped
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.external import Encoder
from speechsim_jax.settings import Settings


def encode_corpus(
    encoder: Encoder,
    corpus: Corpus,
    *,
    layers: tuple[int, ...] | None = None,
    buckets: int | None = Settings.buckets,
    batch_seconds: float | int = Settings.batch_seconds,
    on_skip: Callable[[Skipped], None],
    on_batch: Callable[[float], object] = lambda seconds: None,
) -> Iterator[tuple[str, Float32[np.ndarray, "layer frame neuron"]]]:
    """Encode a corpus batch by batch, without cutting an utterance.

    Args:
        encoder: The encoder.
        corpus: Sources with known durations.
        layers: Hidden states to return, 0 to the number of transformer layers; default all.
        buckets: Number of padded lengths; None for as many as are worth it.
        batch_seconds: Audio in a batch, padding included.
        on_skip: Called with each source that cannot be used.
        on_batch: Called with the seconds of speech in each batch, once it is encoded.

    Yields:
        The id of an utterance and the hidden states of its frames (float32, without padding), in
        the order of the batches.

    Raises:
        UserError: A layer that the encoder lacks.
    """
    if not corpus.sources:
        return
    seconds = [source.seconds or 0.0 for source in corpus.sources]
    # No utterance is longer than the largest bucket: the pieces of a cut one would lose the frames
    # that lie across the cuts. The margin is for headers that state less than the file holds.
    shapes = batching.plan_buckets(
        seconds,
        hop_samples=encoder.config.hop_samples,
        window_samples=encoder.config.window_samples,
        count=buckets,
        batch_seconds=batch_seconds,
        max_seconds=max(0.5, *seconds) + 0.1,
    )
    for batch in batching.batches(
        corpus, shapes, min_samples=encoder.config.window_samples, on_skip=on_skip
    ):
        activations = encoder.apply(batch.samples, batch.lengths, Outputs(layers=layers))
        states = np.asarray(activations.hidden_states)
        frames = encoder.config.frames(batch.lengths)
        longest = encoder.config.longest_samples
        for row, utterance in enumerate(batch.ids):
            if longest is not None and batch.lengths[row] > longest:
                seconds = longest / SAMPLE_RATE_HZ
                reason = f"is longer than {seconds:g} s, the most that {encoder.name} reads"
                on_skip(Skipped(utterance, reason))
                continue
            yield utterance, states[:, row, : frames[row]]
        on_batch(batch.seconds)
