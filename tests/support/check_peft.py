"""Compares merged adapters with what PEFT merges; it needs peft and torch, the tests need neither.

    pip install peft==0.21.2 && python -m tests.support.check_peft

Each adapter is made, trained a random step and saved by PEFT, on a parity fixture; the encoder that
is loaded from its folder, and from the state dict of the adapted model with adapter_config.json
beside it, are compared with the one that PEFT's `merge_and_unload` saves.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import speechsim_jax as ss
from tests.support.paths import DATA

MODEL = DATA / "parity" / "wav2vec2-base"
PROJECTIONS = ["q_proj", "v_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "alpha / r": {},
    "alpha / sqrt(r)": {"use_rslora": True},
    "patterns": {
        "target_modules": [*PROJECTIONS, "intermediate_dense"],
        "rank_pattern": {"layers.1.attention.q_proj": 2, "intermediate_dense": 3},
        "alpha_pattern": {"v_proj": 16, r"encoder\.layers\.[02]\.attention\.q_proj": 5},
    },
    "fan_in_fan_out": {"target_modules": ["output_dense"], "fan_in_fan_out": True},
    "whole modules": {"modules_to_save": ["feature_projection"]},
    "all biases": {"bias": "all"},
    "biases of the adapted": {"bias": "lora_only"},
    "biases of LoRA": {"lora_bias": True},
    "DoRA": {"use_dora": True},
    "convolutions": {"target_modules": ["conv_layers.0.conv", "conv_layers.1.conv", "projection"]},
}


def main() -> None:
    """Print the largest difference of each kind of adapter; 0.1 is what the adapter changes."""
    expected = ss.load_encoder(MODEL)
    for name, options in ADAPTERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _write(folder, options)
            merged = ss.load_encoder(folder / "merged")
            found = [
                _difference(ss.load_encoder(folder / part), merged) for part in ("adapter", "one")
            ]
            changed = _difference(expected, merged)
        print(f"{name}: {found[0]:.1e}, in one file {found[1]:.1e} (of {changed:.2f})", flush=True)
        assert max(found) < 1e-6 < changed


def _write(folder: Path, options: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file
    from transformers import Wav2Vec2Model

    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS} | options
    model = get_peft_model(Wav2Vec2Model.from_pretrained(MODEL), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter")
    shutil.copytree(MODEL, folder / "one")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "one" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "one" / "adapter_config.json").write_text(json.dumps(config))
    model.merge_and_unload().save_pretrained(folder / "merged")
    shutil.copy(MODEL / "preprocessor_config.json", folder / "merged")


def _difference(one: ss.SpeechEncoder, other: ss.SpeechEncoder) -> float:
    pairs = zip(jax.tree.leaves(one.parameters), jax.tree.leaves(other.parameters), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
