"""Initial convolutions that are a filterbank, or the cepstrum of one, instead of random.

They are trained like any others; on an hour of speech they lead further than random kernels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.special import erf

from speechsim_jax.errors import UserError

_SAMPLE_RATE_HZ = 16_000
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7800.0
# Half the length of a kernel, in sigma, is at least this.
_LEAST_REACH = 2.5
# The knots of the logarithm, in amplitudes relative to a band's root mean square, and their slope.
_LOUDEST_KNOT, _QUIETEST_KNOT, _SLOPE = 2.5, 0.08, 3.0
_FITTED_AMPLITUDES = np.geomspace(0.02, 6, 200)
# The mean of the lowest quefrency in speech lies this many of its standard deviations below 0.
_QUIET_SPEECH = 1.5


def gabor(filters: int, taps: int) -> Float32[np.ndarray, "filters 1 taps"]:
    """The kernel of a first convolution over 16 kHz samples: Gabor filters.

        g(t) cos(2 pi f t),  g(t) sin(2 pi f t),   g(t) = exp(-t^2 / (2 sigma^2))

    and the negatives of all, because the GELU that follows passes half a wave only. The f are
    evenly spaced in mel, and sigma gives each filter the width, at half its height, of the
    triangular mel filter at f, as far as the kernel is long enough. Each filter has norm sqrt(2)
    and mean 0.

    Args:
        filters: output channels.
        taps: length of the kernel in samples.

    Raises:
        UserError: `filters` is not a multiple of 4.

    Source: Zeghidour et al. 2018, eq. 1; the mel scale is HTK's.
    """
    if filters % 4:
        raise UserError(f"convolutions='gabor': {filters} filters are not a multiple of 4")
    from librosa import mel_frequencies  # half a second, which only these initial weights need

    edges = mel_frequencies(filters // 4 + 2, fmin=_LOWEST_HZ, fmax=_HIGHEST_HZ, htk=True)
    centre, width = edges[1:-1, None], (edges[2:] - edges[:-2])[:, None] / 2
    sigma = math.sqrt(2 * math.log(2)) / (math.pi * width)
    sigma = np.minimum(sigma, taps / _SAMPLE_RATE_HZ / (2 * _LEAST_REACH))
    time = (np.arange(taps) - (taps - 1) / 2) / _SAMPLE_RATE_HZ
    phase = 2 * np.pi * centre * time
    waves = np.exp(-0.5 * (time / sigma) ** 2) * np.stack([np.cos(phase), np.sin(phase)])
    waves -= waves.mean(-1, keepdims=True)
    waves *= math.sqrt(2) / np.linalg.norm(waves, axis=-1, keepdims=True)
    return np.concatenate([waves, -waves]).reshape(filters, 1, taps).astype(np.float32)


class Convolution(NamedTuple):
    """The tensors of a convolution, laid out as in torch."""

    kernel: Float32[np.ndarray, "out in tap"]
    bias: Float32[np.ndarray, " out"]


def cepstrum(channels: Sequence[int], taps: Sequence[int]) -> tuple[Convolution, ...]:
    """Three convolutions that, with GELU after each and a group norm in the first, are a cepstrum.

    1. `gabor`. The norm makes amplitudes relative to the band's in the utterance; GELU of the four
       waves (c, s, -c, -s) of a band adds up to m = c erf(c / sqrt 2) + s erf(s / sqrt 2), which
       grows with the amplitude and depends little on the phase.
    2. GELU(3 (1 - m / m_k)) of each band at knots m_k: the logarithm of the amplitude is a weighted
       sum of these, within 0.16 nepers (root mean square) from -34 to 16 dB with four knots.
    3. The cosine transform of the logarithms: the mean of two windows and their difference,
       scaled to similar sizes, and the negatives of both.

    Args:
        channels: of each convolution: 4 times the bands, knots times the bands, 4 times the
            quefrencies.
        taps: of each convolution; 1 and 2 in the last two.

    Raises:
        UserError: other numbers of convolutions, channels or taps.
    """
    _check_cepstrum(channels, taps)
    bands, quefrencies = channels[0] // 4, channels[2] // 4
    knots = np.geomspace(_LOUDEST_KNOT, _QUIETEST_KNOT, channels[1] // bands)
    slopes = -_SLOPE / _half_waves(knots)
    to_knots = np.einsum("k,bc,w->kbwc", slopes, np.eye(bands), np.ones(4))

    weights, level = _logarithm(knots)
    cosines = _cosines(bands)[:quefrencies]
    transform = np.einsum("qb,k->qkb", cosines, weights).reshape(quefrencies, -1, 1)
    mean, change = _sizes(bands, quefrencies)
    windows = transform * [0.5, 0.5] / mean[:, None, None]
    differences = transform * [-1, 1] / change[:, None, None]
    bias = level * cosines.sum(1) / mean
    bias[0] += _QUIET_SPEECH
    third = np.concatenate([windows, differences])
    offset = np.concatenate([bias, np.zeros(quefrencies)])
    return (
        _convolution(gabor(channels[0], taps[0]), np.zeros(channels[0])),
        _convolution(to_knots.reshape(*channels[1::-1], 1), np.full(channels[1], _SLOPE)),
        _convolution(np.concatenate([third, -third]), np.concatenate([offset, -offset])),
    )


def _check_cepstrum(channels: Sequence[int], taps: Sequence[int]) -> None:
    if len(channels) != 3 or tuple(taps[1:]) != (1, 2):
        raise UserError(
            f"convolutions='cepstrum': conv_kernel {list(taps)}; expected three, the last two "
            "of 1 and 2 taps"
        )
    bands = channels[0] // 4
    if (
        0 in channels
        or channels[0] % 4
        or channels[1] % bands
        or channels[2] % 4
        or channels[2] > 4 * bands
    ):
        raise UserError(
            f"convolutions='cepstrum': conv_dim {list(channels)}; expected 4 times the bands, a "
            "multiple of the bands, and 4 times the quefrencies, not more of them than bands"
        )


def _convolution(kernel: np.ndarray, bias: np.ndarray) -> Convolution:
    return Convolution(kernel.astype(np.float32), bias.astype(np.float32))


def _half_waves(amplitude: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The sum of GELU over the four waves of a band, averaged over phases."""
    phase = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.multiply.outer(amplitude, np.stack([np.cos(phase), np.sin(phase)]))
    return (waves * erf(waves / math.sqrt(2))).sum(-2).mean(-1)


