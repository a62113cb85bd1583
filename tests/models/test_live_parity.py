"""Parity with transformers and torch themselves: `python -m pytest -m parity -s`.

Tiny models with other weights and inputs than the committed fixtures, models of full size, and our
own exports loaded by transformers. Needs the [parity] extra.
"""

import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    UniSpeechForPreTraining,
    UniSpeechSatForPreTraining,
    Wav2Vec2BertProcessor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

from speechsim_jax.models import conformer, weight_names  # noqa: E402
from speechsim_jax.models.architecture import Activations  # noqa: E402
from speechsim_jax.models.encoder import SpeechEncoder  # noqa: E402
from speechsim_jax.models.families import config_from_hf, family_of, wavlm  # noqa: E402
from speechsim_jax.models.initial_weights import random_tensors  # noqa: E402
from speechsim_jax.models.load import load_encoder  # noqa: E402
from speechsim_jax.models.recognizer import Recognizer, load_recognizer  # noqa: E402
from tests.support import tolerances  # noqa: E402
from tests.support.make_parity_fixtures import (  # noqa: E402
    LAYOUTS,
    SMALL,
    SMALL_WHISPER,
    attentions_of,
    encode,
    make,
    make_tokenizer,
    model_inputs,
    redraw,
    sizes_of,
)
from tests.support.parity import pulses, relative_error  # noqa: E402

pytestmark = pytest.mark.parity

