"""A first convolution that starts as a filterbank (Zeghidour et al. 2018, arXiv 1711.01161, eq. 1).

    g(t) cos(2 pi f t),  g(t) sin(2 pi f t),   g(t) = exp(-t^2 / (2 sigma^2))

each with both signs, because what follows keeps half a wave only. The f are evenly spaced in mel,
and sigma gives each filter the width, at half its height, of the triangular mel filter at f, as far
as the kernel is long enough. It is trained like any other; from there an hour of speech goes
further than from kernels drawn at random.
"""

import math

import numpy as np
from jaxtyping import Float32

from speechsim_jax.errors import UserError

_SAMPLE_RATE_HZ = 16_000
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7800.0
# Ends of the kernel lie so many sigma from its middle, at least.
_LEAST_REACH = 2.5


def gabor(filters: int, taps: int) -> Float32[np.ndarray, "filters 1 taps"]:
    """The kernel of a convolution over 16 kHz samples, as torch has it; each filter's norm is
    sqrt(2) and its mean 0.

    Raises UserError unless `filters` is a multiple of 4.
    """
    if filters % 4:
        raise UserError(f"first_convolution='gabor': {filters} filters are no multiple of 4")
    edges = _from_mel(np.linspace(_to_mel(_LOWEST_HZ), _to_mel(_HIGHEST_HZ), filters // 4 + 2))
    centre, width = edges[1:-1, None], (edges[2:] - edges[:-2])[:, None] / 2
    sigma = math.sqrt(2 * math.log(2)) / (math.pi * width)
    sigma = np.minimum(sigma, taps / _SAMPLE_RATE_HZ / (2 * _LEAST_REACH))
    time = (np.arange(taps) - (taps - 1) / 2) / _SAMPLE_RATE_HZ
    phase = 2 * np.pi * centre * time
    waves = np.exp(-0.5 * (time / sigma) ** 2) * np.stack([np.cos(phase), np.sin(phase)])
    waves -= waves.mean(-1, keepdims=True)
    waves *= math.sqrt(2) / np.linalg.norm(waves, axis=-1, keepdims=True)
    return np.concatenate([waves, -waves]).reshape(filters, 1, taps).astype(np.float32)


def _to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _from_mel(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
