"""From a hub id, a folder or an architecture to a SpeechEncoder."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names, zoo
from speechsim_jax.models.checkpoint_files import WeightFiles, open_checkpoint
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.initial_weights import random_tensors

_log = logging.getLogger(__name__)

# "random:ID" or "random:ID@SEED"
_RANDOM = re.compile(r"random:(?P<source>.+?)(@(?P<seed>\d+))?", re.DOTALL)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str | None = None,
) -> SpeechEncoder:
    """Load a Wav2Vec2, HuBERT or WavLM encoder from a folder or from the Hugging Face hub.

    `source`: a folder with config.json, preprocessor_config.json and safetensors or
    pytorch_model.bin weights, or a hub id such as "facebook/hubert-base-ls960". torch is not needed
    and no code of the checkpoint is run. "zoo:NAME" is one of the small models that come with this
    package (`speechsim_jax.models.zoo`). "random:ID" and "random:ID@SEED" are `random_like` of the
    folder, hub or zoo model ID. `name` labels the model in results (default: the last part
    of `source`).
    Of hub models `revision` is a branch, tag or commit, and `local_files_only` takes what the cache
    (`cache_dir`) has and asks no network.

    >>> ss.load_encoder("facebook/hubert-base-ls960").config.frames(16_000)  # a second of samples
    49

    Raises:
        UserError: in one line, whatever is wrong with the checkpoint.
    """
    if asked := _RANDOM.fullmatch(str(source)):
        return random_like(
            asked["source"],
            int(asked["seed"] or 0),
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
    """The encoder that a checkpoint's tensors make; what is left out of them is logged."""
    graph, parameters, notes = weight_names.fill(config, tensors, checkpoint.source)
    for note in notes:
        _log.warning("%s", note)
    return SpeechEncoder(
        name or _last_part(checkpoint.source),
        config,
        graph,
        parameters,
        _provenance(checkpoint.source, checkpoint.revision, checkpoint.digest(), config, notes),
    )


def random_like(
    source: str | Path | SpeechEncoder,
    seed: int = 0,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str | None = None,
) -> SpeechEncoder:
    """An encoder of the same architecture with the weights that its family's training starts from.

    `source`: a hub id or folder, of which only config.json and preprocessor_config.json are read,
    or an encoder. The draws are those of transformers (`random_weights.random_tensors`), each a
    function of the seed, the family and the tensor's name. `name` labels the model in results
    (default: "random:" and the last part of `source`, "@" and the seed unless it is 0). The hash
    kept in the result is over the drawn tensors (`weights.digest`), there being no file.
    `revision`, `cache_dir` and `local_files_only` are as of `load_encoder`.

    >>> ss.random_like("facebook/hubert-base-ls960", seed=1).name
    'random:hubert-base-ls960@1'

    Raises:
        UserError: a negative seed, or whatever is wrong with the configuration.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; expected 0 or a positive number")
    if isinstance(source, SpeechEncoder):
        config, label = source.config, source.name
        origin, commit = source.provenance.get("source", label), source.provenance.get("revision")
    else:
        checkpoint = open_checkpoint(
            source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        config = _config_of(checkpoint)
        origin, commit = checkpoint.source, checkpoint.revision
        label = _last_part(origin)
    tensors = random_tensors(config, seed)
    graph, parameters, notes = weight_names.fill(config, tensors, origin)
    provenance = _provenance(
        f"random:{origin}", commit, weight_names.digest(tensors), config, notes
    )
    label = f"random:{label}@{seed}" if seed else f"random:{label}"
    return SpeechEncoder(name or label, config, graph, parameters, provenance | {"seed": seed})


def _config_of(checkpoint: WeightFiles) -> EncoderConfig:
    """What it is; how samples are scaled is assumed, and that is said, where no file says it."""
    if not checkpoint.preprocessor:
        _log.warning(
            "%s: no preprocessor_config.json, so samples are normalised (do_normalize=True)",
            checkpoint.source,
        )
    return EncoderConfig.from_hf(checkpoint.config, checkpoint.preprocessor)


def _provenance(
    source: str, revision: str | None, sha256: str, config: EncoderConfig, notes: list[str]
) -> dict[str, Any]:
    return {
        "source": source,
        "revision": revision,
        "sha256": sha256,
        "model_type": config.family,
        "do_normalize": config.do_normalize,
        "notes": notes,
    }


def _last_part(source: str) -> str:
    return source.removeprefix(zoo.PREFIX).rstrip("/").split("/")[-1]
