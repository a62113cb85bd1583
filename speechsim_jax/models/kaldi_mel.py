"""Kaldi's log-mel filterbank, as w2v-BERT reads it, computed inside the compiled forward pass.

A Fourier transform in float32 is not good enough: its rounding is relative to the loudest bin of a
frame, and speech has bins 80 dB below that, whose logarithms the model reads normalised; they would
be wrong by 1e-4, and by 1 in pauses that are an offset. So the removal of the mean, the
pre-emphasis, the window and the transform are one matrix, and frames and matrix are cut into three
parts, of which the products that matter are exact (`docs/design/models.md`).
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from speechsim_jax.models.config import SAMPLE_RATE_HZ
from speechsim_jax.models.layers import windows

WINDOW_SAMPLES = 400
"""Samples of one mel frame, 25 ms."""
HOP_SAMPLES = 160
"""Samples between the starts of two mel frames, 10 ms."""

_FFT_SIZE = 512
_BINS = _FFT_SIZE // 2 + 1
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20
_FULL_SCALE = 2**15  # Kaldi reads integers of 16 bits
_LEAST_POWER = 2.0**-23
# Added to the variance of a band, as in SeamlessM4TFeatureExtractor.
_VARIANCE_EPS = 1e-7
# Steps of a part in those of the part before. Frames and columns of the matrix are at most 1, and
# absolute values of a column sum to less than 256: sums of products of parts stay below 2^24 steps.
# In float32 they are exact, in any order.
_STEPS = 256


def mel_power(
    samples: Float[Array, "batch sample"], bands: int
) -> Float[Array, "batch frame band"]:
    """Mel power of frames of 25 ms, every 10 ms; at least 2^-23.

    Each frame loses its mean, is pre-emphasised (0.97), and gets Povey's window; the filters are
    triangles on Kaldi's mel scale from 20 Hz to 8 kHz.

    Args:
        samples: 16 kHz in [-1, 1].
        bands: mel filters.

    Source: Kaldi's compute-fbank-feats, with the options of transformers'
    SeamlessM4TFeatureExtractor.
    """
    power = _power(windows(samples, WINDOW_SAMPLES, HOP_SAMPLES))
    mel = jnp.matmul(power, mel_filters(bands), precision=lax.Precision.HIGHEST)
    return jnp.maximum(mel, _LEAST_POWER)


def normalised_levels(
    power: Float[Array, "batch frame band"], count: Int[Array, " batch"]
) -> Float[Array, "batch frame band"]:
    """The logarithm of each band of each utterance, with mean 0 and variance 1 over its own frames.

        (l - mean) / sqrt(var + 1e-7), l = ln power, var with n - 1

    Args:
        power: of a padded batch; above 0.
        count: frames of each utterance.

    Source: transformers, SeamlessM4TFeatureExtractor.
    """
    inside = (jnp.arange(power.shape[1]) < count[:, None])[:, :, None]
    n = jnp.maximum(count, 2).astype(power.dtype)[:, None, None]
    # Relative to the first frame: the smaller levels are, the less is rounded; constant ones are 0.
    levels = jnp.where(inside, jnp.log(power / power[:, :1]), 0)
    centred = jnp.where(inside, levels - jnp.sum(levels, axis=1, keepdims=True) / n, 0)
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / (n - 1)
    return centred * lax.rsqrt(variance + _VARIANCE_EPS)


def _power(frames: Float[Array, "batch frame tap"]) -> Float[Array, "batch frame bin"]:
    """|DFT|^2 of frames that are prepared as Kaldi prepares them."""
    top = jnp.max(jnp.abs(frames), axis=-1, keepdims=True)
    scale = jnp.ldexp(jnp.ones_like(top), jnp.frexp(top)[1])
    coarse, middle, fine = _parts(frames / scale, jnp.round)
    kernel = _kernel()
    # The sum of what is exact, and what its roundings lose; then all that is small.
    total, lost = _two_sum(_times(coarse, kernel.coarse), _times(coarse, kernel.middle))
    total, also_lost = _two_sum(total, _times(middle, kernel.coarse))
    rest = (
        _times(coarse, kernel.fine)
        + _times(middle, kernel.middle + kernel.fine)
        + _times(fine, kernel.coarse + kernel.middle + kernel.fine)
    )
    spectrum = (total + (lost + also_lost + rest)) * kernel.scale * scale
    return jnp.square(spectrum[..., :_BINS]) + jnp.square(spectrum[..., _BINS:])


class _Kernel(NamedTuple):
    """What frames are multiplied with: cosines of all bins, then sines, in three parts."""

    coarse: Float32[np.ndarray, "tap column"]
    middle: Float32[np.ndarray, "tap column"]
    fine: Float32[np.ndarray, "tap column"]
    scale: Float32[np.ndarray, " column"]


@functools.cache
def _kernel() -> _Kernel:
    """Mean, pre-emphasis, window and Fourier transform as one matrix; columns are scaled to 1."""
    eye = np.eye(WINDOW_SAMPLES)
    centred = eye - 1 / WINDOW_SAMPLES
    emphasised = eye - _PREEMPHASIS * np.eye(WINDOW_SAMPLES, k=-1)
    emphasised[0, 0] = 1 - _PREEMPHASIS
    window = np.hanning(WINDOW_SAMPLES) ** 0.85
    turns = np.arange(WINDOW_SAMPLES)[:, None] * np.arange(_BINS) % _FFT_SIZE / _FFT_SIZE
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    matrix = (emphasised @ centred).T @ (window[:, None] * waves) * _FULL_SCALE
    # Two columns, the sines of bins 0 and 256, are 0.
    scale = 2 ** np.ceil(np.log2(np.maximum(np.abs(matrix).max(axis=0), 1)))
    return _Kernel(*(x.astype(np.float32) for x in (*_parts(matrix / scale, np.round), scale)))


def _parts(x, round_):
    """Numbers up to 1 as multiples of 1/256, of 1/65536, and what is left; exact sums."""
    coarse = round_(x * _STEPS) / _STEPS
    middle = round_((x - coarse) * _STEPS**2) / _STEPS**2
    return coarse, middle, x - coarse - middle


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, and what rounding takes from it (Knuth 1969)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _times(x: Array, kernel: np.ndarray) -> Array:
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)


@functools.cache
def mel_filters(bands: int) -> Float32[np.ndarray, "bin band"]:
    """Triangles on Kaldi's mel scale, 1127 ln(1 + Hz / 700), from 20 Hz to 8 kHz.

    Args:
        bands: how many.
    """

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    low, high = mel(_LOWEST_HZ), mel(SAMPLE_RATE_HZ // 2)
    corners = np.linspace(low, high, bands + 2)
    place = mel(np.arange(_BINS) * SAMPLE_RATE_HZ / _FFT_SIZE)[:, None]
    width = (high - low) / (bands + 1)
    rising, falling = (place - corners[:-2]) / width, (corners[2:] - place) / width
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
