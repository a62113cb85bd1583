"""Checkpoints of fairseq, s3prl and the original WavLM: configuration and weights as transformers'.

A checkpoint holds the settings of its model and task, as dictionaries or as pickled objects of
argparse and omegaconf, and a state dict under fairseq's names. Of the settings only names, text,
numbers and truth values are looked at; the weights get transformers' names.

Source: transformers, `convert_wav2vec2_original_pytorch_checkpoint_to_pytorch.py`, and those of
HuBERT, DistilHuBERT, WavLM and data2vec-audio; fairseq, `models/wav2vec/wav2vec2.py`,
`models/hubert/hubert.py`, `examples/data2vec`; s3prl, `upstream/*/convert.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models.torch_bin import Record, Tensor, read_training_bin

# The names of fairseq's models (`_name`, and `arch` before 2020-11) and transformers' model_type.
_FAMILIES = {
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "distilhubert": "hubert",
    "wavlm": "wavlm",
    "data2vec_audio": "data2vec-audio",
}
# A tensor that only one of the families has, for settings that do not name the model.
_TELLING = (
    (re.compile(r"(^|\.)self_attn\.grep_linear\."), "wavlm"),
    (re.compile(r"(^|\.)encoder\.pos_conv\.\d+\.0\."), "data2vec_audio"),
    (re.compile(r"^label_embs_concat$"), "hubert"),
    (re.compile(r"^quantizer\."), "wav2vec2"),
)

# Settings that have the same meaning in transformers, and the defaults of those that older
# programs did not record. Without a default a checkpoint must have them.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "encoder_layers": ("num_hidden_layers", None),
    "encoder_embed_dim": ("hidden_size", None),
    "encoder_ffn_embed_dim": ("intermediate_size", None),
    "encoder_attention_heads": ("num_attention_heads", None),
    "layer_norm_first": ("do_stable_layer_norm", None),
    "activation_fn": ("hidden_act", "gelu"),
    "conv_bias": ("conv_bias", False),
    "conv_pos": ("num_conv_pos_embeddings", 128),
    "conv_pos_groups": ("num_conv_pos_embedding_groups", 16),
}
_EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}
# "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", which fairseq evaluates as Python.
_SHAPE = r"\((\d{1,6}),(\d{1,6}),(\d{1,6}),?\)"
_TERM = re.compile(r"\[(?P<once>(?:\(\d{1,6},\d{1,6},\d{1,6},?\),?)+)\](?:\*(?P<times>\d{1,2}))?")
_MAX_CONVOLUTIONS = 64
_MAX_TEXT = 1000

_LAYER = r"encoder\.layers\.(\d+)\."
# The names of the encoder's tensors: the first rule whose left side begins a name renames it.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
        # A layer norm lies between two transpositions, a group norm does not.
        (
            r"feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?",
            r"feature_extractor.conv_layers.\1.layer_norm.",
        ),
        (r"layer_norm\.", "feature_projection.layer_norm."),
        (r"post_extract_proj\.", "feature_projection.projection."),
        (r"mask_emb$", "masked_spec_embed"),
        (r"encoder\.pos_conv\.(\d+)\.0\.", r"encoder.pos_conv_embed.layers.\1.conv."),
        (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (_LAYER + r"self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
        (_LAYER + r"self_attn\.grep_linear\.", r"encoder.layers.\1.attention.gru_rel_pos_linear."),
        (_LAYER + r"self_attn\.grep_a$", r"encoder.layers.\1.attention.gru_rel_pos_const"),
        (
            _LAYER + r"self_attn\.relative_attention_bias\.",
            r"encoder.layers.\1.attention.rel_attn_embed.",
        ),
        (_LAYER + r"self_attn\.", r"encoder.layers.\1.attention."),
        (_LAYER + r"fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
        (_LAYER + r"fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
        (r"(feature_extractor|encoder)\.", r"\1."),
    )
)
# With a batch norm in place of weight norm, the positional convolution comes second.
_BATCH_NORM_RULES = (
    (re.compile(r"encoder\.pos_conv\.0\."), "encoder.pos_conv_embed.batch_norm."),
    (re.compile(r"encoder\.pos_conv\.1\."), "encoder.pos_conv_embed.conv."),
)
# Where a fine-tuned model has the encoder, and the head of one that was fine-tuned with CTC.
_FINE_TUNED = re.compile(r"(w2v_encoder|encoder)\.w2v_model\.")
_HEAD = re.compile(r"w2v_encoder\.proj\.")


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A checkpoint in transformers' terms.

    Attributes:
        config: as config.json.
        preprocessor: as preprocessor_config.json.
        tensors: by transformers' names; what is not part of the encoder has no prefix.
        notes: what the user should know.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]


class _Parts(NamedTuple):
    """Where a checkpoint has what is needed.

    Attributes:
        name: of the model; None if the settings do not say.
        model: settings of the model, a dict or a `Record`.
        task: settings of the task, with `normalize`.
        weights: the state dict.
    """

    name: Any
    model: Any
    task: Any
    weights: Any


def read_training_checkpoint(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint of fairseq, of s3prl, or of the original WavLM.

    Args:
        path: a file that was written by torch.save of torch 1.6 or newer.

    Raises:
        UserError: in one line, a file that is damaged, of another program, or of another model.
    """
    try:
        parts = _parts(read_training_bin(path))
        tensors = _tensors(parts.weights)
        name = parts.name or next(
            (name for pattern, name in _TELLING if any(map(pattern.search, tensors))), None
        )
        if type(name) is not str or name not in _FAMILIES:
            raise UserError(
                f"is a fairseq model {_shown(name)}; only {', '.join(_FAMILIES)} and what was "
                "fine-tuned from them are read"
            )
        config = _config(name, parts.model)
        preprocessor, note = _preprocessor(config, parts.task)
        named = _renamed(tensors, config)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    return TrainingCheckpoint(config, preprocessor, named, (note,) if note else ())


