"""Reading config.json, refusing what is not implemented, and the arithmetic of frames."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.encoder import forward
from speechsim_jax.models.families import FAMILIES, config_from_hf
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import hf_config
from speechsim_jax.training.data.clusters import mfcc
from tests.support.paths import DATA

FOLDER = DATA / "parity"
LIKE_WAV2VEC2 = [name for name, family in FAMILIES.items() if family.config is Wav2Vec2Config]

# What the files of facebook/wav2vec2-large-960h-lv60, hubert-base-ls960, microsoft/wavlm-base say.
RELEASED = {
    "wav2vec2": dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        feat_proj_dropout=0.1,
        gradient_checkpointing=False,
        architectures=["Wav2Vec2ForCTC"],
    ),
    "hubert": dict(architectures=["HubertModel"], hidden_act="gelu", vocab_size=32),
    "wavlm": dict(num_buckets=320, max_bucket_distance=800, feat_extract_activation="gelu"),
}


def walked_frames(samples: int, config: Wav2Vec2Config, layers: int | None = None) -> int:
    """Frames by laying every window of every convolution; nothing clever."""
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride))[:layers]:
        starts = range(0, max(samples - kernel + 1, 0), stride)
        samples = len(starts)
    return samples


OF_SAMPLES = {
    name: family.config
    for name, family in FAMILIES.items()
    if issubclass(family.config, Wav2Vec2Config)
}
each_family = pytest.mark.parametrize("family", OF_SAMPLES)


@pytest.mark.parametrize("family", [f for f in OF_SAMPLES if f != "wav2vec2-conformer"])
def test_defaults_are_the_base_model(family):
    config = config_from_hf({"model_type": family})
    assert config == OF_SAMPLES[family](family=family)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        768,
        12,
        12,
    )
    assert config.intermediate_size == 3072 and config.head_size == 64
    assert config.feat_extract_norm == ("layer" if family == "data2vec-audio" else "group")
    assert not config.do_stable_layer_norm and not config.conv_bias
    assert config.do_normalize


@pytest.mark.parametrize("family", RELEASED)
def test_released_files_are_read_and_unknown_keys_ignored(family):
    config = config_from_hf({"model_type": family, **RELEASED[family]})
    for name, value in RELEASED[family].items():
        if hasattr(config, name):
            assert getattr(config, name) == value
    assert hash(config) == hash(dataclasses.replace(config))


def test_lists_become_tuples():
    config = config_from_hf(
        {"model_type": "wavlm", "conv_dim": [8, 9], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
    )
    assert (config.conv_dim, config.conv_kernel, config.conv_stride) == ((8, 9), (10, 3), (5, 2))
    assert hash(config)


def test_do_normalize_comes_from_the_preprocessor():
    bare = {"model_type": "wavlm"}
    assert config_from_hf(bare, {"do_normalize": False}).do_normalize is False
    assert config_from_hf(bare, {"do_normalize": True}).do_normalize is True
    assert config_from_hf(bare, {}).do_normalize is True
    assert config_from_hf(bare | {"do_normalize": False}).do_normalize is True


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_options_of_hubert_mean_nothing_elsewhere(family):
    config = config_from_hf(
        {"model_type": family, "feat_proj_layer_norm": False, "conv_pos_batch_norm": True}
    )
    assert config.feat_proj_layer_norm and not config.conv_pos_batch_norm
    options = {"feat_proj_layer_norm": False, "conv_pos_batch_norm": True}
    hubert = config_from_hf({"model_type": "hubert", **options})
    assert not hubert.feat_proj_layer_norm and hubert.conv_pos_batch_norm


@pytest.mark.parametrize(
    "family",
    [
        "sew-d",
        "bert",
        None,
        7,
        ["wavlm"],
    ],
)
def test_other_architectures_are_refused_by_name(family):
    with pytest.raises(UserError) as error:
        config_from_hf({"model_type": family})
    message = str(error.value)
    assert f"model_type {family!r}" in message
    assert all(name in message for name in FAMILIES)
    assert "\n" not in message


@pytest.mark.parametrize(
    "change, named",
    [
        ({"add_adapter": True}, "add_adapter"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim"),  # in wav2vec2, without stable layer norms
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation='gelu_new'"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm='batch'"),
        ({"num_attention_heads": 7}, "hidden_size 768"),
        ({"conv_kernel": [10, 3]}, "conv_kernel"),
    ],
)
@each_family
def test_variants_are_refused_by_name(family, change, named):
    with pytest.raises(UserError) as error:
        config_from_hf({"model_type": family, **change})
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("family", [name for name in OF_SAMPLES if name != "wav2vec2"])
def test_adapters_are_those_of_wav2vec2(family):
    with pytest.raises(UserError, match=f"adapter_attn_dim; a {family} with adapters"):
        config_from_hf({"model_type": family, "adapter_attn_dim": 16, "do_stable_layer_norm": True})


@pytest.mark.parametrize("size", [0, -1, "16", 1.5, True, 2**31])
def test_sizes_of_adapters_are_checked(size):
    options = {"model_type": "wav2vec2", "do_stable_layer_norm": True}
    with pytest.raises(UserError, match="adapter_attn_dim="):
        config_from_hf(options | {"adapter_attn_dim": size})
    assert config_from_hf(options | {"adapter_attn_dim": 16}).adapter_attn_dim == 16


def test_what_is_no_option_of_a_family():
    """Ignored in config.json, as in transformers; refused where code asks for it."""
    config = config_from_hf(
        {
            "model_type": "data2vec-audio",
            "feat_extract_norm": "group",
            "do_stable_layer_norm": True,
        }
    )
    assert config.feat_extract_norm == "layer" and not config.do_stable_layer_norm
    assert not config_from_hf(
        {"model_type": "sew", "do_stable_layer_norm": True}
    ).do_stable_layer_norm
    for family in ("data2vec-audio", "sew"):
        with pytest.raises(UserError, match=f"do_stable_layer_norm is no option of {family}"):
            OF_SAMPLES[family](family=family, do_stable_layer_norm=True)


@pytest.mark.parametrize(
    "family, change, named",
    [
        ("wav2vec2-conformer", {"position_embeddings_type": "relative_key"}, "'relative_key'"),
        ("wav2vec2-conformer", {"position_embeddings_type": "alibi"}, "'alibi'"),
        ("wav2vec2-conformer", {"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size=30"),
        ("wav2vec2-bert", {"position_embeddings_type": "alibi"}, "'alibi'"),
        ("wav2vec2-bert", {"position_embeddings_type": 7}, "position_embeddings_type=7"),
        ("wav2vec2-bert", {"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size=30"),
        ("wav2vec2-bert", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("wav2vec2-bert", {"hidden_act": None}, "hidden_act=None"),
        ("wav2vec2-bert", {"add_adapter": True}, "add_adapter"),
        ("wav2vec2-bert", {"use_intermediate_ffn_before_adapter": True}, "use_intermediate_ffn"),
        ("wav2vec2-bert", {"adapter_attn_dim": 16}, "adapter_attn_dim"),
        ("wav2vec2-bert", {"num_attention_heads": 7}, "hidden_size 1024"),
        ("wav2vec2-bert", {"feature_projection_input_dim": 161}, "feature_projection_input_dim"),
        ("wav2vec2-bert", {"hidden_size": 1024, "num_attention_heads": 1024}
         | {"position_embeddings_type": "rotary"}, "even size"),
    ],
)  # fmt: skip
def test_variants_of_conformers_are_refused_by_name(family, change, named):
    with pytest.raises(UserError) as error:
        config_from_hf({"model_type": family, **change})
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "preprocessor, named",
    [
        ({"stride": 1}, "stride=1"),
        ({"num_mel_bins": 40}, "feature_projection_input_dim=160"),
        ({"num_mel_bins": "80"}, "num_mel_bins='80'"),
        ({"sampling_rate": 8000}, "sampling_rate=8000"),
    ],
)
def test_other_mel_features_are_refused_by_name(preprocessor, named):
    with pytest.raises(UserError) as error:
        config_from_hf({"model_type": "wav2vec2-bert"}, preprocessor)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_conformers():
    """The defaults of transformers' classes, and what is null in config.json."""
    conformer = config_from_hf({"model_type": "wav2vec2-conformer"})
    assert (conformer.hidden_size, conformer.num_hidden_layers) == (768, 12)
    assert (conformer.hidden_act, conformer.position_embeddings_type) == ("gelu", "relative")
    assert conformer.frames(16_000) == 49
    bert = config_from_hf({"model_type": "wav2vec2-bert"})
    assert (bert.hidden_size, bert.num_hidden_layers, bert.intermediate_size) == (1024, 24, 4096)
    assert (bert.hidden_act, bert.position_embeddings_type) == ("swish", "relative_key")
    assert (bert.left_max_position_embeddings, bert.right_max_position_embeddings) == (64, 8)
    for family in ("wav2vec2-conformer", "wav2vec2-bert"):
        none = config_from_hf({"model_type": family, "position_embeddings_type": None})
        assert none.position_embeddings_type is None
        assert hf_config(none)["position_embeddings_type"] is None
        assert "do_stable_layer_norm" not in hf_config(none)