def _logarithm(knots: Float[np.ndarray, " knot"]) -> tuple[Float[np.ndarray, " knot"], float]:
    """Weights of the bends at `knots`, and a constant: the least-squares fit of log(amplitude)."""
    x = _SLOPE * (1 - _half_waves(_FITTED_AMPLITUDES)[:, None] / _half_waves(knots))
    bends = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    columns = np.column_stack([bends, np.ones(len(bends))])
    solution = np.linalg.lstsq(columns, np.log(_FITTED_AMPLITUDES))[0]
    return solution[:-1], float(solution[-1])


def _cosines(size: int) -> Float[np.ndarray, "{size} {size}"]:
    """The orthonormal cosine transform (DCT-II), a row for each order.

    scipy.fft.dct differs in the last bit, which would change the random baselines of released
    models.
    """
    order, position = np.arange(size)[:, None], np.arange(size) + 0.5
    scale = np.sqrt(np.where(order > 0, 2, 1) / size)
    return scale * np.cos(np.pi / size * order * position)


def _sizes(bands: int, quefrencies: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation of each quefrency in speech; twice that of its change in 10 ms.

    Powers of the order, fitted by eye to ten speakers of LibriSpeech and 40 bands. The transform is
    orthonormal, so they are proportional to the square root of the number of bands.
    """
    order, scale = 1.0 + np.arange(quefrencies), math.sqrt(bands / 40)
    return 6.7 * scale * order**-0.85, 4.4 * scale * order**-0.45
