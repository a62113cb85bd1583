"""Small audio files, manifests and corpora for tests."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechsim_jax.audio.corpus import Corpus, Source

SPEECH = os.environ.get("SPEECHSIM_SPEECH")
needs_speech = pytest.mark.skipif(not SPEECH, reason="SPEECHSIM_SPEECH names no folder of speech")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int = 16_000, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **kwargs)
    return path


def ids(corpus: Corpus) -> list[str]:
    return [source.id for source in corpus.sources]


def source_of(path: Path) -> Source:
    return Source(path.name, path)


def corpus_of(speakers: dict[str, list[float]]) -> Corpus:
    """A corpus that cannot be read: the durations, in seconds, of each speaker's utterances."""
    sources = [
        Source(f"{speaker or 'nobody'}/{index:03d}", seconds=seconds, speaker=speaker)
        for speaker, durations in speakers.items()
        for index, seconds in enumerate(durations)
    ]
    return Corpus("synthetic", tuple(sources))


def manifest(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
