"""Save encoders as Hugging Face folders: config.json, preprocessor_config.json, safetensors."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig

SavedDtype = Literal["float32", "float16", "bfloat16"]

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# The stems of transformers' class names: Wav2Vec2Model, Wav2Vec2ForCTC.
_CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
_HUBERT_ONLY = ("feat_proj_layer_norm", "conv_pos_batch_norm")
_WAVLM_ONLY = ("num_buckets", "max_bucket_distance")


def hf_config(config: EncoderConfig, model: str = "Model") -> dict[str, Any]:
    """The `config.json` of an encoder, or of a transformers model around it.

    Args:
        config: the architecture.
        model: the end of transformers' class name: "Model", "ForCTC", "ForPreTraining".
    """
    values = dataclasses.asdict(config)
    values.pop("do_normalize")
    family = values.pop("family")
    if config.convolutions == "drawn":  # the only kind in transformers, which has no such field
        values.pop("convolutions")
    if family != "hubert":
        values = {k: v for k, v in values.items() if k not in _HUBERT_ONLY}
    if family != "wavlm":
        values = {k: v for k, v in values.items() if k not in _WAVLM_ONLY}
    # Above 0, transformers expects the embedding of masked frames, which the encoder lacks.
    values |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    return {"architectures": [_CLASSES[family] + model], "model_type": family, **values}


def hf_preprocessor(config: EncoderConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of an encoder."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.do_normalize,
        # Group-norm models were trained without a mask (transformers' documentation).
        "return_attention_mask": config.feat_extract_norm == "layer",
    }


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
    return _write(folder, hf_config(config), config, _with_counter(config, tensors), dtype)


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
    encoder = _with_counter(config, tensors)
    prefixed = {f"{config.family}.{name}": tensor for name, tensor in encoder.items()}
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
    prefix = "" if model == "Model" else f"{config.family}."
    return _write(folder, values, config, _with_counter(config, tensors, prefix), dtype)


def _with_counter(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors, and the counter of a batch norm, which only training reads."""
    if not config.conv_pos_batch_norm:
        return dict(tensors)
    counter = f"{prefix}encoder.pos_conv_embed.batch_norm.num_batches_tracked"
    return {counter: np.zeros((), np.int64), **tensors}


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
            ("preprocessor_config.json", hf_preprocessor(config)),
        ):
            (path / name).write_text(json.dumps(content, indent=2) + "\n")
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
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
