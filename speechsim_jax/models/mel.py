"""The log-mel spectrum that Whisper reads, computed inside the compiled forward pass.

A float32 Fourier transform is not good enough: what is 80 dB below the loudest tone of a frame, and
still above the floor, is then wrong by more than 1e-5 (`docs/design/models.md`). So the spectrum is
the sum of two products, of which the large one is exact.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from speechsim_jax.models.config import SAMPLE_RATE_HZ
from speechsim_jax.models.layers import windows

WINDOW_SAMPLES = 400
"""Samples of one frame, 25 ms."""
HOP_SAMPLES = 160
"""Samples between the centres of two frames, 10 ms."""

_HALF = WINDOW_SAMPLES // 2
# Steps of the coarse parts. Sums of 200 products of folded samples (up to 2 * 128 steps) and
# weights (up to 128) stay below 2^24: in float32 they are exact, in any order.
_STEPS = 128
_LEAST_POWER = 1e-10
_DECADES = 8  # from the loudest power of an utterance to the floor


def log_mel(
    samples: Float[Array, "batch sample"], bands: int, frames: int
) -> Float[Array, "batch frame band"]:
    """Log-mel power of each utterance, padded with silence to a window of a fixed length.

        l = log10(max(power, 1e-10)),  (max(l, max(l) - 8) + 4) / 4

    The frames are periodic Hann windows centred at every 160th sample, the first at sample 0; the
    audio is reflected at the ends of the window. The mel filters are Slaney's, of area 1.

    Args:
        samples: 16 kHz, 0 past the end of each utterance; what lies behind the window is not read.
        bands: mel filters, from 0 to 8 kHz.
        frames: of the window.

    Source: Radford et al. 2022, section 2.2; transformers, WhisperFeatureExtractor.
    """
    window = frames * HOP_SAMPLES
    samples = samples[:, :window]
    # What is further than half a frame behind the audio is silent, and not computed.
    reach = min(window, samples.shape[1] + WINDOW_SAMPLES)
    samples = jnp.pad(samples, ((0, 0), (0, reach - samples.shape[1])))
    samples = jnp.pad(samples, ((0, 0), (_HALF, _HALF)), mode="reflect")
    cut = windows(samples, WINDOW_SAMPLES, HOP_SAMPLES)[:, :frames]
    power = jnp.matmul(_power(cut), _filters(bands), precision=lax.Precision.HIGHEST)
    power = jnp.pad(power, ((0, 0), (0, frames - cut.shape[1]), (0, 0)))
    level = jnp.log10(jnp.maximum(power, _LEAST_POWER))
    floor = jnp.max(level, axis=(1, 2), keepdims=True) - _DECADES
    return (jnp.maximum(level, floor) + 4) / 4


def _power(cut: Float[Array, "batch frame tap"]) -> Float[Array, "batch frame bin"]:
    """|DFT|^2 of frames under the Hann window.

    Each frame is scaled to at most 1 by a power of two, and cut into a coarse part of 8 bits and
    the rest, both exactly; so are the weights. Cosines read the sums of samples that lie as far
    before as behind the middle, sines the differences.
    """
    top = jnp.max(jnp.abs(cut), axis=-1, keepdims=True)
    scale = jnp.ldexp(jnp.ones_like(top), jnp.frexp(top)[1])
    scaled = cut / scale
    coarse = jnp.round(scaled * _STEPS) / _STEPS
    rest = scaled - coarse

    def part(fold, weights: "_Weights") -> Array:
        def times(x: Array, kernel: np.ndarray) -> Array:
            return jnp.matmul(fold(x), kernel, precision=lax.Precision.HIGHEST)

        return times(coarse, weights.coarse) + (
            times(coarse, weights.rest) + times(rest, weights.whole)
        )

    cosines, sines = _weights()
    return (jnp.square(part(_sums, cosines)) + jnp.square(part(_differences, sines))) * scale**2


def _sums(x: Float[Array, "*batch tap"]) -> Float[Array, "*batch half"]:
    """Samples 1 to 199 plus 399 to 201, and the middle; sample 0 has the weight 0."""
    pairs = x[..., 1:_HALF] + x[..., :_HALF:-1]
    return jnp.concatenate([pairs, x[..., _HALF : _HALF + 1]], axis=-1)


def _differences(x: Float[Array, "*batch tap"]) -> Float[Array, "*batch half"]:
    """Samples 1 to 199 minus 399 to 201."""
    return x[..., 1:_HALF] - x[..., :_HALF:-1]


class _Weights(NamedTuple):
    """Weights of a Fourier transform, [tap, bin]; `coarse` + `rest` is more exact than `whole`."""

    whole: Float32[np.ndarray, "tap bin"]
    coarse: Float32[np.ndarray, "tap bin"]
    rest: Float32[np.ndarray, "tap bin"]


@functools.cache
def _weights() -> tuple[_Weights, _Weights]:
    """Of `_sums` (cosines) and `_differences` (sines), with the window in them."""
    tap, bins = np.arange(1, _HALF + 1)[:, None], np.arange(_HALF + 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * tap / WINDOW_SAMPLES)
    angle = 2 * np.pi * (tap * bins % WINDOW_SAMPLES) / WINDOW_SAMPLES

    def split(whole: np.ndarray) -> _Weights:
        coarse = np.round(whole * _STEPS) / _STEPS
        return _Weights(*(x.astype(np.float32) for x in (whole, coarse, whole - coarse)))

    return split(hann * np.cos(angle)), split((hann * np.sin(angle))[:-1])


@functools.cache
def _filters(bands: int) -> Float32[np.ndarray, "bin band"]:
    import librosa.filters  # a second, which only Whisper needs

    weights = librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=WINDOW_SAMPLES, n_mels=bands)
    return np.ascontiguousarray(weights.T, np.float32)
