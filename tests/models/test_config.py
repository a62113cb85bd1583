"""Reading config.json, refusing what is not implemented, and the arithmetic of frames."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import FAMILIES, config_from_hf
from speechsim_jax.models.save import hf_config
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


@pytest.mark.parametrize("family", LIKE_WAV2VEC2)
def test_defaults_are_the_base_model(family):
    config = config_from_hf({"model_type": family})
    assert config == Wav2Vec2Config(family=family)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        768,
        12,
        12,
    )
    assert config.intermediate_size == 3072 and config.head_size == 64
    assert config.feat_extract_norm == "group"
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
        "data2vec-audio",
        "wav2vec2-conformer",
        "wav2vec2-bert",
        "sew",
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
        ({"adapter_attn_dim": 16}, "adapter_attn_dim"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation='gelu_new'"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm='batch'"),
        ({"num_attention_heads": 7}, "hidden_size 768"),
        ({"conv_kernel": [10, 3]}, "conv_kernel"),
    ],
)
@pytest.mark.parametrize("family", LIKE_WAV2VEC2)
def test_variants_are_refused_by_name(family, change, named):
    with pytest.raises(UserError) as error:
        config_from_hf({"model_type": family, **change})
    assert named in str(error.value) and "\n" not in str(error.value)


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
