"""Results with standard errors, of random rows of speakers."""

from collections.abc import Sequence

import numpy as np

import speechsim_jax as ss
from speechsim_jax.results.result import SimilarityResult


def clustered_result(
    measures: Sequence[str] = ("maxcorr", "lincka"),
    layers: int = 4,
    speakers: int = 30,
    frames: int = 60,
    rows: int = 1000,
    heldout: bool = False,
) -> SimilarityResult:
    """Two models, "a" and "b", whose layers drift away from each other, step by step.

    `frames` of each speaker, of which `rows` in all are sampled.
    """
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(speakers), frames)
    x = rng.standard_normal((speakers, 8))[speaker] + rng.standard_normal((len(speaker), 8))
    arrays = {}
    for model in "ab":
        for layer in range(layers):
            x = x + 0.5 * rng.standard_normal(x.shape)
            arrays[f"{model}/{layer}"] = x
    return ss.compare_activations(
        arrays, measures, errors=True, groups=speaker, errors_rows=rows, heldout=heldout
    )
