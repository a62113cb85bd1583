"""Parity with transformers and torch themselves: `python -m pytest -m parity -s`.

Tiny models with other weights and inputs than the committed fixtures, and our own exports loaded by
transformers. Needs the [parity] extra.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    UniSpeechForPreTraining,
    UniSpeechSatForPreTraining,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

from speechsim_jax.models import conformer, weight_names  # noqa: E402
from speechsim_jax.models.families import config_from_hf, family_of, wavlm  # noqa: E402
from speechsim_jax.models.initial_weights import random_tensors  # noqa: E402
from speechsim_jax.models.load import load_encoder  # noqa: E402
from tests.support.live_models import (  # noqa: E402
    EVERYTHING,
    assert_close,
    assert_same_weights,
    loaded,
    noise,
    ours,
    port,
    whisper_sizes,
    worst,
)
from tests.support.make_parity_fixtures import (  # noqa: E402
    LAYOUTS,
    SMALL,
    SMALL_WHISPER,
    encode,
    make,
    redraw,
    sizes_of,
)

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiny_models_at_fresh_inputs(layout):
    model, extractor = make(layout, seed=1)
    rng = np.random.default_rng(2)
    encoder = port(model, extractor)
    least = encoder.config.window_samples
    waves = [noise(rng, samples, extractor) for samples in (least, 1039, 8000, 3201)]
    found = encoder(waves, **EVERYTHING)
    raw = encoder(waves, last_layer="raw")
    for row, wave in enumerate(waves):
        expected = encode(model, extractor, wave)
        errors = worst(ours(found, row, expected), expected)
        frames = len(expected["last_hidden_state"])
        last = np.asarray(raw.hidden_states[-1, row, :frames])
        errors["raw"] = float(np.abs(last - expected["hidden_states"][-1]).max())
        print(layout, len(wave), {name: f"{error:.1e}" for name, error in errors.items()})
        assert_close(errors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_loads_what_we_save(layout, tmp_path):
    model, extractor = make(layout, seed=5)
    encoder = port(model, extractor)
    saved, saved_extractor = loaded(type(model), encoder.save(tmp_path / layout))
    assert_same_weights(model, saved)
    assert port(saved, saved_extractor).config == encoder.config
    wave = noise(np.random.default_rng(6), 4000, extractor)
    expected, found = encode(model, extractor, wave), encode(saved, saved_extractor, wave)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert_close(worst(ours(encoder([wave], **EVERYTHING), 0, found), found))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_loads_what_we_save_in_half_precision(dtype, tmp_path):
    model, extractor = make("wavlm-large", seed=5)
    saved, _ = loaded(type(model), port(model, extractor).save(tmp_path, dtype))
    assert saved.dtype == getattr(torch, dtype)
    assert_same_weights(model.to(saved.dtype), saved)


@pytest.mark.parametrize(
    ("layout", "model_class"),
    [("unispeech", UniSpeechForPreTraining), ("unispeech-sat", UniSpeechSatForPreTraining)],
)
def test_what_only_pretraining_has_is_left_out(layout, model_class, tmp_path):
    """Quantizers, projections and labels; the encoder is that of the file."""
    small = dict(codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4)
    model = model_class(LAYOUTS[layout][1](**SMALL | LAYOUTS[layout][2] | small))
    redraw(model, seed=3)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    outside = [n for n in model.state_dict() if not n.startswith(f"{model.base_model_prefix}.")]
    assert len(outside) > 6
    (note,) = encoder.provenance["notes"]
    assert "left out" in note and f"{len(outside) - 4} more (not part of the encoder)" in note
    saved, _ = loaded(type(model.base_model), encoder.save(tmp_path / "saved"))
    assert_same_weights(model.base_model, saved)


def test_without_a_projection(tmp_path):
    """SEW has none where the convolutions have the width of the transformer."""
    sizes = SMALL | dict(conv_dim=(*(24,) * 6, 32))
    model, extractor = make("sew", sizes=sizes)
    assert not hasattr(model, "feature_projection")
    wave = noise(np.random.default_rng(6), 4000)
    expected = encode(model, extractor, wave)
    encoder = port(model, extractor)
    assert_close(worst(ours(encoder([wave], **EVERYTHING), 0, expected), expected))
    saved, _ = loaded(type(model), encoder.save(tmp_path))
    assert_same_weights(model, saved)


# --- Whisper --------------------------------------------------------------------------------------

DECODER = dict(
    vocab_size=8,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=8,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
RELEASED_WHISPERS = {
    "tiny": (384, 4),
    "base": (512, 6),
    "small": (768, 12),
    "medium": (1024, 24),
    "large": (1280, 32),
    "large-v3": (1280, 32, 128),
}


@pytest.mark.parametrize(
    "model_class", [WhisperForConditionalGeneration, WhisperForAudioClassification]
)
def test_whisper_checkpoints_with_a_decoder_or_a_head(model_class, tmp_path):
    model = model_class(WhisperConfig(**SMALL_WHISPER | DECODER, scale_embedding=True)).eval()
    model.save_pretrained(tmp_path)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    (note,) = encoder.provenance["notes"]
    assert "not part of the encoder" in note and len(note) < 400
    alone = model.model.encoder if model_class is WhisperForConditionalGeneration else model.encoder
    alone.set_attn_implementation("eager")
    for samples in (5000, 16_000):
        wave = noise(np.random.default_rng(4), samples)
        expected = encode(alone, WhisperFeatureExtractor(chunk_length=1), wave)
        assert_close(worst(ours(encoder([wave], **EVERYTHING), 0, expected), expected))


@pytest.mark.parametrize("name", RELEASED_WHISPERS)
def test_whisper_of_released_sizes_has_the_weights_of_transformers(name):
    sizes = whisper_sizes(*RELEASED_WHISPERS[name])
    with torch.device("meta"):
        model = WhisperEncoder(WhisperConfig(**sizes))
    table = weight_names.weight_table(config_from_hf(model.config.to_dict()))
    ours = {row.name: row.shape[::-1] if row.transposed else row.shape for row in table}
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# --- random weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        *("wav2vec2-large", "hubert-large", "wavlm-base", "unispeech", "unispeech-sat"),
        *("data2vec-audio", "sew", "mms", "whisper"),
        *("conformer-relative", "conformer-rotary", "w2v-bert", "w2v-bert-relative"),
    ],
)
def test_random_weights_are_spread_as_those_of_transformers(layout):
    model_class, config_class, changes = LAYOUTS[layout]
    sizes = SMALL | dict(hidden_size=128, intermediate_size=200, conv_dim=(64,) * 7)
    if layout == "whisper":
        sizes = SMALL_WHISPER | dict(d_model=128, encoder_ffn_dim=200)
    torch.manual_seed(0)
    options = dict(conv_bias=True) if hasattr(config_class(), "conv_bias") else {}
    sizes = sizes_of(config_class) | sizes if layout != "whisper" else sizes
    model = model_class(config_class(**sizes | changes | options))
    config = config_from_hf(model.config.to_dict())
    found = random_tensors(config, seed=0)
    buffers = family_of(config).buffers
    found |= buffers(config) if buffers else {}
    for name, tensor in model.state_dict().items():
        # weight norm makes transformers lose what it draws for the positional kernel
        if "pos_conv_embed.conv.param" in name:
            continue
        if name.endswith(("masked_spec_embed", "num_batches_tracked")):
            continue
        a, b = tensor.numpy().astype(np.float64), found[name].astype(np.float64)
        near = 10 * (a.std() + b.std()) / np.sqrt(a.size)
        assert abs(a.mean() - b.mean()) <= near, name
        assert abs(a.std() - b.std()) <= near, name
        if name == "embed_positions.weight":  # sinusoids are not drawn
            assert np.abs(a - b).max() <= 1e-5


@pytest.mark.parametrize("num_buckets, max_distance", [(320, 800), (16, 12), (32, 128)])
def test_position_buckets(num_buckets, max_distance):
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    theirs = WavLMAttention(8, 2, num_buckets=num_buckets, max_distance=max_distance)
    frames = 2000
    distances = np.arange(1 - frames, frames)
    expected = theirs._relative_positions_bucket(torch.from_numpy(distances)).numpy()
    found = wavlm.relative_position_buckets(distances, num_buckets, max_distance)
    assert np.array_equal(found, expected)


def test_positions_of_long_inputs():
    """A minute. Relative ones: torch's own exp is one rounding off for three of 512 frequencies."""
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as modeling

    frames, none = 3000, torch.zeros(1, 3000, 1024)
    config = LAYOUTS["conformer-relative"][1](hidden_size=1024, num_attention_heads=16)
    theirs = modeling.Wav2Vec2ConformerRelPositionalEmbedding(config)(none)[0].numpy()
    found = np.asarray(conformer.sinusoids(np.arange(frames - 1, -frames, -1), 1024))
    assert np.abs(found - theirs).max() <= 3e-4
    assert np.abs(found - theirs)[frames - 100 : frames + 100].max() <= 1e-5

    cos, sin = modeling.Wav2Vec2ConformerRotaryPositionalEmbedding(config)(none)[:, :, 0].numpy()
    x = np.random.default_rng(0).standard_normal((1, frames, 16, 64)).astype(np.float32)
    turned = x * cos + np.concatenate([-x[..., 32:], x[..., :32]], -1) * sin
    assert np.abs(np.asarray(conformer.rotate(jnp.asarray(x), 10_000)) - turned).max() <= 2e-6