EVERYTHING = dict(attentions=True, projections=True, features=True)
LARGE = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    vocab_size=8,
)
CONFORMER_LARGE = dict(
    feat_extract_norm="layer", conv_bias=True, hidden_act="swish", conv_depthwise_kernel_size=31
)
XLARGE = LARGE | dict(hidden_size=1280, num_hidden_layers=48, intermediate_size=5120)
DATA2VEC = dict(vocab_size=8, num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
# Of sew-mid-100k: half the width of wav2vec2-large, and as deep.
SEW_MID = dict(
    hidden_size=512,
    num_hidden_layers=24,
    num_attention_heads=8,
    intermediate_size=2048,
    num_conv_pos_embeddings=31,
    conv_kernel=(10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1),
    conv_stride=(5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
    vocab_size=8,
)
# Of mms-1b-all, with 6 of its 48 layers.
MMS = XLARGE | dict(num_hidden_layers=6, adapter_attn_dim=16)


def whisper_sizes(width: int, layers: int, bands: int = 80) -> dict:
    return dict(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        num_mel_bins=bands,
    )


# Of each: its layout, and the sizes of the published checkpoints.
FULL_SIZE = {
    "wav2vec2-base": ("wav2vec2-base", dict(vocab_size=8)),
    "wavlm-base": ("wavlm-base", dict(vocab_size=8)),
    "hubert-large": ("hubert-large", LARGE),
    "wav2vec2-large": ("wav2vec2-large", LARGE),
    "wavlm-large": ("wavlm-large", LARGE | dict(num_buckets=320, max_bucket_distance=800)),
    "hubert-xlarge": ("hubert-large", XLARGE),
    "unispeech-large": ("unispeech", LARGE),
    "unispeech-sat-base": ("unispeech-sat", dict(vocab_size=8)),
    "data2vec-audio-base": ("data2vec-audio", DATA2VEC),
    "sew-mid": ("sew", SEW_MID),
    "mms-1b-all": ("mms", MMS),
    # Of facebook/wav2vec2-conformer-rel-pos-large, -rope-large and facebook/w2v-bert-2.0.
    "conformer-relative": ("conformer-relative", LARGE | CONFORMER_LARGE),
    "conformer-rotary": ("conformer-rotary", LARGE | CONFORMER_LARGE),
    "w2v-bert": (
        "w2v-bert",
        LARGE
        | dict(conv_depthwise_kernel_size=31)
        | dict(left_max_position_embeddings=64, right_max_position_embeddings=8),
    ),
    "whisper-base": ("whisper", whisper_sizes(512, 6)),
    "whisper-small": ("whisper", whisper_sizes(768, 12)),
}


def port(model, extractor) -> SpeechEncoder:
    """Our encoder with a torch model's weights."""
    config = config_from_hf(model.config.to_dict(), extractor.to_dict())
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph, parameters, notes = weight_names.fill(config, tensors, "torch")
    assert notes == []
    return SpeechEncoder("port", config, graph, parameters)


def ours(found: Activations, row: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One utterance of a batch, shaped as transformers gives it alone."""
    frames = len(like["last_hidden_state"])
    hidden = np.asarray(found.hidden_states[:, row, :frames])
    keys = np.asarray(found.keys[:, row, :frames])
    queries, window = like["attentions"].shape[-2:]
    attentions = np.asarray(found.attentions[:, row, :, :queries, :window])
    if found.gates is not None:  # transformers repeats WavLM's mean over heads
        attentions = np.broadcast_to(attentions.mean(1, keepdims=True), attentions.shape)
    result = {
        "hidden_states": np.concatenate([hidden[:-1], like["hidden_states"][-1:]]),
        "last_hidden_state": hidden[-1],
        "keys": keys.reshape(*keys.shape[:2], -1),
        "attentions": attentions,
    }
    if found.features is not None:
        result["features"] = np.asarray(found.features[row, :frames])
    return result


def noise(rng: np.random.Generator, samples: int, extractor=None) -> np.ndarray:
    """Of random loudness; pulses for mel features, see there."""
    loud = rng.uniform(0.02, 0.3)
    if isinstance(extractor, SeamlessM4TFeatureExtractor):
        return pulses(loud * rng.standard_normal(samples))
    return (loud * rng.standard_normal(samples) + rng.uniform(-0.05, 0.05)).astype(np.float32)


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    return {name: float(np.abs(a[name] - b[name]).max()) for name in a}


def assert_close(errors: dict[str, float]) -> None:
    assert errors["attentions"] <= tolerances.PARITY_ATTENTION, errors
    assert np.max([*errors.values()]) <= tolerances.PARITY, errors


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


def sharpen(model) -> None:
    """Make attention choose among frames, and add less of it.

    A deep post-norm model with flat attention gives every frame the same state; neurons are then
    constants, some of them close to zero, where a relative error says nothing. So they are after
    the convolutions of SEW, if each of the twelve without a norm halves the signal.
    """
    with torch.no_grad():
        if model.config.model_type == "sew":
            for layer in model.feature_extractor.conv_layers[1:]:
                layer.conv.weight *= 2.5
        for attention in attentions_of(model):
            conformer_like = hasattr(attention, "linear_q")
            query = attention.linear_q if conformer_like else attention.q_proj
            out = attention.linear_out if conformer_like else attention.out_proj
            query.weight *= 3.0
            out.weight *= 0.3


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size(name):
    layout, sizes = FULL_SIZE[name]
    model, extractor = make(layout, sizes=sizes)
    sharpen(model)
    wave = noise(np.random.default_rng(3), 32_000, extractor)
    expected = encode(model, extractor, wave)
    encoder = port(model, extractor)
    del model
    gc.collect()
    found = encoder([wave], attentions=True, projections=True, features=True)
    result = ours(found, 0, expected)
    raw = encoder([wave], layers=[encoder.config.num_hidden_layers], last_layer="raw")
    result["hidden_states"][-1] = np.asarray(raw.hidden_states[0, 0])
    states = [*zip(result["hidden_states"], expected["hidden_states"])]
    states.append((result["last_hidden_state"], expected["last_hidden_state"]))
    errors = [relative_error(a, b) for a, b in states]
    attention = np.abs(result["attentions"] - expected["attentions"]).max()
    print(f"\n{name}: largest attention error {attention:.1e}")
    for layer, (error, (a, b)) in enumerate(zip(errors, states)):
        label = "normed" if layer == len(states) - 1 else f"{layer:6d}"
        print(f"  {label} relative {error:.1e}  absolute {np.abs(a - b).max():.1e}", end="")
        print(f"  of {np.abs(b).max():.1f}")
    jax.clear_caches()
    gc.collect()
    assert np.max(errors) <= tolerances.FULL_SIZE_RELATIVE
    assert attention <= tolerances.FULL_SIZE_ATTENTION


def loaded(model_class, folder):
    """A saved folder as transformers reads it: nothing missing, unexpected or of another shape."""
    model, report = model_class.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval(), AutoFeatureExtractor.from_pretrained(folder)


def assert_same_weights(a, b) -> None:
    """Two torch models hold the same bits, but for what only training reads."""
    states = [
        {n: t for n, t in model.state_dict().items() if not n.endswith("masked_spec_embed")}
        for model in (a, b)
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        # our counter of batches starts at 0
        assert torch.equal(tensor, states[1][name]) or name.endswith("num_batches_tracked"), name


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


# --- fine-tuned models ----------------------------------------------------------------------------


def their_logits(model, extractor, wave: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(model_inputs(extractor, wave)).logits


def logits_of(recognizer: Recognizer, wave: np.ndarray) -> np.ndarray:
    """Ours, of the frames of the utterance."""
    logits = recognizer.logits(wave[None], np.array([len(wave)], np.int32))
    return np.asarray(logits)[:, : recognizer.encoder.config.logit_frames(len(wave))]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "whisper"])
def test_fine_tuned_folders_both_ways(layout, tmp_path):
    """save_pretrained -> load_recognizer -> save -> from_pretrained, on one utterance."""
    model, extractor = make(layout, seed=8, ctc=True)
    wave = noise(np.random.default_rng(9), 4000, extractor)
    with torch.no_grad():  # tokens that are equally likely on average
        model.lm_head.bias -= their_logits(model, extractor, wave).mean((0, 1))
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(layout, folder)
    mel = isinstance(extractor, SeamlessM4TFeatureExtractor)
    processor_class = Wav2Vec2BertProcessor if mel else Wav2Vec2Processor
    processor_class(extractor, tokenizer).save_pretrained(folder)
    recognizer = load_recognizer(folder)
    expected = their_logits(model, extractor, wave)
    found = logits_of(recognizer, wave)
    error = float(np.abs(np.asarray(found) - expected.numpy()).max())
    print(f"{layout}: logits {error:.1e}")
    assert error <= tolerances.PARITY
    assert np.array_equal(np.asarray(found).argmax(-1), expected.argmax(-1))
    texts = tokenizer.batch_decode(expected.argmax(-1))
    assert recognizer.transcribe([wave]) == texts and texts != [""]

    folder = recognizer.save(tmp_path / "ours")
    saved, saved_extractor = loaded(type(model), folder)
    assert_same_weights(model, saved)
    again = their_logits(saved, saved_extractor, wave)
    assert torch.equal(again, expected)
    processor = processor_class.from_pretrained(folder)
    assert processor.batch_decode(again.argmax(-1)) == texts
    assert saved.config.pad_token_id == recognizer.blank


@pytest.mark.parametrize("name", ["wav2vec2-base", "hubert-large"])
def test_fine_tuned_models_of_full_size(name, tmp_path):
    layout, sizes = FULL_SIZE[name]
    model, extractor = make(layout, sizes=sizes, ctc=True)
    sharpen(model.base_model)
    # Pieces of noise of different colours, and tokens that are equally likely on average: of one
    # noise, a random model says the same token in every frame.
    rng = np.random.default_rng(3)
    pieces = [
        np.convolve(rng.standard_normal(2000 + 63), rng.standard_normal(64)) for _ in range(16)
    ]
    wave = (0.02 * np.concatenate([piece[63:-63] for piece in pieces])).astype(np.float32)
    with torch.no_grad():
        model.lm_head.bias -= their_logits(model, extractor, wave).mean((0, 1))
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    make_tokenizer(layout, tmp_path)
    expected = their_logits(model, extractor, wave)[0].numpy()
    del model
    gc.collect()
    recognizer = load_recognizer(tmp_path)
    found = logits_of(recognizer, wave)[0]
    error = relative_error(found, expected)
    margin = np.diff(np.sort(expected, -1)[:, -2:], axis=-1).min()
    print(f"\n{name}: logits relative {error:.1e} absolute {np.abs(found - expected).max():.1e}")
    print(f"  of {np.abs(expected).max():.1f}, {len(set(expected.argmax(-1)))} tokens,", end="")
    print(f" smallest margin {margin:.1e}")
    jax.clear_caches()
    gc.collect()
    assert error <= tolerances.FULL_SIZE_RELATIVE
    assert len(set(expected.argmax(-1))) > 5
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))


def test_a_language_of_mms(tmp_path):
    """transformers puts the adapters and the head of the language in place, and so do we."""
    model, extractor = make("mms", seed=8, ctc=True)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    make_tokenizer("mms", tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    more = vocabulary | {"Ä": len(vocabulary)}
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": vocabulary, "deu": more}))
    other, _ = make("mms", seed=9, ctc=True)
    other.lm_head = torch.nn.Linear(other.config.hidden_size, len(more))
    own = {name: tensor.detach() for name, tensor in other._get_adapters().items()}
    save_file(own, tmp_path / "adapter.deu.safetensors", {"format": "pt"})

    german = (
        type(model)
        .from_pretrained(
            tmp_path, target_lang="deu", ignore_mismatched_sizes=True, attn_implementation="eager"
        )
        .eval()
    )
    wave = noise(np.random.default_rng(9), 4000)
    logits = {}
    for source, theirs_ in ((f"{tmp_path}#deu", german), (f"{tmp_path}#eng", model)):
        if source.endswith("eng"):
            eng = {name: tensor.detach() for name, tensor in model._get_adapters().items()}
            save_file(eng, tmp_path / "adapter.eng.safetensors", {"format": "pt"})
        recognizer = load_recognizer(source)
        expected = their_logits(theirs_, extractor, wave).numpy()
        found = logits_of(recognizer, wave)
        error = float(np.abs(found - expected).max())
        print(f"{source}: logits {error:.1e}")
        assert error <= tolerances.PARITY
        logits[source] = expected
    first, second = logits.values()
    assert first.shape[-1] == second.shape[-1] + 1
    assert np.abs(first[..., :-1] - second).max() > 0.1
    # what we save is the language, with its tokens, for transformers too
    recognizer = load_recognizer(f"{tmp_path}#deu")
    folder = recognizer.save(tmp_path / "saved")
    saved, saved_extractor = loaded(type(model), folder)
    assert torch.equal(
        their_logits(saved, saved_extractor, wave), their_logits(german, extractor, wave)
    )
    processor = Wav2Vec2Processor.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids("Ä") == len(vocabulary)


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
