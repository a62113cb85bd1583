"""Small jobs that are stored, merged and read in shards: their encoders, audio and settings."""

from typing import Any

import numpy as np

import speechsim_jax as ss
from tests.support.paths import DATA

SETTINGS: dict[str, Any] = {
    "batch_seconds": 2,
    "buckets": 1,
    "rows_per_update": 40,
    "sample_frames": 100,
    "progress": False,
}


def encoders() -> list[ss.SpeechEncoder]:
    """A WavLM and a HuBERT encoder of random weights."""
    return [ss.load_encoder(DATA / "parity" / name) for name in ("wavlm-base", "hubert-large")]


def noise(utterances: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Waveforms u0, u1, ... of 0.56 s."""
    rng = np.random.default_rng(seed)
    waves = {f"u{k}": 0.1 * rng.standard_normal(9000) for k in range(utterances)}
    return {name: wave.astype(np.float32) for name, wave in waves.items()}