def test_frames_of_mel_features():
    """Two mel frames of 400 samples, 160 apart, make a frame; half a frame is none."""
    config = config_from_hf({"model_type": "wav2vec2-bert"})
    assert (config.window_samples, config.hop_samples) == (560, 320)
    assert config.first_centre_samples == 280
    known = {0: 0, 400: 0, 559: 0, 560: 1, 720: 1, 879: 1, 880: 2, 16_000: 49}
    assert {samples: config.frames(samples) for samples in known} == known
    every = np.arange(3000)
    walked = [len(range(0, n - 399, 160)) // 2 for n in every]
    assert config.frames(every).tolist() == walked
    assert config.frames(jnp.asarray(every)).tolist() == walked


def test_variants_that_are_off_are_fine():
    config_from_hf({"model_type": "wav2vec2", "add_adapter": False, "adapter_attn_dim": None})


@pytest.mark.parametrize("layout", sorted(path.name for path in FOLDER.iterdir()))
def test_config_json_round_trip(layout):
    config = config_from_hf(json.loads((FOLDER / layout / "config.json").read_text()))
    assert config_from_hf(json.loads(json.dumps(hf_config(config)))) == config


def test_frames():
    config = Wav2Vec2Config(family="hubert")
    assert (config.window_samples, config.hop_samples) == (400, 320)
    known = {0: 0, 399: 0, 400: 1, 719: 1, 720: 2, 16000: 49, 80000: 249}
    assert {samples: config.frames(samples) for samples in known} == known
    every = np.arange(5001)
    for layers in (None, 7, 3, 1):
        walked = [walked_frames(n, config, layers) for n in range(5001)]
        assert config.frames(every, layers).tolist() == walked
        assert [config.frames(n, layers) for n in range(5001)] == walked
        assert config.frames(jnp.asarray(every), layers).tolist() == walked


def test_frames_of_other_strides():
    config = Wav2Vec2Config(
        family="hubert", conv_dim=(4,) * 3, conv_kernel=(10, 3, 4), conv_stride=(5, 2, 3)
    )
    assert config.hop_samples == 30
    assert walked_frames(config.window_samples, config) == 1
    assert walked_frames(config.window_samples - 1, config) == 0
    walked = [walked_frames(n, config) for n in range(500)]
    assert config.frames(np.arange(500)).tolist() == walked


def test_squeezed_frames():
    config = OF_SAMPLES["sew"](family="sew")
    plain = dataclasses.replace(config, squeeze_factor=1)
    assert (plain.window_samples, plain.hop_samples) == (400, 320)
    assert (config.window_samples, config.hop_samples) == (720, 640)
    known = {0: 0, 400: 0, 719: 0, 720: 1, 1359: 1, 1360: 2, 16000: 24}
    assert {samples: config.frames(samples) for samples in known} == known
    every = np.arange(5001)
    for factor in (2, 3, 5):
        config = dataclasses.replace(config, squeeze_factor=factor)
        walked = np.array([walked_frames(n, config) for n in every])
        assert config.frames(every).tolist() == (walked // factor).tolist()
        assert config.logit_frames(every).tolist() == walked.tolist()
        window = config.window_samples
        assert (config.frames(window - 1), config.frames(window)) == (0, 1)
        # the centre of a squeezed frame is the mean of those of its frames
        centres = plain.frame_centres_seconds(6 * factor).reshape(6, factor).mean(1)
        np.testing.assert_allclose(config.frame_centres_seconds(6), centres, rtol=1e-12)


@pytest.mark.slow
@each_family
def test_centres_are_the_middles_of_the_samples_that_a_frame_depends_on(family):
    """Positions apart, which see far: their convolution is multiplied by 0."""
    config = OF_SAMPLES[family](
        family=family,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(6,) * 4,
        conv_kernel=(10, 3, 4, 2),
        conv_stride=(5, 2, 1, 2),
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_normalize=False,
    )
    tensors = random_tensors(config, 0)
    for name in tensors:
        if "pos_conv_embed" in name:
            tensors[name] = np.zeros_like(tensors[name]) + ("weight_v" in name)
    graph, parameters, _ = weight_names.fill(config, tensors, "here")
    samples = 0.1 * jax.random.normal(jax.random.key(0), (400,))

    def frame(samples, index):
        found = forward.__wrapped__(
            parameters,
            samples[None],
            jnp.array([400]),
            graph=graph,
            outputs=Outputs(layers=(0,)),
            precision="highest",
        )
        return found.hidden_states[0, 0, index] @ jnp.arange(1.0, 9.0)

    count = config.frames(400)
    assert count > 4
    for index in (0, 1, count - 1):
        moved = np.flatnonzero(jax.grad(frame)(samples, index))
        assert np.ptp(moved) + 1 == config.window_samples
        middle = (moved[0] + moved[-1] + 1) / 2
        assert middle == config.first_centre_samples + index * config.hop_samples


def test_frames_are_those_of_another_encoder_only_at_the_same_places():
    """Whisper has the hop and the shortest input of wav2vec 2.0, and other centres."""
    base = Wav2Vec2Config(family="wav2vec2")
    whisper, bert = (config_from_hf({"model_type": n}) for n in ("whisper", "wav2vec2-bert"))
    assert (whisper.hop_samples, whisper.window_samples) == (320, 400)
    slow = dataclasses.replace(base, conv_stride=(5, 2, 2, 2, 2, 2, 4))
    for other in (whisper, bert, slow):
        assert not base.makes_frames_of(other) and not other.makes_frames_of(base)
    assert base.makes_frames_of(Wav2Vec2Config(family="hubert", num_hidden_layers=24))


def test_mfcc_of_other_frames_are_refused():
    for name in ("whisper", "wav2vec2-bert"):
        with pytest.raises(UserError, match=r"centred from sample .* on, not 200"):
            mfcc(np.zeros(16_000, np.float32), config_from_hf({"model_type": name}))
