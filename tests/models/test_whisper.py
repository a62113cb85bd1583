"""Whisper's encoder: its spectra, its window of fixed length, its frames and its checkpoints."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import WhisperFeatureExtractor

import speechsim_jax as ss
from speechsim_jax.audio.corpus import read
from speechsim_jax.errors import UserError
from speechsim_jax.models import mel, weight_names
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.families import FAMILIES, config_from_hf
from speechsim_jax.models.families.whisper import WhisperConfig
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.load import load_encoder, random_like
from speechsim_jax.models.recognizer import load_recognizer
from tests.support import tolerances
from tests.support.parity import FOLDER, assert_same_network, fixture

pytestmark = pytest.mark.slow

WHISPER = FOLDER / "whisper"
WINDOW = 16_000  # of the fixture
HF = dict(model_type="whisper", max_source_positions=1500, num_mel_bins=80)
log_mel = jax.jit(mel.log_mel, static_argnums=(1, 2))


def theirs(wave: np.ndarray, bands: int = 80, seconds: int = 30) -> np.ndarray:
    """transformers' spectrum in numpy (float64), [mel frame, band]."""
    extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
    window = np.pad(wave, (0, extractor.n_samples - len(wave)))
    return extractor._np_extract_fbank_features(window[None], "cpu")[0].T


def farthest(a, b) -> float:
    assert a.shape == b.shape
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def signals() -> dict[str, np.ndarray]:
    rng, seconds = np.random.default_rng(0), np.arange(5 * 16_000) / 16_000
    noise, tone = rng.standard_normal(len(seconds)), np.sin(2 * np.pi * 1234.5 * seconds)
    waves = {
        "noise": 0.1 * noise,
        "silence": 0 * noise,
        "faint noise": 1e-5 * noise,
        "loud tone": 0.9 * tone,
        "loud tone in faint noise": 0.9 * tone + 1e-4 * noise,
        "chirp": 0.9 * np.sin(2 * np.pi * (50 * seconds + 700 * seconds**2)),
        "offset": 0.5 + 1e-4 * noise,
        "clicks": np.where(np.arange(len(seconds)) % 1600 == 7, 1, 1e-4 * noise),
        "beyond full scale": 20 * noise,
        "one window less a sample": np.tile(noise, 6)[: 30 * 16_000 - 1],
        "one sample": np.ones(1),
    }
    return {name: wave.astype(np.float32) for name, wave in waves.items()}


# --- the spectrum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", signals())
def test_log_mel_of_signals(name):
    wave = signals()[name]
    error = farthest(log_mel(wave[None], 80, 3000)[0], theirs(wave))
    print(f"{name}: {error:.1e}")
    assert error <= tolerances.LOG_MEL


@pytest.mark.parametrize("bands", [80, 128])
def test_log_mel_of_speech(bands, speech):
    paths = sorted(speech.glob("**/*.flac"))[::100] + sorted(speech.glob("**/*.wav"))[::400]
    assert len(paths) > 3
    for path in paths:
        wave = read(ss.open_corpus(path).sources[0]).samples[: 30 * 16_000]
        error = farthest(log_mel(wave[None], bands, 3000)[0], theirs(wave, bands))
        print(f"{path.name}: {error:.1e}")
        assert error <= tolerances.LOG_MEL


@pytest.mark.parametrize("name", ["loud tone", "loud tone in faint noise", "chirp"])
def test_a_float32_transform_would_not_do(name):
    wave = signals()[name]
    cut = np.lib.stride_tricks.sliding_window_view(np.pad(wave, 200, mode="reflect"), 400)[::160]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)).astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(cut * hann))) @ jnp.asarray(mel._filters(80))
    level = np.log10(np.maximum(power, 1e-10))
    plain = (np.maximum(level, level.max() - 8) + 4) / 4
    inside = len(plain) - 2  # of frames that do not reach over the end
    error = farthest(plain[:inside], theirs(wave)[:inside])
    print(f"{name}: {error:.1e}")
    assert error > 5 * tolerances.LOG_MEL


