"""Objects that have `representations` around built-in encoders, and some that do it wrongly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import speechsim_jax as ss

_ROWS = 4
_SAMPLES = 8_000


@dataclasses.dataclass
class Wrapped:
    """A built-in encoder as an object of which only `representations` is known.

    Batches are padded to few shapes, so that few programs are compiled.

    Attributes:
        encoder: does the work.
        convert: what is done to the hidden states.
        change: what is done to what is returned.
    """

    encoder: ss.SpeechEncoder
    convert: Callable[[jax.Array], Any] = lambda states: states
    change: Callable[[ss.Representations], Any] = lambda found: found

    @property
    def name(self) -> str:
        """That of the encoder."""
        return self.encoder.name

    def representations(self, waveforms: list[np.ndarray], sample_rate: int) -> Any:
        """Those of the encoder."""
        assert sample_rate == 16_000
        assert all(wave.ndim == 1 and wave.dtype == np.float32 for wave in waveforms)
        lengths = np.zeros(-(-len(waveforms) // _ROWS) * _ROWS, np.int32)
        lengths[: len(waveforms)] = [len(wave) for wave in waveforms]
        samples = np.zeros((len(lengths), -(-lengths.max() // _SAMPLES) * _SAMPLES), np.float32)
        for row, wave in zip(samples, waveforms):
            row[: len(wave)] = wave
        acts = self.encoder.apply(samples, lengths)
        states = acts.hidden_states[:, : len(waveforms)]
        mask = np.asarray(acts.frame_mask)[: len(waveforms)]
        times = self.encoder.config.frame_centres_seconds(mask.shape[1])
        # What is no frame has no meaning.
        states = jnp.where(mask[:, :, None], states, jnp.nan)
        return self.change(ss.Representations(self.convert(states), mask, times))


def half_rate(found: ss.Representations) -> ss.Representations:
    """Means of two frames each."""
    frames = found.mask.shape[1] // 2 * 2
    states = found.arrays[:, :, :frames]
    means = (states[:, :, ::2] + states[:, :, 1::2]) / 2
    times = (found.times[:frames:2] + found.times[1:frames:2]) / 2
    return ss.Representations(means, found.mask[:, 1:frames:2], times)
