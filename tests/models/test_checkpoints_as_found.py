"""Checkpoints as people have them: wrapped, folded, quantised, with two preprocessors."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from tests.support.paths import DATA

PARITY = DATA / "parity"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(PARITY / "wav2vec2-base", tmp_path / "model"))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def save(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change(path: Path, **values) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values))


def same_parameters(one: ss.SpeechEncoder, other: ss.SpeechEncoder, tolerance: float = 0) -> bool:
    pairs = zip(jax.tree.leaves(one.parameters), jax.tree.leaves(other.parameters), strict=True)
    return all(np.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


# --- C1, C2: preprocessors ---


@pytest.mark.parametrize("key", ["feature_extractor", "audio_processor"])
def test_a_nested_feature_extractor_goes_first(folder, key, caplog):
    """As in transformers 5, and it is said where the older file differs."""
    change(folder / "preprocessor_config.json", do_normalize=True)
    change(folder / "processor_config.json", **{key: {"do_normalize": False}})
    encoder = ss.load_encoder(folder)
    assert not encoder.config.do_normalize
    assert "differ in do_normalize False and True; the first counts" in caplog.text
    assert any("differ in do_normalize" in note for note in encoder.provenance["notes"])


def test_a_processor_that_nests_nothing_leaves_the_older_file(folder, caplog):
    change(folder / "preprocessor_config.json", do_normalize=False)
    change(folder / "processor_config.json", processor_class="Wav2Vec2Processor")
    assert not ss.load_encoder(folder).config.do_normalize
    assert "differ" not in caplog.text


@pytest.mark.parametrize("rate", [8000, 24_000, "16000", None])
def test_models_of_other_rates_are_refused(folder, rate):
    change(folder / "preprocessor_config.json", sampling_rate=rate)
    with pytest.raises(ss.UserError, match=f"sampling_rate={rate!r}; only models"):
        ss.load_encoder(folder)


# --- C3: quantised weights ---


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"\(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"\(gptq\)"),
        ({"quantization_config": {"quant_method": "torchao"}}, r"\(torchao\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"\(quantization\)"),  # mlx
    ],
)
def test_quantised_models_are_refused_by_name(folder, config, named):
    change(folder / "config.json", **config)
    with pytest.raises(ss.UserError, match=f"are quantised {named}; load the model without"):
        ss.load_encoder(folder)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
def test_integers_never_become_weights(folder, dtype):
    tensors = tensors_of(folder)
    name = next(
        n for n in tensors if n.endswith("encoder.layers.0.feed_forward.output_dense.weight")
    )
    save(folder, tensors | {name: np.ones(tensors[name].shape, dtype)})
    with pytest.raises(
        ss.UserError, match=rf"output_dense\.weight is {np.dtype(dtype)}, a type of"
    ):
        ss.load_encoder(folder)


# --- C4: fields ---


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("conv_dim", None, "a list of whole numbers"), ("conv_dim", [32, "32"], "a list of whole"),
        ("conv_stride", 5, "a list of whole numbers"), ("conv_kernel", [], "a list of whole"),
        ("num_hidden_layers", None, "a whole number"), ("num_hidden_layers", 2.5, "a whole"),
        ("num_attention_heads", "2", "a whole number"), ("num_attention_heads", 0, "a whole"),
        ("hidden_size", -32, "a whole number"), ("hidden_size", True, "a whole number"),
        ("layer_norm_eps", None, "a number above 0"), ("layer_norm_eps", "1e-05", "a number above"),
        ("layer_norm_eps", math.nan, "a number above 0"), ("layer_norm_eps", 0, "a number above 0"),
        ("do_stable_layer_norm", "yes", "true or false"), ("conv_bias", None, "true or false"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(folder, name, value, expected):
    change(folder / "config.json", **{name: value})
    with pytest.raises(ss.UserError, match=rf"config\.json has {name}=.*; expected {expected}"):
        ss.load_encoder(folder)


# --- C5, C7: names ---


@pytest.mark.parametrize(
    ("rename", "head"),
    [
        (lambda name: f"module.{name}", "module.lm_head.weight"),  # DataParallel
        (lambda name: f"_orig_mod.{name}", "_orig_mod.lm_head.weight"),  # torch.compile
        (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), "lm_head.weight"),
        (lambda name: f"model.{name}", "probe.weight"),  # Lightning
        (lambda name: f"model.model.wav2vec2.{name}", "model.model.lm_head.weight"),
        (lambda name: f"module._orig_mod.ssl_model.{name}", "module.classifier.weight"),
    ],
)
def test_wrappers_are_stripped_and_said(folder, rename, head):
    expected = ss.load_encoder(folder)
    tensors = {name.removeprefix("wav2vec2."): t for name, t in tensors_of(folder).items()}
    # A head of the program that trained it is left out.
    save(folder, {rename(name): t for name, t in tensors.items()} | {head: np.ones(3)})
    encoder = ss.load_encoder(folder)
    assert same_parameters(encoder, expected)
    notes = " ".join(encoder.provenance["notes"])
    assert "were unwrapped" in notes and "left out" in notes


def test_two_encoders_in_one_file_are_not_guessed(folder):
    tensors = {name.removeprefix("wav2vec2."): t for name, t in tensors_of(folder).items()}
    both = {f"{side}.{name}": t for name, t in tensors.items() for side in ("student", "teacher")}
    save(folder, both)
    with pytest.raises(ss.UserError, match="the weights do not fit"):
        ss.load_encoder(folder)


@pytest.mark.parametrize("model", ["wav2vec2-base", "hubert-large", "wavlm-base"])
def test_weight_norm_may_be_folded_away(tmp_path, model):
    folder = Path(shutil.copytree(PARITY / model, tmp_path / "model"))
    tensors = tensors_of(folder)
    ends = [".weight_g", ".weight_v"]
    if not any(name.endswith(ends[0]) for name in tensors):
        ends = [".parametrizations.weight.original0", ".parametrizations.weight.original1"]
    (g,) = (name for name in tensors if name.endswith(ends[0]))
    (v,) = (name for name in tensors if name.endswith(ends[1]))
    norm = np.sqrt((tensors[v].astype(np.float64) ** 2).sum(axis=(0, 1), keepdims=True))
    folded = (tensors[g] * tensors[v] / norm).astype(np.float32)
    rest = {name: t for name, t in tensors.items() if name not in (g, v)}
    expected = ss.load_encoder(folder)
    save(folder, rest | {f"{g.removesuffix(ends[0])}.weight": folded})
    encoder = ss.load_encoder(folder)
    assert any("is folded" in note for note in encoder.provenance["notes"])
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    a, b = (e([samples]).hidden_states for e in (encoder, expected))
    np.testing.assert_allclose(a, b, atol=2e-5)


# --- C8: the hub's cache ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("ref", [None, f"{COMMIT}\n", f"  {COMMIT}\r\n", COMMIT, "gone"])
def test_a_copied_cache_of_the_hub(tmp_path, ref, caplog):
    """Without refs, or with a line end in them, the only snapshot is used."""
    root = tmp_path / "models--me--mine"
    shutil.copytree(PARITY / "wav2vec2-base", root / "snapshots" / COMMIT)
    if ref is not None:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(ref)
    encoder = ss.load_encoder("me/mine", cache_dir=tmp_path, local_files_only=True)
    assert encoder.provenance["revision"] == COMMIT
    assert ("only snapshot is used" in caplog.text) == (ref in (None, "gone"))


def test_of_several_snapshots_none_is_guessed(tmp_path):
    root = tmp_path / "models--me--mine" / "snapshots"
    for commit in (COMMIT, COMMIT[::-1]):
        shutil.copytree(PARITY / "wav2vec2-base", root / commit)
    with pytest.raises(ss.UserError, match="the cache lacks it"):
        ss.load_encoder("me/mine", cache_dir=tmp_path, local_files_only=True)
