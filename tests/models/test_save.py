"""Saved encoders come back as they were; that torch reads them is in test_live_parity.py."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from speechsim_jax.errors import UserError
from speechsim_jax.models.load import load_encoder
from speechsim_jax.models.save import save_folder
from tests.support.parity import assert_same_network
from tests.support.paths import DATA

FOLDER = DATA / "parity"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir())
# What transformers writes under another name (weight norm), and what only training reads.
NORMED = ("weight_g", "weight_v")
NOT_OURS = ("masked_spec_embed", "pos_conv_embed.conv.parametrizations")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded_again(layout, tmp_path):
    encoder = load_encoder(FOLDER / layout)
    folder = encoder.save(tmp_path / "deep" / layout)
    assert folder == tmp_path / "deep" / layout
    again = load_encoder(folder)
    assert_same_network(again, encoder)
    assert again.provenance["notes"] == []
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }


def test_whoever_reads_the_configuration_can_read_the_weights(tmp_path):
    folder = load_encoder(FOLDER / LAYOUTS[0]).save(tmp_path)
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_say_what_those_of_transformers_say(layout, tmp_path):
    folder = load_encoder(FOLDER / layout).save(tmp_path)
    config, theirs = (
        json.loads((f / "config.json").read_text()) for f in (folder, FOLDER / layout)
    )
    for name in ("architectures", "model_type", "dtype"):
        assert config[name] == theirs[name]
    assert config.keys() <= theirs.keys()
    for name in config.keys() - {"mask_time_prob", "mask_feature_prob"}:  # which training reads
        assert config[name] == theirs[name], name
    preprocessor, theirs = (
        json.loads((f / "preprocessor_config.json").read_text()) for f in (folder, FOLDER / layout)
    )
    assert preprocessor == {name: theirs[name] for name in preprocessor}
    tensors, theirs = (load_file(f / "model.safetensors") for f in (folder, FOLDER / layout))
    shared = {name for name in theirs if not any(part in name for part in NOT_OURS)}
    assert shared == {name for name in tensors if not name.endswith((*NORMED, *NOT_OURS))}
    for name in shared:
        assert tensors[name].dtype == theirs[name].dtype
        assert np.array_equal(tensors[name], theirs[name]), name
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "<f2"), ("bfloat16", "bfloat16")])
def test_half_precision(dtype, kind, tmp_path):
    encoder = load_encoder(FOLDER / "hubert-batch-norm")
    folder = encoder.save(tmp_path / dtype, dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    tensors = load_file(folder / "model.safetensors")
    (counter,) = (name for name in tensors if name.endswith("num_batches_tracked"))
    assert tensors.pop(counter).dtype == np.int64
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(kind)}
    again = load_encoder(folder)
    for x, y in zip(*(jax.tree.leaves(e.parameters) for e in (encoder, again))):
        rounded = np.asarray(x).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
        assert np.array_equal(rounded.astype(np.float32), y)


def test_numbers_too_large_for_half_precision(tmp_path):
    config = load_encoder(FOLDER / "hubert-base").config
    tensors = {"a": np.array([1.0, 1e5], np.float32)}
    with pytest.raises(UserError, match="a has numbers too large for float16; save it as bfloat16"):
        save_folder(tmp_path, config, tensors, "float16")
    tensors = {"a": np.array([1.0, np.inf], np.float32)}  # not our doing
    save_folder(tmp_path, config, tensors, "float16")


def test_a_place_that_cannot_be_written(tmp_path):
    encoder = load_encoder(FOLDER / "hubert-base")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/model: cannot be written \(Not a directory\)"):
        encoder.save(tmp_path / "file" / "model")
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match="model: cannot be written"):
        encoder.save(tmp_path / "model")


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_encoder(FOLDER / "hubert-base").save("~/mine") == tmp_path / "mine"
