"""What inspection says of checkpoints is what loading does, without reading or fetching weights."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from speechsim_jax.models import checkpoint_files
from speechsim_jax.models.inspection import inspect_checkpoint
from tests.support.hub_server import Hub, serving
from tests.support.paths import ROOT

PARITY = ROOT / "tests" / "data" / "parity"
LAYOUTS = sorted(path.name for path in PARITY.iterdir() if (path / "config.json").is_file())
BASE = PARITY / "wav2vec2-base"


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint, to be changed."""
    return shutil.copytree(BASE, tmp_path / "model")


def rewritten(folder, change):
    """The folder with `change` applied to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_loads_is_described_as_it_is(layout, monkeypatch):
    encoder = ss.load_encoder(PARITY / layout)

    def refused(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(checkpoint_files, "_read_safetensors", refused)
    found = inspect_checkpoint(PARITY / layout)
    config = encoder.config
    assert (found.loads, found.reason, found.family) == (True, None, config.family)
    assert (found.layers, found.width) == (config.num_hidden_layers, config.hidden_size)
    sizes = [leaf.size for leaf in jax.tree.leaves(encoder.parameters)]
    assert found.parameters == sum(sizes)
    assert found.frames_per_second == 16_000 / config.hop_samples
    assert found.first_centre_ms == 1000 * config.frame_centres_seconds(1)[0]
    assert found.notes == list(encoder.provenance["notes"])


MISTAKES = {
    "missing": lambda tensors: dict(list(tensors.items())[1:]),
    "unexpected": lambda tensors: tensors | {"encoder.odd.weight": np.ones(3, np.float32)},
    "of another shape": lambda tensors: {
        name: np.ones((5, *tensor.shape), np.float32) if name.endswith("k_proj.bias") else tensor
        for name, tensor in tensors.items()
    },
    "quantised": lambda tensors: {
        name: tensor.astype(np.int8) if name.endswith("k_proj.weight") else tensor
        for name, tensor in tensors.items()
    },
}


@pytest.mark.parametrize("name", MISTAKES)
def test_weights_that_do_not_fit_are_refused_as_in_loading(name, folder):
    rewritten(folder, MISTAKES[name])
    with pytest.raises(ss.UserError) as refused:
        ss.load_encoder(folder)
    found = inspect_checkpoint(folder)
    assert found.loads is False and found.reason == str(refused.value)
    assert found.layers == 3  # what config.json says is known all the same


@pytest.mark.parametrize(
    "changed",
    [{"add_adapter": True}, {"hidden_act": "relu"}, {"num_attention_heads": 5}, {"model_type": 3}],
)
def test_options_that_are_not_read_are_refused_as_in_loading(changed, folder):
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ss.UserError) as refused:
        ss.load_encoder(folder)
    found = inspect_checkpoint(folder)
    assert (found.loads, found.reason) == (False, str(refused.value))


def test_precision_left_out_tensors_head_and_preprocessing(folder):
    def with_head(tensors):
        named = {f"wav2vec2.{name}": tensor for name, tensor in tensors.items()}
        half = {name: tensor.astype(np.float16) for name, tensor in named.items()}
        further = {
            "quantizer.weight_proj.weight": np.ones((4, 4), np.float32),
            "quantizer.weight_proj.bias": np.ones(4, np.float32),
            "lm_head.weight": np.ones((29, 32), np.float32),
            "lm_head.bias": np.ones(29, np.float32),
        }
        return half | further

    before = inspect_checkpoint(folder)
    assert before.precision.keys() == {"float32"} and not before.assumed
    assert (before.ctc_tokens, before.normalised) == (None, True)
    total = sum(before.precision.values())
    rewritten(folder, with_head)
    (folder / "preprocessor_config.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({str(k): k for k in range(29)}))
    found = inspect_checkpoint(folder)
    assert found.loads and found.assumed and found.normalised
    assert found.precision == {"float16": total, "float32": 16 + 4 + 29 * 32 + 29}
    assert (found.ctc_tokens, found.vocabulary) == (29, 29)
    assert found.left_out["lm_head"] == found.left_out["quantizer"] == 2
    assert found.parameters == before.parameters


def test_shards_are_looked_at_and_their_index_is_checked(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = inspect_checkpoint(folder)
    assert found.loads and list(found.files) == list(shards)
    index.write_text(json.dumps({"weight_map": weight_map | {"other": "b.safetensors"}}))
    found = inspect_checkpoint(folder)
    assert not found.loads and "'other'" in (found.reason or "")


def test_a_random_baseline_needs_the_configuration_alone(folder):
    (folder / "model.safetensors").unlink()
    assert inspect_checkpoint(folder).loads is False
    found = inspect_checkpoint(f"random:{folder}@3")
    assert found.loads and found.precision == {"float32": found.parameters}


# --- the hub ---


def hub_files(weights: str, content: bytes) -> dict[str, bytes]:
    small = ("config.json", "preprocessor_config.json")
    return {name: (BASE / name).read_bytes() for name in small} | {weights: content}


def test_of_a_hub_model_only_the_head_of_the_weights_is_fetched(monkeypatch, tmp_path):
    padded = rewritten(
        shutil.copytree(BASE, tmp_path / "large"),
        lambda tensors: tensors | {"lm_head.weight": np.ones((32, 2**16), np.float32)},
    )
    content = (padded / "model.safetensors").read_bytes()
    hub = Hub("org/model", hub_files("model.safetensors", content))
    with serving(hub, monkeypatch, tmp_path):
        found = inspect_checkpoint("org/model")
        assert (found.loads, found.revision) == (True, "1" * 40), found.reason
        assert found.files == {"model.safetensors": len(content)}
        assert hub.sent["model.safetensors"] < 200_000 < len(content) / 10
        assert found.ctc_tokens == 32
        # Once it is in the cache, it is looked at there.
        checkpoint_files.open_checkpoint("org/model").tensors()
        sent = hub.sent["model.safetensors"]
        assert inspect_checkpoint("org/model", local_files_only=True).loads
        assert hub.sent["model.safetensors"] == sent


def test_torch_files_on_the_hub_are_not_fetched(monkeypatch, tmp_path):
    hub = Hub("org/model", hub_files("pytorch_model.bin", bytes(3_000_000)))
    with serving(hub, monkeypatch, tmp_path):
        found = inspect_checkpoint("org/model")
        assert found.loads is None and "pytorch_model.bin (3 MB)" in (found.reason or "")
        assert (found.layers, found.files) == (3, {"pytorch_model.bin": 3_000_000})
        assert "pytorch_model.bin" not in hub.sent


def test_a_hub_model_without_weights_or_that_is_not_there(monkeypatch, tmp_path):
    hub = Hub("org/model", hub_files("README.md", b""))
    with serving(hub, monkeypatch, tmp_path):
        assert "no weights" in (inspect_checkpoint("org/model").reason or "")
        found = inspect_checkpoint("org/other")
        assert found.loads is False and "org/other" in (found.reason or "")