def test_log_mel_does_not_depend_on_padding_or_neighbours():
    waves = list(signals().values())
    alone = [np.asarray(log_mel(wave[None], 80, 3000))[0] for wave in waves]
    for samples in (480_000, 480_080):
        batch = np.zeros((len(waves), samples), np.float32)
        for row, wave in zip(batch, waves):
            row[: len(wave)] = wave
        for found, expected in zip(log_mel(batch, 80, 3000), alone, strict=True):
            assert farthest(found, expected) <= tolerances.LOG_MEL


# --- the window -----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1704, 2960, 5000, WINDOW - 80, WINDOW, WINDOW + 80])
def test_padding_of_any_length_changes_nothing(samples):
    case = fixture("whisper")
    wave = case.waves[1]
    expected = case.alone(1)
    padded = np.pad(wave, (0, samples - len(wave)))[None]
    found = case.run(padded, np.array([len(wave)], np.int32))
    frames = case.encoder.config.frames(samples)
    assert found.hidden_states.shape[2] == found.frame_mask.shape[1] == frames
    assert found.queries.shape[2] == found.keys.shape[2] == frames
    count = expected.hidden_states.shape[2]
    assert np.asarray(found.frame_mask)[0].tolist() == [True] * count + [False] * (frames - count)
    assert farthest(found.hidden_states[:, :, :count], expected.hidden_states) <= 1e-5
    assert farthest(found.keys[:, :, :count], expected.keys) <= 1e-5
    assert farthest(found.attentions, expected.attentions) <= tolerances.PARITY_ATTENTION


def test_waveforms_up_to_the_window():
    encoder = fixture("whisper").encoder
    rng = np.random.default_rng(3)
    wave = rng.standard_normal(WINDOW).astype(np.float32)
    assert encoder.config.longest_samples == WINDOW
    assert encoder([wave], layers=[0]).hidden_states.shape[2] == 50
    for longer in (WINDOW + 1, 2 * WINDOW):
        with pytest.raises(UserError, match=f"at most {WINDOW} samples") as error:
            encoder([wave, np.resize(wave, longer)])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="at least 400 samples"):
        encoder([wave[:399]])


def test_frames_are_those_centred_in_the_utterance():
    config = WhisperConfig()
    assert (config.hop_samples, config.window_samples) == (320, 400)
    assert config.longest_samples == 480_000
    samples = np.arange(485_000)
    centres = 320 * np.arange(1500)
    expected = np.searchsorted(centres, samples) * (samples >= 400)
    assert np.array_equal(config.frames(samples), expected)
    assert np.array_equal(config.frames(jnp.asarray(samples)), expected)
    assert [config.frames(n) for n in (0, 399, 400, 640, 641, 480_000)] == [0, 0, 2, 2, 3, 1500]
    assert config.frame_centres_seconds(3).tolist() == [0, 0.02, 0.04]


@pytest.mark.parametrize("sample", [3200, 3361, 4620, 5620, 5645])
def test_frames_read_samples_around_their_centres(sample):
    """One sample changes the frames within 520 of it, three mel frames and half a window."""
    case = fixture("whisper")
    rng = np.random.default_rng(4)
    wave = (0.01 * rng.standard_normal(8000)).astype(np.float32)
    wave[7000:] *= 50  # holds the maximum, to which the floor is relative
    changed = wave.copy()
    changed[sample] += 0.05
    lengths = np.array([8000], np.int32)
    a, b = (case.run(x[None], lengths, Outputs((0,))).hidden_states[0, 0] for x in (wave, changed))
    effect = np.abs(np.asarray(a) - np.asarray(b)).mean(-1)
    centres = 16_000 * case.encoder.config.frame_centres_seconds(len(effect))
    within = np.abs(centres - sample) < 520
    assert within.sum() >= 3 and (effect[within] > 0).all() and not effect[~within].any()


# --- configurations -------------------------------------------------------------------------------