# --- what the entries are ---


def _parts(entries: Mapping[str, Any]) -> _Parts:
    if "model_weight" in entries and "model_cfg" in entries:  # s3prl's converted checkpoints
        model, task = entries["model_cfg"], entries.get("task_cfg")
        return _unnested(_Parts(_get(model, "_name"), model, task, entries["model_weight"]))
    if "Distiller" in entries and "Config" in entries:
        model = _get(entries["Config"], "distiller")
        return _Parts("distilhubert", model, {"normalize": False}, entries["Distiller"])
    settings = entries.get("args") if entries.get("cfg") is None else entries["cfg"]
    if "model" in entries and settings is not None:
        return _unnested(_of_fairseq(settings, entries["model"]))
    if {"Downstream", "Featurizer"} & entries.keys():
        raise UserError(
            "is a checkpoint of an s3prl task, whose encoder is elsewhere: give the upstream model"
        )
    if entries and all(isinstance(value, Tensor) for value in entries.values()):
        raise UserError(
            "is a state dict without a configuration: put it into a folder as pytorch_model.bin, "
            "with the config.json of the model"
        )
    names = ", ".join(ascii(name)[:40] for name in list(entries)[:8])
    raise UserError(
        f"is a checkpoint of an unknown training program (its entries: {names or 'none'}); "
        "save the model with save_pretrained(folder)"
    )


def _of_fairseq(settings: Any, weights: Any) -> _Parts:
    """The parts of hierarchical settings (cfg), of flat ones (args), or of WavLM's."""
    if _fields(settings) is None:
        raise UserError("has no settings of its model")
    model = _get(settings, "model")
    if _fields(model) is None:
        name = _get(settings, "_name") or _get(settings, "arch")
        return _Parts(name, settings, settings, weights)
    name = _get(model, "_name") or _get(model, "arch")
    return _Parts(name, model, _get(settings, "task"), weights)


