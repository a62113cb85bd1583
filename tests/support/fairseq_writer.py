"""Training checkpoints in fairseq's layout, from encoders in transformers' layout, without torch.

The names are those of fairseq's modules, written out here from its sources: the reader's own table
is not used.
"""

import dataclasses
import struct
from typing import Any

import numpy as np

from tests.support.torch_writer import members, number, row, storage, tensor, text, zip_file


@dataclasses.dataclass
class Thing:
    """An object of a class: `arguments` of the call that makes it, and its state."""

    name: str
    state: Any = None
    arguments: tuple = ()
    called: bool = False


def namespace(**values: Any) -> Thing:
    return Thing("argparse.Namespace", values)


def omegaconf(value: Any, parent: Any = None) -> Any:
    """A value as omegaconf 2 pickles it, but for the links to the parents."""
    if not isinstance(value, dict):
        return Thing(
            "omegaconf.nodes.AnyNode", {"_metadata": None, "_parent": parent, "_val": value}
        )
    content = {key: omegaconf(item) for key, item in value.items()}
    state = {"_metadata": None, "_parent": parent, "_content": content}
    return Thing("omegaconf.dictconfig.DictConfig", state)


def torch_file(value: Any) -> bytes:
    """What torch.save writes of nested values, arrays being tensors; bytes are pickled already."""
    return zip_file(members(*pickled(value)))


def pickled(value: Any) -> tuple[bytes, dict[str, bytes]]:
    """The pickle of that file, and its storages by their keys."""
    blocks: dict[str, bytes] = {}

    def fragment(value: Any) -> bytes:
        match value:
            case bytes():  # a fragment already
                return value
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return number(value)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return text(value)
            case dict():
                items = b"".join(fragment(key) + fragment(item) for key, item in value.items())
                return b"}(" + items + b"u"
            case list():
                return b"](" + b"".join(map(fragment, value)) + b"e"
            case tuple():
                return row(*map(fragment, value))
            case Thing():
                module, _, name = value.name.rpartition(".")
                made = f"c{module}\n{name}\n".encode() + row(*map(fragment, value.arguments))
                made += b"R" if value.called else b"\x81"
                return made if value.state is None else made + fragment(value.state) + b"b"
            case np.ndarray():
                key = str(len(blocks))
                kind = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
                blocks[key] = value.tobytes()
                stride = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
                place = storage(kind[value.dtype.str[1:]], key, value.size)
                return tensor(place, value.shape, tuple(stride))
        raise TypeError(type(value))

    return b"\x80\x02" + fragment(value) + b".", blocks


