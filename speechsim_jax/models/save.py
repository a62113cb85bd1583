"""Encoders as Hugging Face folders: config.json, preprocessor_config.json, model.safetensors."""

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
    """The `config.json` of an encoder, or of transformers' `model` "ForCTC" around it."""
    values = dataclasses.asdict(config)
    values.pop("do_normalize")
    family = values.pop("family")
    if config.convolutions == "drawn":  # which is all that transformers knows
        values.pop("convolutions")
    if family != "hubert":
        values = {k: v for k, v in values.items() if k not in _HUBERT_ONLY}
    if family != "wavlm":
        values = {k: v for k, v in values.items() if k not in _WAVLM_ONLY}
    # Otherwise transformers expects the embedding of masked frames, no part of the encoder.
    values |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    return {"architectures": [_CLASSES[family] + model], "model_type": family, **values}


def hf_preprocessor(config: EncoderConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of an encoder; an attention mask as its layout is used to."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.do_normalize,
        "return_attention_mask": config.feat_extract_norm == "layer",
    }


def save_folder(
    folder: str | Path,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: SavedDtype = "float32",
) -> Path:
    """Write an encoder's tensors (HF's names without prefix) as a Hugging Face folder.

    Raises UserError if the folder cannot be written or a number is too large for `dtype`.
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
    """Write an encoder and its `head` ("lm_head.weight", "lm_head.bias") as a ...ForCTC folder.

    `blank` becomes pad_token_id. The encoder is under its family's prefix, as in transformers.
    Raises UserError as `save_folder` does.
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
    """Write what a training gave as transformers' `model`: "Model", "ForPreTraining" or "ForCTC".

    `tensors` have the names of that class, `masked_spec_embed` is among them; `fields` go into
    config.json. Raises UserError as `save_folder` does.
    """
    # Above 0, or transformers expects no embedding of masked frames.
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
