"""Save encoders as Hugging Face folders: config.json, preprocessor_config.json, safetensors."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.families import family_of

SavedDtype = Literal["float32", "float16", "bfloat16"]

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def hf_config(config: EncoderConfig, model: str | None = None) -> dict[str, Any]:
    """The `config.json` of an encoder, or of a transformers model around it.

    Args:
        config: the architecture.
        model: the end of transformers' class name: "Model", "ForCTC", "ForPreTraining" (default:
            that of the encoder alone).
    """
    family = family_of(config)
    architecture = family.class_stem + (model or family.encoder_class)
    return {"architectures": [architecture], "model_type": config.family, **config.to_hf()}


def save_folder(
    folder: str | Path,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: SavedDtype = "float32",
) -> Path:
    """Write an encoder as a Hugging Face folder.

    Args:
        folder: where to write; it is created if need be.
        config: the architecture.
        tensors: torch tensors under HF's names, without prefix.
        dtype: element type of the saved weights.

    Returns:
        The path of the folder.

    Raises:
        UserError: the folder cannot be written, or a number is too large for `dtype`.
    """
    return _write(folder, hf_config(config), config, _complete(config, tensors), dtype)


def save_ctc_folder(
    folder: str | Path,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    head: Mapping[str, np.ndarray],
    blank: int,
    dtype: SavedDtype = "float32",
) -> Path:
    """Write an encoder and its CTC head as a folder of transformers' ...ForCTC.

    Args:
        folder: where to write; it is created if need be.
        config: the architecture.
        tensors: the encoder's torch tensors under HF's names; they get the family's prefix.
        head: "lm_head.weight" and "lm_head.bias".
        blank: the blank token, saved as pad_token_id.
        dtype: element type of the saved weights.

    Returns:
        The path of the folder.

    Raises:
        UserError: as in `save_folder`.
    """
    values = hf_config(config, "ForCTC")
    values |= {"vocab_size": len(head["lm_head.bias"]), "pad_token_id": blank}
    encoder = _complete(config, tensors)
    prefixed = {f"{family_of(config).prefix}{name}": tensor for name, tensor in encoder.items()}
    return _write(folder, values, config, prefixed | dict(head), dtype)


def save_training_folder(
    folder: str | Path,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    model: str,
    fields: Mapping[str, Any],
    dtype: SavedDtype = "float32",
) -> Path:
    """Write a trained model as a folder of one of transformers' classes.

    Args:
        folder: where to write; it is created if need be.
        config: the architecture.
        tensors: torch tensors under the names of that class, including `masked_spec_embed`.
        model: the end of the class name: "Model", "ForPreTraining" or "ForCTC".
        fields: further fields of config.json.
        dtype: element type of the saved weights.

    Returns:
        The path of the folder.

    Raises:
        UserError: as in `save_folder`.
    """
    # At 0, transformers would expect no embedding of masked frames.
    values = hf_config(config, model) | {"mask_time_prob": 0.05} | dict(fields)
    prefix = "" if model == "Model" else family_of(config).prefix
    return _write(folder, values, config, _complete(config, tensors, prefix), dtype)


def _complete(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors, and those that transformers expects and that are no parameters here.

    The family's buffers, and zeros for what only training reads.
    """
    family = family_of(config)
    more = {
        f"{prefix}{name}": x
        for name, x in (family.buffers(config) if family.buffers else {}).items()
    }
    variance = ".running_var"
    for name in tensors:
        if name.endswith(variance):
            counter = f"{name.removesuffix(variance)}.num_batches_tracked"
            more[counter] = np.zeros((), np.int64)
    if family.mask_embedding:
        more[f"{prefix}masked_spec_embed"] = np.zeros(config.hidden_size, np.float32)
    return more | dict(tensors)


def _write(
    folder: str | Path,
    values: dict[str, Any],
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: SavedDtype,
) -> Path:
    path = Path(folder).expanduser()
    stored = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("config.json", values | {"dtype": dtype}),
            ("preprocessor_config.json", config.preprocessor_to_hf()),
        ):
            (path / name).write_text(json.dumps(content, indent=2) + "\n")
        weights = path / "model.safetensors"
        save_file(stored, weights, metadata={"format": "pt"})
        shutil.copymode(path / "config.json", weights)  # which else its owner alone can read
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); choose another folder") from error
    return path


def _cast(name: str, tensor: np.ndarray, dtype: SavedDtype) -> np.ndarray:
    if tensor.dtype.kind == "i":
        return tensor
    with np.errstate(over="ignore"):  # reported just below
        stored = np.ascontiguousarray(tensor, _DTYPES[dtype])
    if np.isinf(stored).any() and np.isfinite(tensor).all():
        raise UserError(f"{name} has numbers too large for {dtype}; save it as bfloat16 or float32")
    return stored