def _unnested(parts: _Parts) -> _Parts:
    """With the settings of the pretrained model, which a fine-tuned checkpoint has inside its own.

    The task stays that of the fine-tuning, whose samples its weights have seen last.
    """
    for _ in range(4):  # a model may have been fine-tuned again
        pretrained = _get(parts.model, "w2v_args")
        if _fields(pretrained) is None:
            break
        inner = _of_fairseq(pretrained, parts.weights)
        task = inner.task if _get(parts.task, "normalize") is None else parts.task
        parts = inner._replace(task=task)
    else:
        raise UserError("has settings inside settings (w2v_args) without end")
    weights = parts.weights if isinstance(parts.weights, dict) else {}
    fine_tuned = any(type(name) is str and _FINE_TUNED.match(name) for name in weights)
    if fine_tuned and _get(parts.model, "encoder_layers") is None:
        raise UserError(
            "is fine-tuned, and lacks the settings of the model that it was fine-tuned from "
            "(w2v_args); save it again with fairseq, which adds them"
        )
    return parts


def _fields(node: Any) -> Mapping[Any, Any] | None:
    """The fields of a dictionary or of an object, an omegaconf one included; None for a value."""
    if isinstance(node, Record):
        state = node.state if isinstance(node.state, dict) else {}
        node = state.get("_content", state or None)
    return node if isinstance(node, dict) else None


def _get(node: Any, name: str) -> Any:
    """A field; the value of an omegaconf node or of an enumeration. None if it is not there.

    Raises UserError for what is neither a dictionary or an object nor a short value: a list may
    contain itself.
    """
    value = (_fields(node) or {}).get(name)
    if isinstance(value, Record) and isinstance(value.state, dict) and "_val" in value.state:
        value = value.state["_val"]
    if isinstance(value, Record) and value.state is None and len(value.arguments) == 1:
        value = value.arguments[0]
    short = (type(value) is str and len(value) <= _MAX_TEXT) or (
        value is None or isinstance(value, bool | float | dict | Record)
    )
    if not short and not (type(value) is int and abs(value) < 2**53):
        raise UserError(f"its settings have {name}={_shown(value)}; expected text or a number")
    return value


# --- configuration ---


def _config(name: str, model: Any) -> dict[str, Any]:
    family = _FAMILIES[name]
    _refuse_variants(family, model)
    config: dict[str, Any] = {"model_type": family}
    for setting, (field, default) in _SETTINGS.items():
        value = _get(model, setting)
        value = default if value is None else value
        if value is None:
            raise UserError(f"its settings lack {setting}, without which the model is not known")
        config[field] = value
    mode = _get(model, "extractor_mode")
    if type(mode) is not str or mode not in _EXTRACTOR_MODES:
        raise UserError(
            f"its settings have extractor_mode={_shown(mode)}; expected 'default' or 'layer_norm'"
        )
    config["feat_extract_norm"] = _EXTRACTOR_MODES[mode]
    layers = "extractor_conv_feature_layers" if name == "distilhubert" else "conv_feature_layers"
    shapes = _convolutions(layers, _get(model, layers))
    for field, column in zip(("conv_dim", "conv_kernel", "conv_stride"), zip(*shapes)):
        config[field] = list(column)
    if name == "distilhubert":
        config["feat_proj_layer_norm"] = False
    if family == "hubert":
        config["conv_pos_batch_norm"] = _get(model, "conv_pos_batch_norm") is True
    if family == "wavlm":
        buckets, distance = _get(model, "num_buckets"), _get(model, "max_distance")
        config["num_buckets"] = 320 if buckets is None else buckets
        config["max_bucket_distance"] = 1280 if distance is None else distance
    if family == "data2vec-audio":
        depth, taps = _get(model, "pos_conv_depth"), config["num_conv_pos_embeddings"]
        if type(depth) is not int or depth < 2:  # one layer is a weight norm, as in wav2vec 2.0
            raise UserError(
                f"its settings have pos_conv_depth={_shown(depth)}; expected at least 2 layers "
                "for data2vec_audio"
            )
        config["num_conv_pos_embeddings"] = depth
        if type(taps) is int:
            config["conv_pos_kernel_size"] = max(3, taps // depth)
    return config


def _refuse_variants(family: str, model: Any) -> None:
    """Raise UserError for settings that change the network and that transformers lacks."""
    if _fields(model) is None:
        raise UserError("has no settings of its model")
    plain = {"layer_type": "transformer", "quantize_input": False}
    if family == "data2vec-audio":
        plain |= {"extractor_mode": "layer_norm", "layer_norm_first": False}
    else:
        plain["pos_conv_depth"] = 1
    if family == "wavlm":
        plain |= {"relative_position_embedding": True, "gru_rel_pos": True}
    for setting, expected in plain.items():
        value = _get(model, setting)
        if value is not None and value != expected:
            raise UserError(f"its settings have {setting}={_shown(value)}; only {expected} is read")


def _convolutions(setting: str, value: Any) -> list[tuple[int, int, int]]:
    """Channels, taps and stride of each convolution."""
    text = re.sub(r"\s", "", value) if type(value) is str and len(value) <= _MAX_TEXT else ""
    shapes: list[tuple[int, int, int]] = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term)
        if match:
            once = [(int(a), int(b), int(c)) for a, b, c in re.findall(_SHAPE, match["once"])]
            shapes += once * int(match["times"] or 1)
        if match is None or len(shapes) > _MAX_CONVOLUTIONS:
            raise UserError(
                f"its settings have {setting}={_shown(value)}; expected at most "
                f"{_MAX_CONVOLUTIONS} convolutions, such as [(512,10,5)] + [(512,3,2)] * 4"
            )
    return shapes


