"""What a checkpoint is, and whether it can be loaded, from its configuration and headers."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names
from speechsim_jax.models.catalogue import KNOWN
from speechsim_jax.models.checkpoint_files import (
    TORCH_PREFIX,
    WeightFiles,
    check_no_language,
    open_checkpoint,
    read_json,
    untrained,
)
from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig
from speechsim_jax.models.families import config_from_hf, family_of

_CTC_HEAD = re.compile(r"(^|\.)lm_head\.weight$")


@dataclasses.dataclass
class Inspection:
    """What is known of a checkpoint; None and empty where it is not, or there is none.

    Attributes:
        model: the source, as the user wrote it.
        loads: whether it can be loaded; None where weights would have to be fetched to know.
        reason: why it cannot, or what would have to be fetched, in one line.
        family: model_type in config.json.
        class_name: of transformers' encoder.
        revision: commit of a hub model.
        layers: transformer layers.
        width: neurons of a layer.
        heads: attention heads of a layer.
        parameters: of the encoder.
        precision: numbers in the files, by their type.
        files: bytes of the weight files, by name.
        frames_per_second: of the encoder.
        window_ms: receptive field of a frame.
        first_centre_ms: where the first frame is centred.
        longest_seconds: of an input; None for any.
        input: "samples" or "log-mel".
        normalised: whether samples are normalised per utterance.
        assumed: what is taken as the family's default, where no preprocessing is recorded.
        left_out: tensors that are not part of the encoder: how many, by module.
        ctc_tokens: tokens of the CTC head.
        vocabulary: tokens in vocab.json, where there is a CTC head; of a model of several
            languages, those of the language that is named.
        notes: for the user; that of an adapter is among them.
    """

    model: str
    loads: bool | None = None
    reason: str | None = None
    family: str | None = None
    class_name: str | None = None
    revision: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    parameters: int | None = None
    precision: dict[str, int] = dataclasses.field(default_factory=dict)
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    frames_per_second: float | None = None
    window_ms: float | None = None
    first_centre_ms: float | None = None
    longest_seconds: float | None = None
    input: str | None = None
    normalised: bool | None = None
    assumed: str = ""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    ctc_tokens: int | None = None
    vocabulary: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def inspect_checkpoint(source: str | Path, **loading: Any) -> Inspection:
    """Look at a checkpoint; its weights are neither read nor fetched.

    Args:
        source: as in `load_encoder`.
        **loading: `revision`, `cache_dir`, `local_files_only` of `load_encoder`.

    Returns:
        All that could be found out, up to the first thing that is wrong.
    """
    found = Inspection(str(source))
    try:
        _look(found, str(source), loading)
    except UserError as error:
        found.loads, found.reason = False, " ".join(str(error).split())
    return found


def _look(found: Inspection, source: str, loading: Mapping[str, Any]) -> None:
    """Fill in what is found; raises UserError for a checkpoint that cannot be loaded."""
    if source.startswith(TORCH_PREFIX):
        found.reason = f"{source}: is run by torch, and only by comparisons"
        return
    random = untrained(source)
    if random:
        check_no_language(random[0])
    checkpoint = open_checkpoint(random[0] if random else source, **loading)
    found.revision = checkpoint.revision
    kind = checkpoint.config.get("model_type")
    found.family = kind if isinstance(kind, str) else None
    config = config_from_hf(checkpoint.config, checkpoint.preprocessor)
    _describe(found, config)
    found.assumed = "" if checkpoint.preprocessor else config.without_preprocessor
    table = weight_names.weight_table(config)
    found.parameters = sum(math.prod(row.shape) for row in table)
    if random:
        found.precision, found.loads = {"float32": found.parameters}, True
        return
    found.notes = list(checkpoint.notes)
    found.files = dict(checkpoint.weight_sizes)
    if to_fetch := checkpoint.not_fetched:
        listed = ", ".join(f"{name} ({size / 1e6:,.0f} MB)" for name, size in to_fetch.items())
        found.reason = f"{source}: only a download of {listed} can tell"
        return
    headers = checkpoint.headers()
    found.precision = _numbers_by_type(headers)
    _describe_head(found, checkpoint, headers)
    matched = weight_names.matched(config, headers, source, table)
    modules = (_module(name, config.family) for name in matched.left_out)
    found.left_out = dict(collections.Counter(modules))
    found.notes += matched.notes
    found.loads = True


def _describe(found: Inspection, config: EncoderConfig) -> None:
    family = family_of(config)
    found.class_name = f"{family.class_stem}{family.encoder_class}"
    found.layers, found.width = config.num_hidden_layers, config.hidden_size
    found.heads = config.num_attention_heads
    found.frames_per_second = SAMPLE_RATE_HZ / config.hop_samples
    found.window_ms = 1000 * config.window_samples / SAMPLE_RATE_HZ
    found.first_centre_ms = 1000 * config.first_centre_samples / SAMPLE_RATE_HZ
    if config.longest_samples is not None:
        found.longest_seconds = config.longest_samples / SAMPLE_RATE_HZ
    found.input = KNOWN[config.family].input
    found.normalised = getattr(config, "do_normalize", None)


def _describe_head(
    found: Inspection, checkpoint: WeightFiles, headers: Mapping[str, np.ndarray]
) -> None:
    head = next((t for name, t in headers.items() if _CTC_HEAD.search(name) and t.ndim == 2), None)
    if head is None:
        return
    found.ctc_tokens = len(head)
    path = checkpoint.file("vocab.json")
    vocabulary = {} if path is None else read_json(path)
    if any(isinstance(entry, dict) for entry in vocabulary.values()):  # one for each language
        vocabulary = vocabulary.get(checkpoint.language or "")
    found.vocabulary = len(vocabulary) if isinstance(vocabulary, dict) and vocabulary else None


def _numbers_by_type(headers: Mapping[str, np.ndarray]) -> dict[str, int]:
    numbers: collections.Counter[str] = collections.Counter()
    for tensor in headers.values():
        numbers[tensor.dtype.name] += tensor.size
    return dict(numbers.most_common())


def _module(name: str, family: str) -> str:
    """What a tensor that is left out belongs to: "quantizer", "lm_head", "masked_spec_embed"."""
    around = {family.replace("-", "_"), "model"}
    return next((part for part in name.split(".") if part not in around), name)
