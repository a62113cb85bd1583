"""Models of full size with random weights, against torch: `python -m pytest -m parity -s`."""

import gc

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from speechsim_jax.models.recognizer import load_recognizer  # noqa: E402
from tests.support import tolerances  # noqa: E402
from tests.support.live_models import (  # noqa: E402
    logits_of,
    noise,
    ours,
    port,
    their_logits,
    whisper_sizes,
)
from tests.support.make_parity_fixtures import (  # noqa: E402
    attentions_of,
    encode,
    make,
    make_tokenizer,
)
from tests.support.parity import relative_error  # noqa: E402

pytestmark = pytest.mark.parity

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
