"""The mel features of w2v-BERT: those of transformers' extractor, and of float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile
from transformers import SeamlessM4TFeatureExtractor

from speechsim_jax.models import kaldi_mel
from speechsim_jax.models.families import config_from_hf
from speechsim_jax.models.layers import windows
from tests.support import tolerances
from tests.support.parity import pulses

BANDS = 80


@functools.partial(jax.jit, static_argnames="bands")
def features(samples, count, bands=BANDS):
    return kaldi_mel.normalised_levels(kaldi_mel.mel_power(samples, bands), count)


def ours(wave: np.ndarray) -> np.ndarray:
    return np.asarray(features(wave[None], np.array([(len(wave) - 400) // 160 + 1])))[0]


@functools.cache
def extractor() -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor()


def theirs(wave: np.ndarray) -> np.ndarray:
    """Mel frames of the extractor; of an odd number, the last one is not in its mask."""
    found = extractor()(wave, sampling_rate=16_000, return_tensors="np")
    assert found["attention_mask"].sum() == ((len(wave) - 400) // 160 + 1) // 2
    return found["input_features"][0].reshape(-1, BANDS)[: (len(wave) - 400) // 160 + 1]


def slow(wave: np.ndarray) -> np.ndarray:
    """In float64, a frame at a time."""
    levels = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400].astype(np.float64) * 32768
        frame -= frame.mean()
        frame = np.append(0.03 * frame[0], frame[1:] - 0.97 * frame[:-1])
        frame *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        levels.append(np.log(np.maximum(power @ triangles(), 2.0**-23)))
    levels = np.array(levels)
    return (levels - levels.mean(0)) / np.sqrt(levels.var(0, ddof=1) + 1e-7)


@functools.cache
def triangles() -> np.ndarray:
    def mel(hertz: float) -> float:
        return 1127 * np.log(1 + hertz / 700)

    step = (mel(8000) - mel(20)) / (BANDS + 1)
    weights = np.zeros((257, BANDS))
    for k, band in np.ndindex(weights.shape):
        centre = mel(20) + (band + 1) * step
        weights[k, band] = max(0, 1 - abs(mel(k * 31.25) - centre) / step)
    return weights


def from_8_khz() -> np.ndarray:
    """Its upper half is 140 dB below its lower half."""
    low = np.random.default_rng(1).standard_normal(8000) * np.tile(np.exp(-np.arange(400) / 50), 20)
    return (0.1 * scipy.signal.resample_poly(low, 2, 1)).astype(np.float32)


def voice(samples: int = 16_000) -> np.ndarray:
    """Pulses at 125 Hz of a glottis, which fall by 12 dB an octave, in a slow rhythm."""
    train = np.zeros(samples)
    train[:: 16_000 // 125] = 1
    rng = np.random.default_rng(2)
    sound = scipy.signal.lfilter([1], np.convolve([1, -0.97], [1, -0.97]), train)
    rhythm = 0.05 + np.abs(np.sin(np.arange(samples) / 1700))
    sound = sound / np.abs(sound).max() * rhythm + 1e-4 * rng.standard_normal(samples)
    return np.round(0.5 * sound * 32768).astype(np.float32) / 32768


SOUNDS = {
    "pulses": lambda: pulses(0.1 * np.random.default_rng(0).standard_normal(20_000)),
    "voice": voice,
    "with an offset": lambda: voice() + np.float32(0.3),
    "quiet": lambda: voice() * np.float32(1e-3),
    "with a pause": lambda: np.where((np.arange(16_000) // 4000) % 2, voice(), 0),
    "two frames": lambda: pulses(np.random.default_rng(3).standard_normal(560)),
    "from 8 kHz": from_8_khz,
}


@pytest.mark.parametrize("sound", SOUNDS)
def test_features_are_those_of_the_extractor(sound):
    wave = SOUNDS[sound]().astype(np.float32)
    found, expected, exact = ours(wave), theirs(wave), slow(wave)
    errors = [np.abs(found - expected).max(), np.abs(found - exact).max()]
    print(f"{sound}: {errors[0]:.1e}, float64 {errors[1]:.1e}")
    assert found.shape == expected.shape and max(errors) <= tolerances.MEL


@pytest.mark.slow
def test_features_of_real_speech(speech):
    files = sorted(speech.glob("librispeech*/*.flac"))[::25]
    assert files
    worst = 0.0
    for file in files:
        wave = soundfile.read(file, dtype="float32")[0][:80_000]
        worst = max(worst, float(np.abs(ours(wave) - theirs(wave)).max()))
    print(f"{len(files)} files: {worst:.1e}")
    assert worst <= tolerances.MEL


def test_features_of_steady_noise():
    """Its levels hardly vary; the extractor's own rounding of them is 1e-5 by then."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    found, expected, exact = ours(wave), theirs(wave), slow(wave)
    assert np.abs(found - exact).max() <= tolerances.MEL / 3
    assert np.abs(found - expected).max() <= 2 * tolerances.MEL


