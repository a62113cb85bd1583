"""Load encoders from the hub, a folder, a file or the zoo, or initialise them at random."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names, zoo
from speechsim_jax.models.checkpoint_files import (
    TORCH_PREFIX,
    WeightFiles,
    check_no_language,
    open_checkpoint,
    untrained,
)
from speechsim_jax.models.config import EncoderConfig, Wav2Vec2Config
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.families import config_from_hf
from speechsim_jax.models.initial_weights import random_tensors

_log = logging.getLogger(__name__)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str | None = None,
) -> SpeechEncoder:
    """Load a speech encoder from a folder, a file or the Hugging Face hub.

    torch is not needed and no code of the checkpoint is run.

    Args:
        source: a folder with config.json, preprocessor_config.json and safetensors or
            pytorch_model.bin weights, or a hub id such as "facebook/hubert-base-ls960"; either may
            be a LoRA adapter of PEFT, which is merged into its base. A file (.pt) is a checkpoint
            of fairseq, s3prl or the original WavLM. "zoo:NAME" is one of the small models that
            come with this package (`speechsim_jax.models.zoo`); "random:ID" and "random:ID@SEED"
            are `random_like` of the folder, file, hub or zoo model ID. "ID#LANGUAGE", such as
            "facebook/mms-1b-all#deu", is a model with the adapters of one of its languages.
        revision: branch, tag or commit of a hub model (default: "main").
        cache_dir: the cache of hub models (default: huggingface_hub's own).
        local_files_only: take hub models from the cache, without the network.
        name: label of the model in results (default: the last part of `source`).

    Returns:
        The encoder, its parameters in float32.

    Raises:
        UserError: what is wrong with the checkpoint, in one line.

    >>> ss.load_encoder("facebook/hubert-base-ls960").config.frames(16_000)  # a second of samples
    49
    """
    if not isinstance(source, str | Path):
        raise UserError(f"a model is {source!r}; expected a hub id, a folder, a file or zoo:NAME")
    if str(source).startswith(TORCH_PREFIX):
        raise UserError(
            f"{source}: is run by torch, which only comparisons do (compare, accumulate)"
        )
    if random := untrained(str(source)):
        model, seed = random
        return random_like(
            model,
            seed,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            name=name,
        )
    checkpoint = open_checkpoint(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    config = _config_of(checkpoint)
    return encoder_of(checkpoint, config, checkpoint.tensors(), name)


def encoder_of(
    checkpoint: WeightFiles,
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    name: str | None,
) -> SpeechEncoder:
    """The encoder with a checkpoint's tensors; tensors that it does not use are logged.

    Args:
        checkpoint: where the tensors come from.
        config: the architecture.
        tensors: the weights by their names in the checkpoint.
        name: label of the model in results (default: the last part of the checkpoint's source).

    Raises:
        UserError: the tensors do not fit the architecture.
    """
    graph, parameters, notes = weight_names.fill(config, tensors, checkpoint.source)
    notes = [*checkpoint.notes, *notes]
    for note in notes:
        _log.warning("%s", note)
    sha256 = checkpoint.digest()
    provenance = _provenance(checkpoint.source, checkpoint.revision, sha256, config, notes)
    if checkpoint.language is not None:
        provenance["language"] = checkpoint.language
    label = name or _last_part(checkpoint.source)
    return SpeechEncoder(label, config, graph, parameters, provenance)


def random_like(
    source: str | Path | SpeechEncoder,
    seed: int = 0,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str | None = None,
) -> SpeechEncoder:
    """An encoder of the same architecture with the initial weights of its family's training.

    The draws are those of transformers (`models.initial_weights.random_tensors`), each a function
    of the seed, the family and the tensor's name. The weight hash in the provenance is over the
    drawn tensors (`models.weight_names.digest`).

    Args:
        source: an encoder, or a hub id, folder or file, of which only the configuration is used.
        seed: of the draws; 0 or more.
        revision: as in `load_encoder`.
        cache_dir: as in `load_encoder`.
        local_files_only: as in `load_encoder`.
        name: label of the model in results (default: "random:" and the last part of `source`, and
            "@" and the seed unless it is 0).

    Raises:
        UserError: a negative seed, or what is wrong with the configuration.

    >>> ss.random_like("facebook/hubert-base-ls960", seed=1).name
    'random:hubert-base-ls960@1'
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; expected 0 or a positive number")
    if isinstance(source, SpeechEncoder):
        config, label = source.config, source.name
        origin, revision = source.provenance.get("source", label), source.provenance.get("revision")
    else:
        check_no_language(str(source))
        checkpoint = open_checkpoint(
            source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        config = _config_of(checkpoint)
        origin, revision = checkpoint.source, checkpoint.revision
        label = _last_part(origin)
    tensors = random_tensors(config, seed)
    graph, parameters, notes = weight_names.fill(config, tensors, origin)
    provenance = _provenance(
        f"random:{origin}", revision, weight_names.digest(tensors), config, notes
    )
    label = f"random:{label}@{seed}" if seed else f"random:{label}"
    return SpeechEncoder(name or label, config, graph, parameters, provenance | {"seed": seed})


def _config_of(checkpoint: WeightFiles) -> EncoderConfig:
    """The architecture; warns where the scaling of samples is not recorded and must be assumed."""
    config = config_from_hf(checkpoint.config, checkpoint.preprocessor)
    if config.without_preprocessor and not checkpoint.preprocessor:
        _log.warning(
            "%s: no preprocessor_config.json, so %s", checkpoint.source, config.without_preprocessor
        )
    return config


def _provenance(
    source: str, revision: str | None, sha256: str, config: EncoderConfig, notes: list[str]
) -> dict[str, Any]:
    return {
        "source": source,
        "revision": revision,
        "sha256": sha256,
        "model_type": config.family,
        **({"do_normalize": config.do_normalize} if isinstance(config, Wav2Vec2Config) else {}),
        "notes": notes,
    }


def _last_part(source: str) -> str:
    return source.removeprefix(zoo.PREFIX).rstrip("/").split("/")[-1]
