"""The filterbank and the cepstrum that convolutions can start as, against what they have to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from flax import nnx

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import config_from_hf
from speechsim_jax.models.filterbank import cepstrum, gabor
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder

FILTERS, TAPS = 160, 240
KERNEL = gabor(FILTERS, TAPS)[:, 0].astype(np.float64)
COS, SIN = KERNEL[:40], KERNEL[40:80]
HERTZ = np.fft.rfftfreq(1 << 14, 1 / 16_000)


def test_norms_means_and_signs():
    np.testing.assert_allclose(np.linalg.norm(KERNEL, axis=1), np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(KERNEL.mean(1), 0, atol=1e-7)
    np.testing.assert_array_equal(KERNEL[80:], -KERNEL[:80])


def test_centres_are_those_of_a_mel_filterbank():
    """librosa's, on HTK's scale, is the oracle; a low filter is wider than its kernel resolves."""
    librosa = pytest.importorskip("librosa")
    centres = librosa.mel_frequencies(42, fmin=60, fmax=7800, htk=True)[1:-1]
    power = np.abs(np.fft.rfft(COS, 1 << 14)) ** 2
    found = HERTZ[power.argmax(1)]
    np.testing.assert_allclose(found[3:], centres[3:], rtol=0.01)


def test_widths_are_those_of_mel_triangles():
    librosa = pytest.importorskip("librosa")
    edges = librosa.mel_frequencies(42, fmin=60, fmax=7800, htk=True)
    # 15 ms with 2.5 sigma on either side let no filter be narrower than 125 Hz.
    for number in range(20, 40):
        magnitude = np.abs(np.fft.rfft(COS[number], 1 << 14))
        passed = HERTZ[magnitude > magnitude.max() / 2]
        width = (edges[number + 2] - edges[number]) / 2
        assert passed.max() - passed.min() == pytest.approx(width, rel=0.1), number


def test_energy_of_a_tone_does_not_depend_on_its_phase():
    time = np.arange(TAPS) / 16_000
    tones = np.sin(2 * np.pi * 1137 * time + np.linspace(0, np.pi, 20)[:, None])
    energy = (tones @ COS.T) ** 2 + (tones @ SIN.T) ** 2
    assert (energy.argmax(1) == 14).all()
    assert energy[:, 14].max() / energy[:, 14].min() < 1.01


def test_filters_come_in_fours():
    with pytest.raises(UserError, match="6 filters"):
        gabor(6, 80)


CEPSTRAL = Wav2Vec2Config(
    "wav2vec2", hidden_size=24, num_attention_heads=2, num_hidden_layers=1, intermediate_size=24,
    conv_dim=(160, 160, 52), conv_kernel=(240, 1, 2), conv_stride=(160, 1, 2), conv_bias=True,
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, convolutions="cepstrum",
)  # fmt: skip


def convolved(samples: np.ndarray) -> np.ndarray:
    """What an encoder's convolutions make of a wave: less their negatives, [frame, 26]."""
    graph, parameters, _ = weight_names.fill(CEPSTRAL, random_tensors(CEPSTRAL, 0), "drawn")
    extract = nnx.merge(graph, parameters).feature_extractor
    wave = jnp.asarray(samples[None] / samples.std())
    out = np.asarray(extract(wave, jnp.array([len(samples)])))[0]
    return out[:, :26] - out[:, 26:]


