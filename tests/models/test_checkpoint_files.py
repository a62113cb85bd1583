"""Checkpoints from folders."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from speechsim_jax.errors import UserError
from speechsim_jax.models import checkpoint_files
from speechsim_jax.models.checkpoint_files import open_checkpoint
from tests.support.checkpoint_folders import (
    CONFIG,
    LAYOUTS,
    PREPROCESSOR,
    SAFETENSORS,
    SHARDS,
    TORCH,
    TORCH_SHARDS,
    A,
    B,
    check_tensors,
    fill,
    index_of,
    refusal,
    safetensors_of,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder(tmp_path, layout):
    files, weights = LAYOUTS[layout]
    found = open_checkpoint(fill(tmp_path / "model", files))
    assert found.source == str(tmp_path / "model") and found.folder == tmp_path / "model"
    assert found.revision is None and found.files == weights
    assert found.config == {"model_type": "hubert"}
    check_tensors(found)


def test_other_files(tmp_path):
    found = open_checkpoint(fill(tmp_path, {"config.json": CONFIG, "vocab.json": b"{}"}))
    assert found.file("vocab.json") == tmp_path / "vocab.json"
    assert found.file("merges.txt") is None
    with pytest.raises(UserError, match="there are no weights"):
        _ = found.files


def test_order_of_preference(tmp_path):
    fill(tmp_path, TORCH_SHARDS | TORCH | SHARDS | SAFETENSORS)
    for files, weights in LAYOUTS.values():
        assert open_checkpoint(tmp_path).files == weights
        for name in files:
            if name != "config.json":
                (tmp_path / name).unlink()


@pytest.mark.parametrize("spelling", ["./model", "~/model", "model", "nest/../model"])
def test_spellings_of_a_folder(tmp_path, monkeypatch, spelling):
    fill(tmp_path / "model", SAFETENSORS)
    (tmp_path / "nest").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = open_checkpoint(spelling)
    assert found.source == spelling
    check_tensors(found)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"preprocessor_config.json": PREPROCESSOR}, {"do_normalize": True}),
        (
            {"processor_config.json": b'{"feature_extractor": {"sampling_rate": 16000}}'},
            {"sampling_rate": 16000},
        ),
        ({"processor_config.json": b'{"tokenizer": 1}'}, {}),
        ({}, {}),
    ],
)
def test_preprocessor(tmp_path, files, expected):
    assert open_checkpoint(fill(tmp_path, TORCH | files)).preprocessor == expected


def test_half_precision_stays(tmp_path):
    arrays = {
        "h": A.astype(np.float16),
        "b": A.astype(ml_dtypes.bfloat16),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    content = safetensors_of(**arrays)
    found = open_checkpoint(fill(tmp_path, SAFETENSORS | {"model.safetensors": content})).tensors()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_weights_without_metadata(tmp_path):
    content = save({"a": A, "b": B})
    check_tensors(open_checkpoint(fill(tmp_path, SAFETENSORS | {"model.safetensors": content})))


def test_digest(tmp_path):
    def digest(name: str, files: dict[str, bytes]) -> str:
        return open_checkpoint(fill(tmp_path / name, files)).digest()

    original = digest("original", SAFETENSORS)
    assert len(original) == 64 and original == digest("copy", SAFETENSORS)
    assert original == digest(
        "readme", SAFETENSORS | {"README.md": b"x", "pytorch_model.bin": b"x"}
    )
    others = {
        digest("config", SAFETENSORS | {"config.json": b"{}"}),
        digest("weights", SAFETENSORS | {"model.safetensors": safetensors_of(a=A, b=B + 1)}),
        digest("shards", SHARDS),
        digest("torch", TORCH),
    }
    assert len(others - {original}) == 4


def test_digest_of_a_vanished_file(tmp_path):
    found = open_checkpoint(fill(tmp_path, SAFETENSORS))
    assert found.files == ("model.safetensors",)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        found.digest()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        found.tensors()


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in files.items() if key != name}


def shard_map(*names: object) -> dict[str, bytes]:
    return SHARDS | {
        "model.safetensors.index.json": index_of(**{f"t{i}": name for i, name in enumerate(names)})
    }


INDEX = "model.safetensors.index.json"
WHOLE = SAFETENSORS["model.safetensors"]
BAD_FOLDERS = {
    "no config": (without(SAFETENSORS, "config.json"), "there is no config.json"),
    "config no JSON": (SAFETENSORS | {"config.json": b"{'a': 1}"}, "config.json: is not JSON"),
    "config empty": (SAFETENSORS | {"config.json": b""}, "config.json: is not JSON"),
    "config not UTF-8": (SAFETENSORS | {"config.json": b"\xff\xfe"}, "config.json: is not JSON"),
    "config too deep": (SAFETENSORS | {"config.json": b"[" * 10**5}, "config.json: is not JSON"),
    "config a list": (SAFETENSORS | {"config.json": b"[]"}, "not a JSON object but a list"),
    "preprocessor no JSON": (
        SAFETENSORS | {"preprocessor_config.json": b"x"},
        "preprocessor_config.json: is not JSON",
    ),
    "extractor a list": (
        TORCH | {"processor_config.json": b'{"feature_extractor": []}'},
        "feature_extractor is not a JSON object",
    ),
    "no weights": ({"config.json": CONFIG, "tf_model.h5": b""}, "there are no weights"),
    "missing shard": (without(SHARDS, "model-00002-of-00002.safetensors"), "lacks the shard"),
    "tensor not in its shard": (
        SHARDS | {"model-00002-of-00002.safetensors": safetensors_of(x=B)},
        "lacks 1 of the tensors",
    ),
    "tensor in two shards": (
        SHARDS | {"model-00002-of-00002.safetensors": safetensors_of(a=A, b=B)},
        "tensor 'a' is in another shard",
    ),
    "index without map": (SHARDS | {INDEX: b"{}"}, "has no weight_map"),
    "index with an empty map": (SHARDS | {INDEX: index_of()}, "has no weight_map"),
    "index with a list": (SHARDS | {INDEX: b'{"weight_map": ["a"]}'}, "has no weight_map"),
    "shard a number": (shard_map(3), "weight_map names '3'"),
    "shard above": (shard_map("../a.safetensors"), "weight_map names '../a.safetensors'"),
    "shard absolute": (shard_map("/a.safetensors"), "weight_map names '/a.safetensors'"),
    "shard below": (shard_map("x/a.safetensors"), "weight_map names 'x/a.safetensors'"),
    "shard on a drive": (shard_map("C:a.safetensors"), "weight_map names"),
    "shard with backslash": (shard_map("..\\a.safetensors"), "weight_map names"),
    "shard hidden": (shard_map(".safetensors"), "weight_map names"),
    "shard with line break": (shard_map("a\n.safetensors"), "weight_map names"),
    "shard of another format": (shard_map("pytorch_model.bin"), "weight_map names"),
    "tensorflow": (
        SAFETENSORS | {"model.safetensors": safetensors_of({"format": "tf"}, a=A)},
        "in the format 'tf'",
    ),
    "safetensors cut off": (SAFETENSORS | {"model.safetensors": WHOLE[:-1]}, "safetensors"),
    "safetensors too long": (SAFETENSORS | {"model.safetensors": WHOLE + b"x"}, "safetensors"),
    "safetensors cut early": (SAFETENSORS | {"model.safetensors": WHOLE[:20]}, "safetensors"),
    "safetensors empty": (SAFETENSORS | {"model.safetensors": b""}, "safetensors"),
    "git-lfs pointer": (
        SAFETENSORS | {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        "git lfs pull",
    ),
    "torch file is no ZIP": (TORCH | {"pytorch_model.bin": b"x"}, "pytorch_model.bin: "),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folder(tmp_path, what):
    files, words = BAD_FOLDERS[what]
    line = refusal(fill(tmp_path / "model", files))
    assert words in line and str(tmp_path / "model") in line


def test_element_type_without_numpy_name(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    folder = fill(tmp_path, SAFETENSORS | {"model.safetensors": content})
    assert "element type that numpy cannot name" in refusal(folder)


def test_too_large_json(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_MAX_JSON_BYTES", 10)
    assert "too large for JSON" in refusal(fill(tmp_path, SAFETENSORS))


def test_json_that_vanished(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: cannot be read: No such file"):
        checkpoint_files.read_json(tmp_path / "config.json")


def test_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for source in ("./none", "/none", "~/none", "a/b/c", Path("none"), Path("a/b")):
        assert refusal(source) == f"{source}: there is no such folder"
    assert "is a file; give the folder" in refusal("file")
    with pytest.raises(UserError, match=r"^x{200}: cannot be looked up") as caught:
        open_checkpoint("x" * 5000)
    assert len(str(caught.value)) < 300
    assert "cannot be looked up" in refusal("~no-such-user/model")
    fill(tmp_path / "model", SAFETENSORS)
    assert "a folder has no revision 'main'" in refusal("model", revision="main")
