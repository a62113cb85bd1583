"""The files of a trained model: Hugging Face folders that transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from speechsim_jax.errors import UserError
from speechsim_jax.models import save, weight_names
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.save import SavedDtype
from speechsim_jax.runtime.atomic_write import write_text
from speechsim_jax.training import model as training_model
from speechsim_jax.training.data.alphabet import Alphabet
from speechsim_jax.training.data.cluster_labels import ClusterLabels
from speechsim_jax.training.model import CTC, Contrastive, Model

HEAD_FILE = "pretraining_head.safetensors"


def write_encoder(folder: Path, config: Wav2Vec2Config, model: Model, dtype: SavedDtype) -> None:
    """Write the encoder alone, as ...Model. Raises UserError."""
    save.save_folder(folder, config, weight_names.export(config, model.encoder), dtype)


def write_contrastive(
    folder: Path, config: Wav2Vec2Config, objective: Contrastive, model: Model, dtype: SavedDtype
) -> None:
    """Write encoder, quantizer and projections, as ...ForPreTraining. Raises UserError."""
    tensors = training_model.to_tensors(config, model)
    fields = objective.hf_fields()
    save.save_training_folder(folder, config, tensors, "ForPreTraining", fields, dtype)


def write_predictive(
    folder: Path,
    config: Wav2Vec2Config,
    model: Model,
    clusters: ClusterLabels,
    dtype: SavedDtype,
) -> None:
    """Write the encoder as ...Model, the head in a file of its own (transformers has no class).

    units.npz holds the centres of the clusters. Raises UserError.
    """
    tensors = training_model.to_tensors(config, model)
    prefix = f"{config.family}."
    encoder = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    head = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    path = save.save_training_folder(folder, config, encoder, "Model", {}, dtype)
    try:
        save_file(head, path / HEAD_FILE, metadata={"format": "pt"})
        np.savez(path / "units.npz", centres=clusters.centres)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the head cannot be written ({error})") from error


def write_recognizer(
    folder: Path,
    config: Wav2Vec2Config,
    objective: CTC,
    model: Model,
    alphabet: Alphabet,
    dtype: SavedDtype,
) -> None:
    """Write encoder, head and tokenizer, as ...ForCTC. Raises UserError."""
    tensors = training_model.to_tensors(config, model)
    fields = objective.hf_fields()
    path = save.save_training_folder(folder, config, tensors, "ForCTC", fields, dtype)
    try:
        alphabet.save(path)
    except OSError as error:
        raise UserError(f"{path}: the tokenizer cannot be written ({error})") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file. Raises UserError."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(path, text.encode("utf-8", "backslashreplace").decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
