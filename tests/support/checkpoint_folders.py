"""Small checkpoints as folders: safetensors or torch files, single or in shards."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import WeightFiles, open_checkpoint
from tests.support.torch_writer import members, state_dict, storage, tensor, zip_file

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([7, 8], np.float32)


def safetensors_of(metadata: dict[str, str] | None = None, **arrays: np.ndarray) -> bytes:
    return save(arrays, metadata={"format": "pt"} if metadata is None else metadata)


def torch_of(**arrays: np.ndarray) -> bytes:
    values = {
        name: tensor(storage("FloatStorage", name, array.size), (array.size,), (1,))
        for name, array in arrays.items()
    }
    blocks = {name: array.astype("<f4").tobytes() for name, array in arrays.items()}
    return zip_file(members(state_dict(values), blocks))


def index_of(**weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


CONFIG = b'{"model_type": "hubert"}'
PREPROCESSOR = b'{"do_normalize": true}'
SAFETENSORS = {
    "config.json": CONFIG,
    "preprocessor_config.json": PREPROCESSOR,
    "model.safetensors": safetensors_of(a=A, b=B),
}
SHARDS = {
    "config.json": CONFIG,
    "model.safetensors.index.json": index_of(
        a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"
    ),
    "model-00001-of-00002.safetensors": safetensors_of(a=A),
    "model-00002-of-00002.safetensors": safetensors_of(b=B),
}
TORCH = {"config.json": CONFIG, "pytorch_model.bin": torch_of(a=A.ravel(), b=B)}
TORCH_SHARDS = {
    "config.json": CONFIG,
    "pytorch_model.bin.index.json": index_of(a="a.bin", b="b.bin"),
    "a.bin": torch_of(a=A.ravel()),
    "b.bin": torch_of(b=B),
}
LAYOUTS = {
    "safetensors": (SAFETENSORS, ("model.safetensors",)),
    "shards": (
        SHARDS,
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    ),
    "torch": (TORCH, ("pytorch_model.bin",)),
    "torch shards": (TORCH_SHARDS, ("a.bin", "b.bin")),
}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_tensors(found: WeightFiles) -> None:
    tensors = found.tensors()
    assert sorted(tensors) == ["a", "b"]
    np.testing.assert_array_equal(tensors["a"].ravel(), A.ravel())
    np.testing.assert_array_equal(tensors["b"], B)


def refusal(source: str | Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(source, **options).tensors()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line
