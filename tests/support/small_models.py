"""Two tiny encoders, noise that they read, and settings that compile one padded shape."""

import dataclasses

import numpy as np

import speechsim_jax as ss
from speechsim_jax.audio.corpus import Corpus
from tests.support.paths import DATA

MODELS = [DATA / "parity" / "wav2vec2-base", DATA / "parity" / "hubert-large"]

# One padded shape, shared by the tests: every other one costs them a compilation.
QUICK = {"batch_seconds": 3, "buckets": 1, "rows_per_update": 100, "progress": False}


def waves(count: int = 9, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise of different loudness and two lengths; the oracle compiles for each length."""
    rng = np.random.default_rng(seed)
    return {
        f"utterance{i:03}": (
            rng.uniform(0.02, 0.2) * np.convolve(rng.standard_normal(n), np.ones(8) / 8, "same")
        ).astype(np.float32)
        for i, n in enumerate(rng.choice([7_111, 20_000], count))
    }


def of_speakers(utterances: int, speakers: int) -> Corpus:
    """Such noise, of speakers s0, s1, ... in turn."""
    corpus = ss.open_corpus(waves(utterances))
    sources = tuple(
        dataclasses.replace(source, speaker=f"s{k % speakers}")
        for k, source in enumerate(corpus.sources)
    )
    return dataclasses.replace(corpus, sources=sources)
