"""The targets of masked prediction: MFCCs against a written-out formula, labels, alignment."""

import dataclasses
import functools

import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.training.data import clusters

CONFIG = Wav2Vec2Config(
    family="hubert",
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8,) * 3,
    conv_kernel=(10, 15, 9),
    conv_stride=(5, 8, 8),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)


@functools.cache
def wave(samples: int = 9000) -> np.ndarray:
    rng = np.random.default_rng(0)
    coloured = np.convolve(rng.standard_normal(samples + 31), rng.standard_normal(32), "valid")
    return (coloured * np.linspace(0.01, 0.3, samples)).astype(np.float32)


LIFTER = 1 + 22 / 2 * np.sin(np.pi * np.arange(13) / 22)


def written_out(samples: np.ndarray) -> np.ndarray:
    """Window, power spectrum, 40 triangles of mel, log, DCT, lifter, slopes; in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 400)[::160]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(windows * hann)) ** 2
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = np.arange(201) * 40.0
    up = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    decibels = 10 * np.log10(np.maximum(power @ triangles.T, 1e-10))
    k, m = np.arange(13)[:, None], np.arange(40)
    dct = np.sqrt(2 / 40) * np.cos(np.pi * k * (m + 0.5) / 40)
    dct[0] /= np.sqrt(2)
    static = decibels @ dct.T * LIFTER

    def slope(x):
        padded = np.pad(x, ((2, 2), (0, 0)), mode="edge")
        return sum(d * padded[2 + d : len(x) + 2 + d] for d in (-2, -1, 1, 2)) / 10

    return np.concatenate([static, slope(static), slope(slope(static))], 1)[::2]


@pytest.mark.slow
@pytest.mark.parametrize("centred", [False, True])
def test_mfcc_written_out(centred):
    for samples in (400, 719, 720, 9000):
        actual = clusters.mfcc(wave()[:samples], CONFIG, centred)
        expected = written_out(wave()[:samples])[: CONFIG.frames(samples)]
        assert actual.shape == (CONFIG.frames(samples), 39) and actual.dtype == np.float32
        expected = expected - expected.mean(0) * centred
        errors = np.abs(actual - expected) / np.tile(LIFTER, 3)
        assert errors.max() <= 1e-3  # of decibels, rounded to float32
    assert np.abs(actual).max() > 50


def test_a_frame_is_a_frame_of_the_encoder():
    """A crop on the grid of frames has the MFCCs of the utterance, but for deltas at its ends."""
    utterance = clusters.mfcc(wave(), CONFIG, centred=False)
    crop = clusters.mfcc(wave()[320 * 5 : 320 * 20 + 80], CONFIG, centred=False)
    assert np.abs(crop[:, :13] - utterance[5:20, :13]).max() <= 1e-4
    assert np.abs(crop[3:-3] - utterance[8:17]).max() <= 1e-4


def test_other_frames_have_no_mfcc():
    other = dataclasses.replace(CONFIG, conv_kernel=(10, 15, 10))
    with pytest.raises(UserError, match=r"frames of 400 samples every 320, the encoder has 440 ev"):
        clusters.mfcc(wave(), other)


@pytest.mark.slow
def test_clusters_find_what_is_there():
    rng = np.random.default_rng(1)
    centres = 100 * rng.standard_normal((6, 4)) + 1000
    truth = rng.integers(0, 6, 3000)
    rows = (centres[truth] + rng.standard_normal((3000, 4))).astype(np.float32)
    fitted = clusters.fit_clusters(rows, 6, seed=0)
    labels = fitted.label(rows)
    pairs = set(zip(truth.tolist(), labels.tolist()))
    assert len(pairs) == 6 and labels.dtype == np.int32
    assert np.array_equal(clusters.fit_clusters(rows, 6, seed=0).centres, fitted.centres)
    distance = np.square(rows[:, None].astype(np.float64) - fitted.centres).sum(-1)
    assert np.array_equal(labels, distance.argmin(1))
    assert np.array_equal(fitted.counts([labels[:1000], labels[1000:]]), np.bincount(labels))


def test_fewer_frames_than_clusters():
    with pytest.raises(UserError, match="5 clusters need as many frames, but there are 4"):
        clusters.fit_clusters(np.zeros((4, 2), np.float32), 5, 0)
