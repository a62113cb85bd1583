"""From a hub id or a folder to a SpeechEncoder."""

import logging
from pathlib import Path

from speechsim_jax.models import weights
from speechsim_jax.models.checkpoint import open_checkpoint
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder

_log = logging.getLogger(__name__)


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
    and no code of the checkpoint is run. `name` labels the model in results (default: the last part
    of `source`). Raises UserError, in one line, for whatever is wrong with the checkpoint.
    """
    checkpoint = open_checkpoint(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    config = EncoderConfig.from_hf(checkpoint.config, checkpoint.preprocessor)
    graph, parameters, notes = weights.fill(config, checkpoint.tensors(), checkpoint.source)
    for note in notes:
        _log.warning("%s", note)
    provenance = {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "sha256": checkpoint.digest(),
        "model_type": config.family,
        "do_normalize": config.do_normalize,
        "notes": notes,
    }
    label = name or checkpoint.source.rstrip("/").split("/")[-1]
    return SpeechEncoder(label, config, graph, parameters, provenance)