def test_silence_is_zero():
    """In the extractor it is the rounding of a mean, divided by sqrt(1e-7)."""
    silence = np.zeros(16_000, np.float32)
    assert not ours(silence).any() and not ours(silence + np.float32(0.25)).any()
    assert np.abs(theirs(silence)).max() <= 1e-2


@pytest.mark.parametrize("sound", ["with an offset", "from 8 kHz"])
def test_a_plain_transform_in_float32_is_not_good_enough(sound, monkeypatch):
    def plain(frames):
        frames = frames * 32768
        frames = frames - frames.mean(-1, keepdims=True)
        first = 0.03 * frames[..., :1]
        frames = jnp.concatenate([first, frames[..., 1:] - 0.97 * frames[..., :-1]], axis=-1)
        window = np.hanning(400).astype(np.float32) ** np.float32(0.85)
        return jnp.square(jnp.abs(jnp.fft.rfft(frames * window, 512)))

    wave = SOUNDS[sound]().astype(np.float32)
    monkeypatch.setattr(kaldi_mel, "_power", plain)
    power = kaldi_mel.mel_power(jnp.asarray(wave[None]), BANDS)
    found = kaldi_mel.normalised_levels(power, jnp.array([power.shape[1]]))
    assert np.abs(np.asarray(found)[0] - slow(wave)).max() > 3 * tolerances.MEL


def test_products_of_parts_are_exact():
    """Whatever the order of the sum: each partial sum is a whole number of steps below 2^24."""
    kernel = kaldi_mel._kernel()
    assert 256 * np.abs(kernel.coarse * 256).sum(axis=0).max() < 2**24
    assert 256 * np.abs(kernel.middle * 65536).sum(axis=0).max() < 2**24
    cut = windows(jnp.asarray(voice()[None]), 400, 160)[0] * 0.9
    coarse, middle, fine = kaldi_mel._parts(cut, jnp.round)
    assert np.array_equal(coarse + middle + fine, cut)
    for x in (coarse, middle):
        found = np.asarray(kaldi_mel._times(x, kernel.coarse), np.float64)
        assert np.array_equal(found, np.asarray(x, np.float64) @ kernel.coarse.astype(np.float64))


def test_filters_are_those_of_transformers():
    assert np.abs(kaldi_mel.mel_filters(BANDS) - extractor().mel_filters).max() <= 1e-6


def test_an_utterance_of_a_batch_gets_what_it_gets_alone():
    waves = [voice(n) for n in (560, 1000, 7777, 16_000)]
    samples = np.zeros((5, 16_000), np.float32)
    for row, wave in zip(samples, waves):
        row[: len(wave)] = wave
    counts = np.array([*((len(wave) - 400) // 160 + 1 for wave in waves), 0])
    found = np.asarray(features(samples, counts))
    assert np.isfinite(found).all()
    for row, wave, count in zip(found, waves, counts):
        assert np.abs(row[:count] - ours(wave)).max() <= tolerances.MEL
        assert not row[count:].any()


def test_frames_are_about_their_own_samples():
    """Two mel frames side by side depend on 560 samples, whose middle is the frame's centre."""
    config = config_from_hf({"model_type": "wav2vec2-bert"})
    wave, frame = voice(), 20
    plain = np.asarray(kaldi_mel.mel_power(jnp.asarray(wave[None]), BANDS))[0]
    first = frame * config.hop_samples
    assert first + config.window_samples / 2 == config.frame_centres_seconds(21)[-1] * 16_000
    # Povey's window is 0 at its ends, but pre-emphasis and mean read them.
    for sample in (first - 1, first, first + 559, first + 560):
        changed = wave.copy()
        changed[sample] += 0.1
        found = np.asarray(kaldi_mel.mel_power(jnp.asarray(changed[None]), BANDS))[0]
        equal = np.array_equal(found[2 * frame : 2 * frame + 2], plain[2 * frame : 2 * frame + 2])
        assert equal == (sample in (first - 1, first + 560)), sample