def settings(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """fairseq's settings of the model that a config.json describes."""
    shapes = list(zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"]))
    norm = config.get("feat_extract_norm", "layer")  # data2vec has no other
    values = {
        "_name": {"data2vec-audio": "data2vec_audio"}.get(
            config["model_type"], config["model_type"]
        ),
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[norm],
        "encoder_layers": config["num_hidden_layers"],
        "encoder_embed_dim": config["hidden_size"],
        "encoder_ffn_embed_dim": config["intermediate_size"],
        "encoder_attention_heads": config["num_attention_heads"],
        "activation_fn": "gelu",
        "layer_norm_first": config.get("do_stable_layer_norm", False),
        "conv_feature_layers": f"[{shapes[0]}] + {shapes[1:5]} + [{shapes[5]}] * 2",
        "conv_bias": config["conv_bias"],
        "conv_pos": config["num_conv_pos_embeddings"],
        "conv_pos_groups": config["num_conv_pos_embedding_groups"],
        # What does not concern the network.
        "dropout": 0.1,
        "mask_selection": "static",
        "latent_temp": (2.0, 0.5, 0.999995),
        "required_seq_len_multiple": 1,
    }
    if config["model_type"] == "wavlm":
        values |= {"relative_position_embedding": True, "gru_rel_pos": True}
        values |= {"num_buckets": config["num_buckets"]}
        values |= {"max_distance": config["max_bucket_distance"]}
    if config["model_type"] == "data2vec-audio":
        depth = config["num_conv_pos_embeddings"]
        values |= {"pos_conv_depth": depth, "conv_pos": depth * config["conv_pos_kernel_size"]}
    if config.get("conv_pos_batch_norm"):
        values["conv_pos_batch_norm"] = True
    return values | changes


def state_dict(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a pretrained model by fairseq's names; `tensors` have no prefix."""
    names = {"masked_spec_embed": "mask_emb"}
    layer_norm = config.get("feat_extract_norm", "layer") == "layer"
    batch_norm = config.get("conv_pos_batch_norm", False)
    for part in ("weight", "bias"):
        for index in range(len(config["conv_dim"])):
            of_layer = f"feature_extractor.conv_layers.{index}"
            names[f"{of_layer}.conv.{part}"] = f"{of_layer}.0.{part}"
            # Sequential(conv, dropout, norm, gelu); a layer norm is between two transpositions.
            names[f"{of_layer}.layer_norm.{part}"] = (
                f"{of_layer}.2.1.{part}" if layer_norm else f"{of_layer}.2.{part}"
            )
        names[f"feature_projection.layer_norm.{part}"] = f"layer_norm.{part}"
        names[f"feature_projection.projection.{part}"] = f"post_extract_proj.{part}"
        names[f"encoder.layer_norm.{part}"] = f"encoder.layer_norm.{part}"
        for index in range(config["num_hidden_layers"]):
            of_layer = f"encoder.layers.{index}"
            names |= {
                f"{of_layer}.attention.{letter}_proj.{part}": (
                    f"{of_layer}.self_attn.{letter}_proj.{part}"
                )
                for letter in ("q", "k", "v", "out")
            }
            names[f"{of_layer}.layer_norm.{part}"] = f"{of_layer}.self_attn_layer_norm.{part}"
            names[f"{of_layer}.feed_forward.intermediate_dense.{part}"] = f"{of_layer}.fc1.{part}"
            names[f"{of_layer}.feed_forward.output_dense.{part}"] = f"{of_layer}.fc2.{part}"
            names[f"{of_layer}.final_layer_norm.{part}"] = f"{of_layer}.final_layer_norm.{part}"
            names[f"{of_layer}.attention.gru_rel_pos_linear.{part}"] = (
                f"{of_layer}.self_attn.grep_linear.{part}"
            )
            names[f"{of_layer}.attention.gru_rel_pos_const"] = f"{of_layer}.self_attn.grep_a"
        for index in range(config["num_conv_pos_embeddings"]):  # data2vec's stack
            names[f"encoder.pos_conv_embed.layers.{index}.conv.{part}"] = (
                f"encoder.pos_conv.{index}.0.{part}"
            )
    names["encoder.layers.0.attention.rel_attn_embed.weight"] = (
        "encoder.layers.0.self_attn.relative_attention_bias.weight"
    )
    for part in ("bias", "weight", "weight_g", "weight_v"):
        names[f"encoder.pos_conv_embed.conv.{part}"] = f"encoder.pos_conv.{int(batch_norm)}.{part}"
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        names[f"encoder.pos_conv_embed.batch_norm.{part}"] = f"encoder.pos_conv.0.{part}"
    old = {"original0": "weight_g", "original1": "weight_v"}
    renamed = {}
    for name, value in tensors.items():
        front, _, last = name.rpartition(".parametrizations.weight.")
        renamed[names[f"{front}.{old[last]}" if front else name]] = value
    assert len(renamed) == len(tensors)
    return renamed


def checkpoint(cfg: Any, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The entries that fairseq's trainer writes."""
    best = Thing("numpy.core.multiarray.scalar", None, (), called=True)
    dictionary = Thing(
        "fairseq.data.dictionary.Dictionary", {"symbols": ["<s>", "a"], "count": [1]}
    )
    return {
        "args": None,
        "cfg": cfg,
        "model": model,
        "criterion": {},
        "optimizer_history": [{"num_updates": 3, "lr_scheduler_state": {"best": best}}],
        "task_state": {"dictionaries": [dictionary]},
        "extra_state": {"train_iterator": {"epoch": 1}, "metrics": [(0, "loss", 1.5)]},
        "last_optimizer_state": {"state": {0: {"step": 3}}, "param_groups": [{"params": [0]}]},
    } | more