def _preprocessor(config: Mapping[str, Any], task: Any) -> tuple[dict[str, Any], str]:
    """The feature extractor's settings, and what the user should know about them.

    fairseq and s3prl scale samples as `task.normalize` says. transformers' folders of the same
    models may say otherwise (facebook/wav2vec2-base does).
    """
    rate = _get(task, "sample_rate")
    preprocessor = {} if rate is None else {"sampling_rate": rate}
    normalize = _get(task, "normalize")
    if normalize is None:
        # fairseq: "layer_norm has layer norms in every block (meant to use with normalize=True)"
        normalize = config["feat_extract_norm"] == "layer"
        note = f"it does not say whether samples are normalised; taken as {normalize}, as fairseq "
        note += f"does with convolutions of extractor_mode {config['feat_extract_norm']}"
    else:
        note = "" if normalize else "samples are not normalised (task.normalize in the checkpoint)"
    return preprocessor | {"do_normalize": normalize}, note


# --- weights ---


def _tensors(weights: Any) -> dict[str, np.ndarray]:
    if not isinstance(weights, dict):
        raise UserError(f"its weights are {_shown(weights)}, not a state dict")
    tensors = {}
    for name, value in weights.items():
        if type(name) is not str or not name.isprintable():
            raise UserError(f"has a weight with the name {_shown(name)}")
        if name.rpartition(".")[2] == "_ema":  # data2vec's teacher, of which the student is kept
            continue
        if not isinstance(value, Tensor):
            raise UserError(f"its weight {name[:80]} is {_shown(value)}, not a tensor")
        tensors[name] = value.array
    return tensors


def _renamed(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors by transformers' names, the encoder's with its prefix.

    A name inside the encoder that no rule knows keeps its name, and so is reported as unexpected.
    """
    prefix = config["model_type"].replace("-", "_")
    rules = (*(_BATCH_NORM_RULES if config.get("conv_pos_batch_norm") else ()), *_RULES)
    fine_tuned = any(map(_FINE_TUNED.match, tensors))
    renamed = {}
    for name, tensor in tensors.items():
        short = _FINE_TUNED.sub("", name, count=1) if _FINE_TUNED.match(name) else name
        new = _HEAD.sub("lm_head.", name) if _HEAD.match(name) else name
        if not fine_tuned or short != name:
            for pattern, replacement in rules:
                if pattern.match(short):
                    new = f"{prefix}.{pattern.sub(replacement, short, count=1)}"
                    break
        if new in renamed:
            raise UserError(f"two of its weights are {new[:80]}")
        renamed[new] = tensor
    return renamed


def _shown(value: Any) -> str:
    """A value from the file as a few words of ASCII."""
    if isinstance(value, Record):
        return f"an object of {ascii(value.name)[:80]}"
    plain = value is None or type(value) in (str, int, float, bool)
    return (
        ascii(value[:80] if type(value) is str else value)[:90]
        if plain
        else (f"a {type(value).__name__.strip('_').lower()}")
    )