@pytest.fixture(scope="module")
def changing_noise() -> np.ndarray:
    """Three seconds of noise whose spectrum and loudness change every tenth of a second."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(30):
        spectrum = np.fft.rfft(rng.standard_normal(1600))
        place = np.linspace(0, 1, len(spectrum))
        shape = sum(rng.normal(0, 0.4) * np.cos(np.pi * order * place**0.5) for order in range(6))
        pieces.append(np.fft.irfft(spectrum * np.exp(shape)))
    return np.concatenate(pieces).astype(np.float32)


@pytest.mark.slow
def test_a_cepstrum_is_one(changing_noise):
    """Against logarithms, in place of bends, of amplitudes, in place of half waves."""
    windows = np.lib.stride_tricks.sliding_window_view(changing_noise, TAPS)[::160]
    waves = np.hypot(windows @ COS.T, windows @ SIN.T)
    logs = np.log(waves / np.sqrt((waves**2).mean(0)))
    mel = np.asarray(scipy.fft.dct(logs, norm="ortho"))[:, :13]
    pairs = mel[: len(mel) // 2 * 2].reshape(-1, 2, 13)
    expected = np.concatenate([pairs.mean(1), pairs[:, 1] - pairs[:, 0]], 1)
    found = convolved(changing_noise)
    assert found.shape == expected.shape
    alike = [np.corrcoef(found[:, i], expected[:, i])[0, 1] for i in range(26)]
    assert min(alike) > 0.9, np.round(alike, 2)


def test_a_cepstrum_has_numbers_of_like_size(changing_noise):
    size = convolved(changing_noise).std(0)
    assert size.max() / size.min() < 5
    assert size.min() > 0.2 and size.max() < 5


def test_a_cepstrum_tells_levels_of_a_band_as_a_logarithm():
    """A tone that halves again and again goes down by steps of one size, for 30 dB at least."""
    time = np.arange(16_000 * 4) / 16_000
    steps = np.repeat(0.5 ** np.arange(8), 8000)
    lowest = convolved((np.sin(2 * np.pi * 1137 * time) * steps).astype(np.float32))[:, 0]
    levels = np.array([lowest[25 * i + 5 : 25 * i + 20].mean() for i in range(8)])
    falls = -np.diff(levels)[:5]
    assert (falls > 0).all()
    assert falls.max() / falls.min() < 1.7


@pytest.mark.parametrize(
    ("channels", "taps", "words"),
    [
        ((160, 160), (240, 2), "expected three, the last two"),
        ((160, 160, 52), (240, 2, 2), "of 1 and 2 taps"),
        ((160, 150, 52), (240, 1, 2), "a multiple of the bands"),
        ((162, 160, 52), (240, 1, 2), "4 times the bands"),
        ((160, 160, 164), (240, 1, 2), "not more of them than bands"),
        ((0, 160, 52), (240, 1, 2), "4 times the bands"),
    ],
)
def test_a_cepstrum_refuses_other_layouts(channels, taps, words):
    with pytest.raises(UserError, match=words):
        cepstrum(channels, taps)


@pytest.mark.parametrize("other", [{"conv_bias": False}, {"feat_extract_norm": "layer"}])
def test_a_cepstrum_needs_its_norm_and_biases(other):
    with pytest.raises(UserError, match="needs conv_bias and feat_extract_norm='group'"):
        dataclasses.replace(CEPSTRAL, **other)


def test_other_starts_are_refused():
    with pytest.raises(UserError, match=r"config\.json has convolutions='mel'; expected 'drawn'"):
        config_from_hf({"model_type": "wav2vec2", "convolutions": "mel"})


def test_a_cepstrum_of_fewer_bands_is_of_like_size():
    """Equal logarithms in all bands, of which the lowest quefrency is the sum."""
    few, many = (cepstrum((4 * bands, 4 * bands, 52), (240, 1, 2))[2] for bands in (20, 40))
    np.testing.assert_allclose(few.kernel[0].sum(), many.kernel[0].sum(), rtol=1e-5)
    np.testing.assert_allclose(few.bias[0], many.bias[0], rtol=1e-5)


def test_initializer_range_scales_linear_maps_and_nothing_else():
    plain = Wav2Vec2Config("hubert", hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    before = random_tensors(plain, 0)
    wide = Wav2Vec2Config(
        "hubert", hidden_size=24, num_attention_heads=2, num_hidden_layers=1, initializer_range=0.1
    )
    after = random_tensors(wide, 0)
    for name, tensor in before.items():
        linear = tensor.ndim == 2
        np.testing.assert_allclose(after[name], (5 if linear else 1) * tensor, rtol=1e-6)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_an_encoder_can_start_with_it(family):
    plain = Wav2Vec2Config(family, hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    other = dataclasses.replace(plain, convolutions="gabor")
    drawn, started = random_tensors(plain, 0), random_tensors(other, 0)
    changed = [name for name in drawn if not np.array_equal(started[name], drawn[name])]
    assert changed == ["feature_extractor.conv_layers.0.conv.weight"]
    np.testing.assert_array_equal(started[changed[0]], gabor(512, 10))


def test_how_an_encoder_started_stays_with_its_folder(tmp_path):
    config = Wav2Vec2Config(
        "wav2vec2", hidden_size=24, num_attention_heads=2, num_hidden_layers=1,
        intermediate_size=24, conv_dim=(8, 8), conv_kernel=(80, 2), conv_stride=(160, 2),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        initializer_range=0.1, convolutions="gabor",
    )  # fmt: skip
    save_folder(tmp_path, config, random_tensors(config, 3))
    saved = ss.load_encoder(tmp_path)
    assert saved.config == config
    again = ss.random_like(saved, 3)
    for a, b in zip(jax.tree.leaves(saved.parameters), jax.tree.leaves(again.parameters)):
        np.testing.assert_array_equal(a, b)