def test_config_fields():
    config = config_from_hf(
        dict(HF, d_model=1280, encoder_layers=32, encoder_attention_heads=20,
             encoder_ffn_dim=5120, num_mel_bins=128, num_hidden_layers=32, scale_embedding=False)
    )  # fmt: skip
    assert config == WhisperConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120,
        num_mel_bins=128,
    )  # fmt: skip
    assert config_from_hf({"model_type": "whisper"}) == WhisperConfig()
    assert config_from_hf(config.to_hf() | HF | {"num_mel_bins": 128}) == config
    assert config.preprocessor_to_hf()["feature_size"] == 128
    assert config_from_hf(HF, {"chunk_length": 30, "mel_filters": [[0.0]]}) == WhisperConfig()


@pytest.mark.parametrize(
    "config, preprocessor, named",
    [
        ({"activation_function": "relu"}, {}, "activation_function='relu'"),
        ({"d_model": "wide"}, {}, "d_model='wide'"),
        ({"encoder_layers": 0}, {}, "encoder_layers=0"),
        ({"encoder_attention_heads": 7}, {}, "num_attention_heads 7"),
        ({"max_source_positions": 75}, {}, "max_source_positions=75"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "gptq"),
        ({"max_source_positions": 50}, {"feature_size": 80}, "chunk_length=30"),
        ({}, {"chunk_length": 1}, "chunk_length=1"),
        ({}, {"feature_size": 128}, "feature_size=128"),
        ({"num_mel_bins": 128}, {"chunk_length": 30}, "feature_size=80"),
        ({}, {"n_fft": 512}, "n_fft=512"),
        ({}, {"hop_length": 320}, "hop_length=320"),
        ({}, {"sampling_rate": 8000}, "sampling_rate=8000"),
        ({}, {"dither": 1e-4}, "dither"),
        ({}, {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "Wav2Vec2FeatureExtractor"),
    ],
)
def test_variants_are_refused_by_name(config, preprocessor, named):
    with pytest.raises(UserError) as error:
        config_from_hf(HF | config, preprocessor)
    assert named in str(error.value) and "\n" not in str(error.value)


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint(folder, prefix: str, others: tuple[str, ...]):
    """The fixture as it is saved from a larger model."""
    shutil.copytree(WHISPER, folder)
    tensors = load_file(WHISPER / "model.safetensors")
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    tensors |= {name: np.zeros((3, 2), np.float32) for name in others}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


DECODER = ("embed_tokens.weight", "layers.0.encoder_attn.k_proj.weight", "layers.0.fc1.weight",
           "layer_norm.weight", "embed_positions.weight")  # fmt: skip


@pytest.mark.parametrize(
    "prefix, others, notes",
    [
        ("", (), 0),
        ("model.encoder.", (*(f"model.decoder.{n}" for n in DECODER), "proj_out.weight"), 1),
        ("encoder.", tuple(f"decoder.{name}" for name in DECODER), 1),
        ("encoder.", ("projector.weight", "classifier.weight", "layer_weights"), 1),
        ("module.model.encoder.", ("module.model.decoder.layer_norm.weight",), 2),
        ("asr.encoder.", ("asr.decoder.layer_norm.weight", "head.weight"), 2),
    ],
)
def test_the_encoder_within_larger_models(prefix, others, notes, tmp_path):
    loaded = load_encoder(checkpoint(tmp_path / "model", prefix, others))
    assert_same_network(loaded, fixture("whisper").encoder)
    assert len(loaded.provenance["notes"]) == notes
    assert all(len(note) < 400 for note in loaded.provenance["notes"])


@pytest.mark.parametrize(
    "name", ["conv1.bias", "layers.1.self_attn.v_proj.bias", "layer_norm.bias"]
)
def test_missing_unexpected_and_misshapen_tensors_are_refused(name):
    config = fixture("whisper").encoder.config
    tensors = random_tensors(config, 0)
    missing = {n: t for n, t in tensors.items() if n != name}
    for changed, words in (
        (missing, f"1 missing: {name}"),
        (tensors | {name: tensors[name][:-1]}, f"1 of another shape: {name}"),
        (tensors | {"layers.1.self_attn.k_proj.bias": tensors[name]}, "1 unexpected: layers.1."),
    ):
        with pytest.raises(UserError, match=words) as error:
            weight_names.fill(config, changed, "here")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_adapters(prefix, tmp_path):
    """LoRA of the queries and values, in the decoder of a whole Whisper too."""
    decoder = "model.decoder.layers.0.self_attn.q_proj" if prefix == "model.encoder." else None
    base = checkpoint(tmp_path / "base", prefix, (f"{decoder}.weight",) if decoder else ())
    modules = [f"{prefix}layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qv"]
    rng, tensors = np.random.default_rng(0), {}
    for module in [*modules, *([decoder] if decoder else [])]:
        inner, outer = ((2, 2), (3, 2)) if module == decoder else ((2, 24), (24, 2))
        for part, shape in (("A", inner), ("B", outer)):
            name = f"base_model.model.{module}.lora_{part}.weight"
            tensors[name] = rng.standard_normal(shape).astype(np.float32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = dict(peft_type="LORA", base_model_name_or_path=str(base), r=2, lora_alpha=4,
                    target_modules=["q_proj", "v_proj"], bias="none")  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    encoder = load_encoder(adapter)
    found = weight_names.export(encoder.config, encoder.parameters)
    original = load_file(WHISPER / "model.safetensors")
    for module in modules:
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        name = f"{module.removeprefix(prefix)}.weight"
        np.testing.assert_allclose(found[name], original[name] + 2 * b @ a, atol=1e-5)
    lost = f"base_model.model.{modules[2]}"
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    save_file(rest, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights .* {modules[2]}.lora_A"):
        load_encoder(adapter)


def test_without_a_preprocessor_nothing_is_assumed(tmp_path, caplog):
    folder = checkpoint(tmp_path / "model", "", ())
    (folder / "preprocessor_config.json").unlink()
    assert_same_network(load_encoder(folder), fixture("whisper").encoder)
    assert not caplog.records


def test_a_whisper_is_no_recognizer(tmp_path):
    with pytest.raises(UserError, match="whisper has no CTC head") as error:
        load_recognizer(checkpoint(tmp_path / "model", "model.encoder.", ("proj_out.weight",)))
    assert "\n" not in str(error.value)


def test_saved_config_names_the_class_of_the_encoder(tmp_path):
    encoder = random_like(fixture("whisper").encoder)
    folder = encoder.save(tmp_path)
    assert_same_network(load_encoder(folder), encoder)
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["architectures"], saved["model_type"]) == (["WhisperEncoder"], "whisper")


def test_random_weights():
    encoder = random_like(fixture("whisper").encoder, seed=1)
    tensors = weight_names.export(encoder.config, encoder.parameters)
    positions = tensors["embed_positions.weight"]
    frame, pair, pairs = 7, 3, positions.shape[1] // 2
    angle = frame / 10_000 ** (pair / (pairs - 1))
    assert positions[frame, pair] == pytest.approx(np.sin(angle), abs=1e-6)
    assert positions[frame, pairs + pair] == pytest.approx(np.cos(angle), abs=1e-6)
    other = random_tensors(dataclasses.replace(encoder.config, init_std=0.5), seed=2)
    again = random_tensors(encoder.config, seed=1)
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    drawn = [name for name in tensors if not np.array_equal(tensors[name], other[name])]
    kinds = ("_proj.weight", "fc1.weight", "fc2.weight", "conv1.weight", "conv2.weight")
    assert sorted(drawn) == sorted(name for name in tensors if name.endswith(kinds))
    assert 0.4 < np.std(other["conv1.weight"]) < 0.6


def test_the_family_shares_no_names_with_the_others():
    places = [place for name in FAMILIES if name != "whisper" for place in FAMILIES[name].prefixes]
    assert not {*places} & {*FAMILIES["whisper"].prefixes}
